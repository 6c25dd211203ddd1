"""X-TAIL: ten image classification tasks, 16 pictures a class; all 1,100 classes compete in tests.

``data_dir`` holds one folder per data set, with CoOp's list of it (``split_zhou_*.json``) where the
data set has one; ``pictures.published_sets`` has the names. A cut-down copy of a data set works
too, with a note.

Source: Xu et al. 2024 (RAIL), arXiv:2406.18868, for the tasks. Protocol ``moram`` is the code of Lu
et al. 2026, arXiv:2506.21035; ``rail`` has RAIL's prompts; ``default`` repairs the prompts and
weighs the text-to-image loss by a task's own classes. A table in docs/benchmarks.md compares them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moram_dist.tasks.orders import choose_order
from moram_dist.tasks.pictures.make_tasks import (
    BATCH_SIZE,
    LEARNING_RATE,
    RULES,
    STEPS,
    Part,
    check_source,
    picture_tasks,
)
from moram_dist.tasks.pictures.published_sets import (
    IMAGE_SETS,
    PROMPTS,
    differences,
    read_image_set,
)
from moram_dist.tasks.task import BENCHMARKS, Benchmark, Source

ORDERS = {"default": tuple(IMAGE_SETS)[:10]}
SHOTS = 16


@BENCHMARKS.register("xtail")
def xtail(source: Source) -> Benchmark:
    """Read X-TAIL.

    Raises:
        InputError: no ``data_dir``, an unknown order, protocol or task, or a mistake in a data set.
    """
    protocol, data_dir = check_source("xtail", source, PROMPTS)
    every = ORDERS["default"]
    order, names = choose_order(source.order, named=ORDERS, tasks=every)
    notes: list[str] = []
    parts = [_part(data_dir, name, protocol, notes) for name in names]
    by_all = protocol == "moram"
    tasks, ties = picture_tasks(
        parts,
        source,
        together=every,
        text_to_image=lambda own, so_far: 1 / (so_far if by_all else own),
    )
    return Benchmark(
        name="xtail",
        order=order,
        protocol=protocol,
        tasks=tasks,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        notes=tuple(notes + ties),
    )


def _part(data_dir: Path, name: str, protocol: str, notes: list[str]) -> Part:
    data = IMAGE_SETS[name]
    found = read_image_set(data_dir, name, data)
    notes += differences(name, data, found)
    return Part(
        name=name,
        data=found,
        texts=tuple((PROMPTS[protocol](data, each),) for each in found.names),
        rules=replace(RULES, steps=STEPS),
        shots=SHOTS,
    )
