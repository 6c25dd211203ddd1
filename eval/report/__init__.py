"""A run's report: one static page, and its figures and tables as files."""
