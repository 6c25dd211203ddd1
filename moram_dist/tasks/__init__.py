"""Benchmarks by name, and the plain data classes that describe them. No torch, no tokenizer."""

from moram_dist.tasks import (
    demo,
    demo_images,
    images,
    jsonl,
    long_sequence,
    mtil,
    standard_cl,
    superni,
    trace,
    xtail,
)
from moram_dist.tasks.task import BENCHMARKS, Benchmark, Decoding, Example, Source, Task, digest

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Decoding",
    "Example",
    "Source",
    "Task",
    "demo",
    "demo_images",
    "digest",
    "images",
    "jsonl",
    "long_sequence",
    "mtil",
    "standard_cl",
    "superni",
    "trace",
    "xtail",
]
