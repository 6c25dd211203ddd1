"""Evaluation: scores and files of a run here; measuring, reports, comparisons, audits in rooms."""
