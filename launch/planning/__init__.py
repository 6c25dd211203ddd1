"""Estimate the memory, traffic, disk and time of a run without its machines."""
