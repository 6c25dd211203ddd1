"""The memory of rank-1 atoms: its arithmetic, the layer that holds it, its files."""

from moram_dist.atoms.layer import MemoryLinear, Routing
from moram_dist.atoms.recall import recall

__all__ = ["MemoryLinear", "Routing", "recall"]
