"""Read data sets whose pictures are listed in text files: CoOp's JSON, FGVC's and torchvision's.

split*.json                          {"train": [[picture, label, class name], ...], "test": ...}
variants.txt, images_variant_*.txt   <picture> <class name with spaces>
labels/train1.txt                    <class>/<picture>, Describable Textures
annotations/trainval.txt             <class>_<number> ..., Oxford-IIIT Pets
meta/train.txt                       <class>/<picture without suffix>, Food-101
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moram_dist.reading import read_object, read_text
from moram_dist.registry import InputError
from moram_dist.tasks.names import class_name
from moram_dist.tasks.pictures.folders import below
from moram_dist.tasks.pictures.picture_set import Picture, PictureSet, check_present
from moram_dist.tasks.readers import kind_of
from moram_dist.terminal import quoted

_SPLITS = ("train", "val", "test")


def read_split_list(path: Path, folder: Path) -> PictureSet:
    """A data set by CoOp's list, which gives every picture's class and the class's name.

    Args:
        path: the list.
        folder: the data set's; pictures are in it or in a folder up to two levels below.

    Raises:
        InputError: malformed, a label without a name or with two, labels with gaps, or a picture
            that is not there.
    """
    content = read_object(path)
    names: dict[int, str] = {}
    splits: dict[str, tuple[Picture, ...]] = {}
    for split in _SPLITS:
        records = content.get(split, [] if split == "val" else None)
        if not isinstance(records, list):
            raise InputError(f"{path}: {split} must be a list of records, got {kind_of(records)}")
        splits[split] = tuple(
            _picture(record, names, f"{path}, {split} record {index}")
            for index, record in enumerate(records)
        )
    for label in range(len(names)):
        if label not in names:
            raise InputError(
                f"{path}: labels must count from 0 without gaps, but none of {len(names)} is "
                f"{label}"
            )
    root = _picture_folder(path, folder, splits["train"] or splits["test"])
    for split, pictures in splits.items():
        check_present(root, (picture.name for picture in pictures), f"{path}, {split}")
    ordered = tuple(names[label] for label in range(len(names)))
    return PictureSet(
        where=path,
        folder=root,
        names=ordered,
        train=splits["train"],
        test=splits["test"],
        val=splits["val"],
    )


def _picture(record: Any, names: dict[int, str], where: str) -> Picture:
    """A record's picture; its class name is added to ``names``."""
    if not isinstance(record, list) or len(record) != 3:
        raise InputError(f"{where}: expected [picture, label, class name], got {quoted(record)}")
    name, label, called = record
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: expected a picture's path, got {quoted(name)}")
    if type(label) is not int or label < 0:
        raise InputError(f"{where}: a label must be a whole number from 0, got {quoted(label)}")
    class_name(called, where)
    if names.setdefault(label, called) != called:
        raise InputError(
            f"{where}: label {label} is named {quoted(called)}, but {quoted(names[label])} before"
        )
    return Picture(name, label)


def _picture_folder(path: Path, folder: Path, pictures: tuple[Picture, ...]) -> Path:
    """The folder that holds a list's first picture."""
    if not pictures:
        raise InputError(f"{path}: lists no pictures")
    first = pictures[0].name
    for place in below(folder, 2):
        try:
            if (place / first).is_file():
                return place
        except (OSError, ValueError):  # a name that no file can have
            break
    raise InputError(f"{path}: no such picture: {quoted(first)}, in {folder} or in folders below")


def read_aircraft(data: Path) -> PictureSet:
    """FGVC Aircraft by variant, from the folder that holds ``variants.txt``.

    Raises:
        InputError: a list is missing or malformed, or a picture is not there.
    """
    names = tuple(line for _, line in _lines(data / "variants.txt"))
    labels = {name: label for label, name in enumerate(names)}
    splits = {}
    for split in ("train", "test"):
        path = data / f"images_variant_{split}.txt"
        pictures = []
        for number, line in _lines(path):
            picture, _, variant = line.partition(" ")
            if variant not in labels:
                raise InputError(
                    f"{path}, line {number}: variant {quoted(variant)} is not in variants.txt"
                )
            pictures.append(Picture(f"{picture}.jpg", labels[variant]))
        check_present(data / "images", (picture.name for picture in pictures), str(path))
        splits[split] = tuple(pictures)
    return PictureSet(
        where=data, folder=data / "images", names=names, train=splits["train"], test=splits["test"]
    )


@dataclass(frozen=True, kw_only=True)
class NameLists:
    """Files of picture names from which the class follows, as torchvision reads them."""

    train: str
    test: str
    parse: Callable[[str], tuple[str, str]]
    """Takes a line; returns the class and the picture's path below ``images``."""

    def read(self, folder: Path) -> PictureSet:
        """The data set in a folder. Labels count classes by alphabet.

        Raises:
            InputError: a list is missing, or a picture is not there.
        """
        parsed: dict[str, list[tuple[str, str]]] = {}
        for split, file in (("train", self.train), ("test", self.test)):
            parsed[split] = [self.parse(line) for _, line in _lines(folder / file)]
            check_present(
                folder / "images", (picture for _, picture in parsed[split]), str(folder / file)
            )
        names = sorted({name for pairs in parsed.values() for name, _ in pairs}, key=str.lower)
        labels = {name: label for label, name in enumerate(names)}
        splits = {
            split: tuple(Picture(picture, labels[name]) for name, picture in pairs)
            for split, pairs in parsed.items()
        }
        return PictureSet(
            where=folder / self.train,
            folder=folder / "images",
            names=tuple(names),
            train=splits["train"],
            test=splits["test"],
        )


def _lines(path: Path) -> list[tuple[int, str]]:
    """A text file's lines, stripped and numbered from 1, without blank ones and comments."""
    lines = enumerate(map(str.strip, read_text(path).split("\n")), start=1)
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _texture(line: str) -> tuple[str, str]:
    return line.partition("/")[0], line


def _pet(line: str) -> tuple[str, str]:
    name = line.split()[0]
    return name.rpartition("_")[0], f"{name}.jpg"


def _food(line: str) -> tuple[str, str]:
    return line.partition("/")[0], f"{line}.jpg"


NAME_LISTS = (
    NameLists(train="labels/train1.txt", test="labels/test1.txt", parse=_texture),
    NameLists(train="annotations/trainval.txt", test="annotations/test.txt", parse=_pet),
    NameLists(train="meta/train.txt", test="meta/test.txt", parse=_food),
)
"""Describable Textures, whose first of ten splits is meant, Oxford-IIIT Pets and Food-101."""
