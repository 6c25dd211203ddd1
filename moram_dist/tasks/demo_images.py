"""The built-in demo of pictures: five small tasks for CLIP, without a download.

Its base model, which ships with the package, has seen some of the classes (``demo_pictures``), so
that a task begins above chance, is learned from a few pictures of each class, and can be forgotten.
A picture is a name until it is opened: then it is drawn (``moram_dist.data.drawn_pictures``).

Protocol ``default`` compares a picture with its own task's classes, ``all`` with those of all
tasks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moram_dist.registry import InputError, unknown
from moram_dist.tasks.demo_pictures import SUBJECTS, picture_name
from moram_dist.tasks.orders import choose_order
from moram_dist.tasks.pictures.make_tasks import RULES, Part, picture_tasks
from moram_dist.tasks.pictures.picture_set import Picture, PictureSet
from moram_dist.tasks.task import BENCHMARKS, Benchmark, Drawn, Source

PROTOCOLS = ("default", "all")
SHOTS = 32
TEST_PICTURES = 20
"""Of each class."""

STEPS = 60
BATCH_SIZE = 32
LEARNING_RATE = 3e-3

ORDERS = {
    "default": tuple(SUBJECTS),
    "reversed": tuple(reversed(SUBJECTS)),
    "alphabetical": tuple(sorted(SUBJECTS)),
}


@BENCHMARKS.register("demo_images")
def demo_images(source: Source) -> Benchmark:
    """Name the pictures of the demo.

    Raises:
        InputError: files were given, or the protocol, the order or a task is unknown.
    """
    if source.data_dir is not None:
        raise InputError("demo_images is drawn and takes no --data_dir")
    if source.splits:
        raise InputError("demo_images is drawn and takes no splits")
    protocol = source.protocol or PROTOCOLS[0]
    if protocol not in PROTOCOLS:
        raise unknown("protocol of demo_images", protocol, PROTOCOLS)
    order, names = choose_order(source.order, named=ORDERS, tasks=tuple(SUBJECTS))
    tasks, _ = picture_tasks(
        [_part(name, source) for name in names],
        source,
        together=tuple(SUBJECTS) if protocol == "all" else (),
        text_to_image=lambda own, so_far: 1 / own,
    )
    return Benchmark(
        name="demo_images",
        order=order,
        protocol=protocol,
        tasks=tasks,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
    )


def _part(name: str, source: Source) -> Part:
    subject = SUBJECTS[name]

    def pictures(split: str, count: int) -> tuple[Picture, ...]:
        return tuple(
            Picture(picture_name(name, each, split=split, seed=source.seed, index=index), label)
            for label, each in enumerate(subject.classes)
            for index in range(count)
        )

    return Part(
        name=name,
        data=PictureSet(
            where=Path("demo_images") / name,
            folder=Drawn(),
            names=subject.classes,
            train=pictures("train", source.shots or SHOTS),
            test=pictures("test", TEST_PICTURES),
        ),
        texts=tuple((subject.text.format(each),) for each in subject.classes),
        rules=replace(RULES, steps=STEPS),
    )
