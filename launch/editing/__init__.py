"""Look after a memory: drop, prune, merge and branch, each into a new run directory."""
