"""Benchmarks by name, and the plain data classes that describe them. No torch, no tokenizer."""

from moram_dist.tasks import demo, jsonl, long_sequence, standard_cl, superni, trace
from moram_dist.tasks.task import BENCHMARKS, Benchmark, Decoding, Example, Source, Task, digest

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Decoding",
    "Example",
    "Source",
    "Task",
    "demo",
    "digest",
    "jsonl",
    "long_sequence",
    "standard_cl",
    "superni",
    "trace",
]
