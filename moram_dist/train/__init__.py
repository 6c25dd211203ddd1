"""Training: DeepSpeed's configuration and engine, the run directory, the loop."""
