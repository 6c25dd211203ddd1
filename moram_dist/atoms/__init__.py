"""The memory of rank-1 atoms: its arithmetic, the layers that use it, its files."""

from moram_dist.atoms.layer import (
    Memory,
    MemoryLinear,
    MemorySettings,
    by_input,
    give_memory,
    reads_source,
)
from moram_dist.atoms.placer import Placer
from moram_dist.atoms.recall import recall
from moram_dist.atoms.routing import Routing

__all__ = [
    "Memory",
    "MemoryLinear",
    "MemorySettings",
    "Placer",
    "Routing",
    "by_input",
    "give_memory",
    "reads_source",
    "recall",
]
