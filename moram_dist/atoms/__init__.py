"""The memory of rank-1 atoms: its arithmetic, the layer that holds it, its files."""

from moram_dist.atoms.layer import MemoryLinear, Together, put_together
from moram_dist.atoms.placer import Placer
from moram_dist.atoms.recall import recall
from moram_dist.atoms.routing import Routing

__all__ = ["MemoryLinear", "Placer", "Routing", "Together", "put_together", "recall"]
