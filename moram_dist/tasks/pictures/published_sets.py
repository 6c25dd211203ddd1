"""The data sets of X-TAIL and MTIL: where their files lie, and how their classes are put in words.

Source: RAIL (Xu et al. 2024, arXiv:2406.18868), whose class names are those in CoOp's lists, and
MoRAM (Lu et al. 2026, arXiv:2506.21035), whose code puts the same names into each data set's own
template without adapting one to the other. ``default`` repairs that; a table in docs/benchmarks.md
compares the protocols.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moram_dist.registry import InputError
from moram_dist.tasks.pictures.folders import entries, shortly
from moram_dist.tasks.pictures.lists import read_split_list
from moram_dist.tasks.pictures.picture_set import PictureSet, complete
from moram_dist.tasks.pictures.shapes import find_list, read_shape
from moram_dist.tasks.pictures.templates import PHOTO

DIGITS = tuple(
    f"{digit} - {word}"
    for digit, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    )
)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """What is known of a published data set, apart from its pictures."""

    folders: tuple[str, ...]
    """Names of its folder in the wild; case, ``-`` and ``_`` do not matter."""

    template: str
    """The text of a class; ``{}`` is its name."""

    published: str = ""
    """The template in MoRAM's code, where it is another."""

    rail_name: str = "{}"
    """The class name in RAIL's and MoRAM's prompts; ``{}`` is the name in the list."""

    list_file: str = ""
    """Name of CoOp's list, which defines the splits; empty if the data set's own files do."""

    names: tuple[str, ...] = ()
    """Class names in label order, where the files hold none or others."""

    classes: int
    tests: int
    """Number of test pictures, as published."""


IMAGE_SETS: dict[str, ImageSet] = {
    "aircraft": ImageSet(
        folders=("fgvc-aircraft-2013b", "fgvc_aircraft", "aircraft"),
        template="a photo of a {}, a type of aircraft.",
        classes=100,
        tests=3_333,
    ),
    "caltech101": ImageSet(
        folders=("caltech101", "caltech-101"),
        template=PHOTO,
        list_file="split_zhou_Caltech101.json",
        classes=100,
        tests=2_465,
    ),
    "dtd": ImageSet(
        folders=("dtd",),
        template="{} texture.",
        list_file="split_zhou_DescribableTextures.json",
        classes=47,
        tests=1_692,
    ),
    "eurosat": ImageSet(
        folders=("eurosat",),
        template="a centered satellite photo of {}.",
        published="a centered satellite photo of the {}.",
        rail_name="{} satellite location",
        list_file="split_zhou_EuroSAT.json",
        classes=10,
        tests=8_100,
    ),
    "oxford_flowers": ImageSet(
        folders=("flowers-102", "oxford_flowers", "flowers"),
        template="a photo of a {}, a type of flower.",
        list_file="split_zhou_OxfordFlowers.json",
        classes=102,
        tests=2_463,
    ),
    "food101": ImageSet(
        folders=("food-101", "food"),
        template="a photo of a {}, a type of food.",
        list_file="split_zhou_Food101.json",
        classes=101,
        tests=30_300,
    ),
    "mnist": ImageSet(
        folders=("MNIST",),
        template='a photo of the number: "{}".',
        rail_name='number: "{}"',
        names=DIGITS,
        classes=10,
        tests=10_000,
    ),
    "oxford_pets": ImageSet(
        folders=("oxford-iiit-pet", "oxford_pets", "OxfordPet"),
        template="a photo of a {}, a type of pet.",
        list_file="split_zhou_OxfordPets.json",
        classes=37,
        tests=3_669,
    ),
    "stanford_cars": ImageSet(
        folders=("stanford_cars",),
        template=PHOTO,
        list_file="split_zhou_StanfordCars.json",
        classes=196,
        tests=8_041,
    ),
    "sun397": ImageSet(
        folders=("SUN397",),
        template=PHOTO,
        list_file="split_zhou_SUN397.json",
        classes=397,
        tests=19_850,
    ),
    "cifar100": ImageSet(
        folders=("cifar100", "cifar-100-binary", "cifar-100-python"),
        template=PHOTO,
        classes=100,
        tests=10_000,
    ),
    "cifar10": ImageSet(
        folders=("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py"),
        template=PHOTO,
        classes=10,
        tests=10_000,
    ),
}
"""X-TAIL's ten in their order, then MTIL's eleventh, and one more that people have."""


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _default(data: ImageSet, name: str) -> str:
    return data.template.replace("{}", _spaced(name))


def _moram(data: ImageSet, name: str) -> str:
    return (data.published or data.template).replace("{}", data.rail_name.replace("{}", name))


def _rail(data: ImageSet, name: str) -> str:
    return PHOTO.replace("{}", _spaced(data.rail_name.replace("{}", name)))


PROMPTS: dict[str, Callable[[ImageSet, str], str]] = {
    "default": _default,
    "moram": _moram,
    "rail": _rail,
}
"""By protocol, the text of a class of a data set."""


def known_set(folder: str) -> ImageSet | None:
    """The published data set that a folder's name stands for; None if there is none."""
    plain = _plain(folder)
    return next(
        (
            data
            for key, data in IMAGE_SETS.items()
            if plain in (_plain(key), *map(_plain, data.folders))
        ),
        None,
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def find_folder(data_dir: Path, name: str, data: ImageSet) -> Path:
    """A data set's folder, by the first of its names that is there.

    Raises:
        InputError: there is none.
    """
    there = entries(data_dir)[0]
    for wanted in (*data.folders, *map(_plain, data.folders), _plain(name)):
        for found in there:
            if wanted in (found, _plain(found)):
                return data_dir / found
    raise InputError(
        f"{data_dir}: no folder for {name}, such as {' or '.join(data.folders)}; found: "
        f"{shortly(there)}"
    )


def read_image_set(data_dir: Path, name: str, data: ImageSet) -> PictureSet:
    """A published data set in the splits of X-TAIL: CoOp's list's, or else its own files'.

    Raises:
        InputError: no folder or no list, or a mistake in them.
    """
    folder = find_folder(data_dir, name, data)
    if not data.list_file:
        return complete(read_shape(folder), data.names)
    beside = data_dir / data.list_file
    path = find_list(folder, data.list_file) or (beside if beside.is_file() else None)
    if path is None:
        raise InputError(
            f"{folder}: {data.list_file} is missing; it is CoOp's list, which defines the splits"
        )
    return complete(read_split_list(path, folder), data.names)


def differences(name: str, data: ImageSet, found: PictureSet) -> list[str]:
    """Notes on a data set's files that a run must record, such as another size than published."""
    notes = [f"{name}: {note}" for note in found.notes]
    if (len(found.names), len(found.test)) != (data.classes, data.tests):
        notes.append(
            f"{name}: {len(found.names)} classes and {len(found.test)} test pictures; published "
            f"are {data.classes} and {data.tests:,}"
        )
    return notes
