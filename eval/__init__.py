"""Scores and files of a run; subpackages measure, report and compare runs, and audit benchmarks."""
