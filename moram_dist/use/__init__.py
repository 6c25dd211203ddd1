"""Use what runs have learned, in one process without DeepSpeed: answer, export, serve."""
