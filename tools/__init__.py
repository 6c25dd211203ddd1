"""Scripts that check or measure whole runs."""
