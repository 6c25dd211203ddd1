"""Read data sets with one folder of pictures per class, split into train and test or not."""

from __future__ import annotations

import os
from pathlib import Path

from moram_dist.registry import InputError
from moram_dist.tasks.pictures.folders import entries, pictures_in, shortly
from moram_dist.tasks.pictures.picture_set import Picture, PictureSet

TRAIN = ("train", "training")
TEST = ("test", "testing")
VAL = ("val", "valid", "validation")


def split_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder with one of these names, in whatever case; None if there is none."""
    there = {name.lower(): name for name in reversed(entries(folder)[0])}
    return next((folder / there[name] for name in names if name in there), None)


def read_class_folders(train: Path, test: Path) -> PictureSet:
    """A data set from two folders, each with a subfolder per class; labels count by alphabet.

    Raises:
        InputError: a folder has no subfolders, or a class no pictures.
    """
    splits = {"train": _by_class(train), "test": _by_class(test)}
    names = sorted({name for classes in splits.values() for name in classes})
    labels = {name: label for label, name in enumerate(names)}
    root = Path(os.path.commonpath([train.absolute(), test.absolute()]))
    if train.absolute() == test.absolute():
        raise InputError(f"{train}: train and test are one folder")
    parts = {"train": train.absolute(), "test": test.absolute()}
    pictures = {
        split: tuple(
            Picture((parts[split] / name / file).relative_to(root).as_posix(), labels[name])
            for name, files in classes.items()
            for file in files
        )
        for split, classes in splits.items()
    }
    return PictureSet(
        where=train, folder=root, names=tuple(names), train=pictures["train"], test=pictures["test"]
    )


def _by_class(folder: Path) -> dict[str, list[str]]:
    """Picture files of each class."""
    folders, files = entries(folder)
    if not folders:
        raise InputError(
            f"{folder}: expected one folder of pictures per class; found: {shortly(files)}"
        )
    found = {name: pictures_in(folder / name) for name in folders}
    for name, pictures in found.items():
        if not pictures:
            inside, others = entries(folder / name)
            raise InputError(
                f"{folder / name}: class without pictures; found: {shortly(inside + others)}"
            )
    return found


def pictures_by_folder(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Pictures of a data set without splits: files by the subfolder that names their class.

    Raises:
        InputError: no subfolders, or one without pictures.
    """
    return {name: files for name, files in _by_class(folder).items() if name not in without}
