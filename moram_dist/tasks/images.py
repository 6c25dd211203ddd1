"""The user's own tasks of pictures, from a folder or a YAML list.

A folder holds one subfolder per task, in any form of ``pictures.shapes``; the simplest is
``<task>/train/<class>/*.jpg`` and ``<task>/test/<class>/*.jpg``. A YAML list says more about each
task; see ``pictures.listing``. A task with the name of a published data set has that one's text.

Protocol ``default`` compares a picture with its own task's classes, ``all`` with those of all
tasks.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from moram_dist.registry import InputError
from moram_dist.tasks.names import task_name
from moram_dist.tasks.orders import choose_order
from moram_dist.tasks.pictures.folders import entries
from moram_dist.tasks.pictures.listing import Entry, read_listing
from moram_dist.tasks.pictures.make_tasks import (
    BATCH_SIZE,
    LEARNING_RATE,
    STEPS,
    Part,
    check_source,
    picture_tasks,
)
from moram_dist.tasks.pictures.picture_set import PictureSet, complete
from moram_dist.tasks.pictures.published_sets import known_set
from moram_dist.tasks.pictures.shapes import holds_no_data, read_shape
from moram_dist.tasks.task import BENCHMARKS, Benchmark, Source, Task

PROTOCOLS = ("default", "all")

EPOCHS = 20.0
"""Passes over a task's pictures: X-TAIL's 500 steps of 64 pictures are 20 over 16 shots of 100
classes. A task with more pictures gets as many steps as that, and so fewer passes."""

_LISTING = "tasks.yaml"


@BENCHMARKS.register("images")
def images(source: Source) -> Benchmark:
    """Read the user's own pictures, in alphabetical order (folder) or in the order listed (YAML).

    ``source.data_dir`` is the folder or the YAML file; a ``tasks.yaml`` in the folder determines
    what is read. All training pictures are used unless ``source.shots`` is given.

    Raises:
        InputError: no ``data_dir``, nothing in it, or a mistake in the list or in a task's files.
    """
    protocol, data_dir = check_source("images", source, PROTOCOLS)
    notes: list[str] = []
    listed = {entry.name: entry for entry in _entries(data_dir, notes)}
    order, names = choose_order(source.order, named={"default": tuple(listed)}, tasks=tuple(listed))
    parts = [_part(listed[name], notes) for name in names]
    tasks, ties = picture_tasks(
        parts,
        source,
        together=tuple(listed) if protocol == "all" else (),
        text_to_image=lambda own, so_far: 1 / own,
    )
    return Benchmark(
        name="images",
        order=order,
        protocol=protocol,
        tasks=tuple(_with_epochs(task, listed[task.name].epochs) for task in tasks),
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        notes=tuple(notes + ties),
    )


def _part(entry: Entry, notes: list[str]) -> Part:
    data = entry.read()
    notes += [f"{entry.name}: {note}" for note in data.notes]
    return Part(name=entry.name, data=data, texts=entry.texts_of(data))


def _with_epochs(task: Task, epochs: float | None) -> Task:
    return replace(task, epochs=epochs or min(EPOCHS, STEPS * BATCH_SIZE / len(task.train)))


def _entries(data_dir: Path, notes: list[str]) -> list[Entry]:
    if not os.path.exists(data_dir):  # unlike Path.exists, takes names that are too long
        raise InputError(f"--data_dir: no such file or folder: {data_dir}")
    if not data_dir.is_dir():
        return read_listing(data_dir)
    if (data_dir / _LISTING).is_file():
        return read_listing(data_dir / _LISTING)
    folders = entries(data_dir)[0]
    if {"train", "test"} <= set(folders):
        raise InputError(
            f"--data_dir: {data_dir} is one task; give the folder that holds a folder per task"
        )
    skipped = [name for name in folders if holds_no_data(data_dir / name)]
    notes += [f"{name}: no pictures, so it is no task" for name in skipped]
    found = [_entry(data_dir / name) for name in folders if name not in skipped]
    if not found:
        raise InputError(f"--data_dir: {data_dir} holds neither task folders nor {_LISTING}")
    return found


def _entry(folder: Path) -> Entry:
    name, known = task_name(folder.name, str(folder.parent)), known_set(folder.name)
    if known is None:
        return Entry(name=name, read=lambda: complete(read_shape(folder)))
    return Entry(
        name=name,
        read=partial(_read_known, folder, known.list_file, known.names),
        templates=(known.template,),
    )


def _read_known(folder: Path, list_file: str, names: tuple[str, ...]) -> PictureSet:
    """A data set of a known name. If it has other classes than that one, it keeps their names."""
    found = read_shape(folder, list_file=list_file)
    return complete(found, names if len(found.names) in (0, len(names)) else ())
