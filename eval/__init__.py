"""Scores, reports and plots of finished runs. Needs no GPU and no torch."""
