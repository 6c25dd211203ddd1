"""MTIL's data sets in the splits of ZSCL, which are torchvision's, for protocol ``full``.

Three data sets have no splits: 80 % of their files, drawn by torch's generator with seed 42, are
for training. Each data set may also be in parquet files or in folders ``train/<class>`` and
``test/<class>``; then these are its splits.

Source: Zheng et al. 2023 (ZSCL), arXiv:2303.06628.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from moram_dist.registry import InputError
from moram_dist.tasks.pictures.class_folders import pictures_by_folder
from moram_dist.tasks.pictures.folders import below, entries, pictures_in
from moram_dist.tasks.pictures.lists import read_split_list
from moram_dist.tasks.pictures.picture_set import Picture, PictureSet, complete
from moram_dist.tasks.pictures.published_sets import DIGITS
from moram_dist.tasks.pictures.shapes import find_list, read_name_lists, read_own_shape
from moram_dist.tasks.pictures.templates import CALTECH_NAMES, EUROSAT_NAMES
from moram_dist.tasks.pictures.torch_permutation import torch_permutation

SEED = 42


@dataclass(frozen=True, kw_only=True)
class FullSet:
    """How a data set is read, and its size as published."""

    read: Callable[[Path], PictureSet] = read_own_shape
    names: tuple[str, ...] = ()
    """Class names in label order, where they are not those of the files."""

    classes: int
    tests: int


def read_full_set(folder: Path, data: FullSet) -> PictureSet:
    """A data set in MTIL's splits, with ``_`` in class names replaced by spaces.

    Raises:
        InputError: the files are not in a form from which these splits follow.
    """
    found = data.read(folder)
    names = data.names or tuple(name.replace("_", " ") for name in found.names)
    return complete(found, names)


def _split(root: Path, classes: dict[str, list[str]]) -> PictureSet:
    """80 % of pictures by class for training, by the order of ``random_split`` in torch."""
    pictures = [
        Picture(f"{name}/{file}", label)
        for label, (name, files) in enumerate(classes.items())
        for file in files
    ]
    order = torch_permutation(len(pictures), SEED)
    trained = int(0.8 * len(pictures))
    return PictureSet(
        where=root,
        folder=root,
        names=tuple(classes),
        train=tuple(pictures[place] for place in order[:trained]),
        test=tuple(pictures[place] for place in order[trained:]),
    )


def _unsplit(*roots: str) -> Callable[[Path], PictureSet]:
    """A reader of class folders without splits, below a folder with one of these names."""

    def read(folder: Path) -> PictureSet:
        for place in below(folder, 2):
            if place.name in roots and not {"train", "test"} & set(entries(place)[0]):
                return _split(place, pictures_by_folder(place, without=("BACKGROUND_Google",)))
        return read_own_shape(folder)

    return read


def _scenes(folder: Path) -> PictureSet:
    """SUN397 in folders by first letter: ``a/abbey``, ``a/apartment_building/outdoor``."""
    for place in below(folder, 1):
        if "a" not in entries(place)[0]:
            continue
        classes: dict[str, list[str]] = {}
        for letter in entries(place)[0]:
            for scene in below(place / letter, 2):
                if files := pictures_in(scene):
                    classes[scene.relative_to(place).as_posix()] = files
        if not classes:
            raise InputError(f"{place}: no pictures in folders such as a/abbey")
        found = _split(place, dict(sorted(classes.items())))
        names = tuple(name.partition("/")[2] for name in found.names)
        note = "files are sorted before they are split; torchvision leaves that to the file system"
        return replace(found, names=names, notes=(note,))
    return read_own_shape(folder)


def _listed(rename: Callable[[str], str]) -> Callable[[Path], PictureSet]:
    """A reader of data sets whose published training split is train and val of CoOp's list."""

    def read(folder: Path) -> PictureSet:
        if found := read_name_lists(folder):
            return found
        path = find_list(folder)
        if path is None:
            return read_own_shape(folder)
        found = read_split_list(path, folder)
        names = tuple(map(rename, found.names))
        return replace(found, names=names, train=found.train + found.val, val=())

    return read


def _year_last(name: str) -> str:
    """``2012 Acura RL Sedan`` of CoOp's list as ``Acura RL Sedan 2012``."""
    year, _, model = name.partition(" ")
    return f"{model} {year}" if year.isdecimal() and model else name


FULL_SETS: dict[str, FullSet] = {
    "Aircraft": FullSet(classes=100, tests=3_333),
    "Caltech101": FullSet(
        read=_unsplit("101_ObjectCategories"), names=CALTECH_NAMES, classes=101, tests=1_736
    ),
    "CIFAR100": FullSet(classes=100, tests=10_000),
    "DTD": FullSet(classes=47, tests=1_880),
    "EuroSAT": FullSet(
        read=_unsplit("2750", "EuroSAT_RGB"), names=EUROSAT_NAMES, classes=10, tests=5_400
    ),
    "Flowers": FullSet(classes=102, tests=6_149),
    "Food": FullSet(classes=101, tests=25_250),
    "MNIST": FullSet(names=DIGITS, classes=10, tests=10_000),
    "OxfordPet": FullSet(read=_listed(str), classes=37, tests=3_669),
    "StanfordCars": FullSet(read=_listed(_year_last), classes=196, tests=8_041),
    "SUN397": FullSet(read=_scenes, classes=397, tests=21_751),
}
"""By MTIL's names, in order I."""
