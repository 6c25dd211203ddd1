"""Continual-learning methods, one file each; imported by hand so that every name can be found."""

from moram_dist.methods import moram, sequential_lora, zero_shot
from moram_dist.methods.method import METHODS, Method

__all__ = ["METHODS", "Method", "moram", "sequential_lora", "zero_shot"]
