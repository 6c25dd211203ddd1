"""Linear layers of a frozen model, and what is added to their output."""
