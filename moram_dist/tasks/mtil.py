"""MTIL: eleven image classification tasks; a picture is compared with its own task's classes.

``data_dir`` holds one folder per data set. Protocol ``default`` reads CoOp's lists as X-TAIL does,
and CIFAR-100, 5 pictures a class: the lineage of RAIL and CoDyRA, whose settings are X-TAIL's.
``full`` is ZSCL's: all pictures of torchvision's splits, 1,000 steps with label smoothing, the loss
of finding a picture's text alone, and in tests the mean of several texts a class.

Source: Zheng et al. 2023 (ZSCL), arXiv:2303.06628, for tasks, orders and ``full``; Yu et al. 2024
(MoE-Adapters), arXiv:2403.11549, for 5 shots.
"""

from __future__ import annotations

from collections.abc import Callable
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
from moram_dist.tasks.pictures.mtil_splits import FULL_SETS, read_full_set
from moram_dist.tasks.pictures.published_sets import (
    IMAGE_SETS,
    PROMPTS,
    differences,
    find_folder,
    read_image_set,
)
from moram_dist.tasks.pictures.templates import ENSEMBLES
from moram_dist.tasks.task import BENCHMARKS, Benchmark, Source

SHOTS = 5
FULL_STEPS = 1_000
FULL_SMOOTHING = 0.2

SETS = {
    "Aircraft": "aircraft",
    "Caltech101": "caltech101",
    "CIFAR100": "cifar100",
    "DTD": "dtd",
    "EuroSAT": "eurosat",
    "Flowers": "oxford_flowers",
    "Food": "food101",
    "MNIST": "mnist",
    "OxfordPet": "oxford_pets",
    "StanfordCars": "stanford_cars",
    "SUN397": "sun397",
}
"""The data set of each task, by its name in ``IMAGE_SETS``."""

ORDERS = {
    "1": tuple(SETS),
    "2": (
        "StanfordCars",
        "Food",
        "MNIST",
        "OxfordPet",
        "Flowers",
        "SUN397",
        "Aircraft",
        "Caltech101",
        "DTD",
        "EuroSAT",
        "CIFAR100",
    ),
}


def _few_shot(data_dir: Path, name: str, notes: list[str]) -> Part:
    data = IMAGE_SETS[SETS[name]]
    found = read_image_set(data_dir, name, data)
    notes += differences(name, data, found)
    return Part(
        name=name,
        data=found,
        texts=tuple((PROMPTS["default"](data, each),) for each in found.names),
        rules=replace(RULES, steps=STEPS),
        shots=SHOTS,
    )


def _full(data_dir: Path, name: str, notes: list[str]) -> Part:
    known, data = IMAGE_SETS[SETS[name]], FULL_SETS[name]
    found = read_full_set(find_folder(data_dir, name, known), data)
    notes += differences(name, replace(known, classes=data.classes, tests=data.tests), found)
    return Part(
        name=name,
        data=found,
        texts=tuple(
            tuple(text.replace("{}", each) for text in ENSEMBLES[name]) for each in found.names
        ),
        rules=replace(RULES, steps=FULL_STEPS, label_smoothing=FULL_SMOOTHING),
    )


PROTOCOLS: dict[str, Callable[[Path, str, list[str]], Part]] = {
    "default": _few_shot,
    "full": _full,
}


@BENCHMARKS.register("mtil")
def mtil(source: Source) -> Benchmark:
    """Read MTIL.

    Raises:
        InputError: no ``data_dir``, an unknown order, protocol or task, or a mistake in a data set.
    """
    protocol, data_dir = check_source("mtil", source, PROTOCOLS)
    order, names = choose_order(source.order, named=ORDERS, tasks=tuple(SETS))
    notes: list[str] = []
    parts = [PROTOCOLS[protocol](data_dir, name, notes) for name in names]
    tasks, ties = picture_tasks(
        parts,
        source,
        text_to_image=lambda own, so_far: 0.0 if protocol == "full" else 1 / own,
    )
    return Benchmark(
        name="mtil",
        order=order,
        protocol=protocol,
        tasks=tasks,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        notes=tuple(notes + ties),
    )
