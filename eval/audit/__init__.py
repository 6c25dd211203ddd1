"""Audit a benchmark before training on it: sizes, lengths, truncation, scores, findings."""
