"""Turn examples into batches of tokens."""
