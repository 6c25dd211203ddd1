"""Compare methods over orders and seeds, with intervals and significance."""
