"""Examples to batches of tokens."""
