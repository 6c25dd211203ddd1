"""Find out in which form a folder holds a data set of pictures, and read it.

The forms that are told apart, in this order: CoOp's list, FGVC Aircraft, torchvision's lists, CIFAR
in binary form, idx files, parquet files, and folders of classes. Pickles and MATLAB files are not
read: loading a pickle runs whatever code its author put into it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moram_dist.registry import InputError
from moram_dist.tasks.pictures.class_folders import (
    TEST,
    TRAIN,
    VAL,
    read_class_folders,
    split_folder,
)
from moram_dist.tasks.pictures.folders import PICTURES, below, entries, shortly
from moram_dist.tasks.pictures.lists import NAME_LISTS, read_aircraft, read_split_list
from moram_dist.tasks.pictures.picture_set import PictureSet
from moram_dist.tasks.pictures.rows import has_cifar, has_idx, read_cifar, read_idx
from moram_dist.tasks.pictures.tables import VALIDATED, find_tables, read_tables

_DEPTH = 2
"""Archives unpack into a folder of their own, often below one that a person made."""


def read_shape(folder: Path, *, list_file: str = "") -> PictureSet:
    """The data set in a folder, whatever its form.

    Args:
        folder: the data set's.
        list_file: name of CoOp's list for this data set, where it has one.

    Raises:
        InputError: no known form, or a mistake in its files.
    """
    path = find_list(folder, list_file)
    return read_split_list(path, folder) if path else read_own_shape(folder)


def read_own_shape(folder: Path) -> PictureSet:
    """The data set in a folder, in its own splits: CoOp's list does not count.

    Raises:
        InputError: no known form, or a mistake in its files.
    """
    if found := read_name_lists(folder):
        return found
    for place in below(folder, _DEPTH):
        if has_cifar(place):
            return read_cifar(place)
        if has_idx(place):
            return read_idx(place)
    if tables := find_tables(folder):
        return read_tables(folder, tables)
    for place in below(folder, 1):
        train, test, val = (split_folder(place, names) for names in (TRAIN, TEST, VAL))
        if train and test:
            return read_class_folders(train, test)
        if train and val:
            return replace(read_class_folders(train, val), notes=(VALIDATED,))
    raise _refusal(folder)


def find_list(folder: Path, list_file: str = "") -> Path | None:
    """CoOp's list in a folder; None if there is none.

    Raises:
        InputError: there are several, none of which is ``list_file``.
    """
    files = entries(folder)[1]
    if list_file in files:
        return folder / list_file
    lists = [name for name in files if name.startswith("split") and name.endswith(".json")]
    if len(lists) > 1:
        raise InputError(f"{folder}: expected one split*.json; found: {shortly(lists)}")
    return folder / lists[0] if lists else None


def read_name_lists(folder: Path) -> PictureSet | None:
    """FGVC Aircraft or a data set with torchvision's lists; None if the folder holds neither.

    Raises:
        InputError: a mistake in its files.
    """
    for place in below(folder, _DEPTH):
        if (place / "variants.txt").is_file():
            return read_aircraft(place)
        for lists in NAME_LISTS:
            if (place / lists.train).is_file() and (place / "images").is_dir():
                return lists.read(place)
    return None


def holds_no_data(folder: Path) -> bool:
    """Whether a folder cannot be a data set: no folders, no single list, no file of pictures."""
    folders, files = entries(folder)
    lists = [name for name in files if name.startswith("split") and name.endswith(".json")]
    kinds = (*PICTURES, ".parquet", ".bin", ".arrow", ".pkl", ".pickle", ".mat")
    return not (
        folders
        or len(lists) == 1
        or has_idx(folder)
        or any(name.lower().endswith(kinds) for name in files)
        or _pickles(files)
    )


def _pickles(files: list[str]) -> list[str]:
    """Files that are pickles by their names: CIFAR's Python version has no suffixes."""
    cifar = {"train", "test", "meta", "batches.meta", "test_batch"}
    return [
        name
        for name in files
        if name in cifar
        or name.endswith((".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz"))
        or (name.startswith("data_batch_") and "." not in name)
    ]


def _refusal(folder: Path) -> InputError:
    """The error for a folder without a known form, with what to do about what is there."""
    for place in below(folder, _DEPTH):
        folders, files = entries(place)
        if found := _pickles(files):
            return InputError(
                f"{place / found[0]}: a pickle is not read, as loading it would run code; for "
                "CIFAR take the binary version, for other data parquet or folders of pictures"
            )
        if found := [name for name in files if name.endswith(".arrow")]:
            return InputError(
                f"{place / found[0]}: Arrow files of save_to_disk are not read; write parquet: "
                "datasets.load_from_disk(FOLDER)['train'].to_parquet('train.parquet'), and test"
            )
        if found := [name for name in files if name.endswith(".mat")]:
            return InputError(
                f"{place / found[0]}: MATLAB files are not read; use parquet or folders "
                "train/<class> and test/<class>, or CoOp's split_zhou_*.json for its splits"
            )
    folders, files = entries(folder)
    return InputError(
        f"{folder}: no pictures in a known form, such as train/<class>/*.jpg and "
        f"test/<class>/*.jpg, split*.json, idx or parquet; found: {shortly(folders + files)}"
    )
