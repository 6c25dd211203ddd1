"""A data set of pictures as plain data: the names of its pictures and classes, no pixels.

Readers of every file format create a ``PictureSet``; ``complete`` then checks what all of them have
in common, so that mistakes are reported before any work starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from moram_dist.registry import InputError
from moram_dist.tasks.names import class_name
from moram_dist.tasks.task import Drawn
from moram_dist.terminal import quoted

_ROW = re.compile(r"#[0-9]+$")


class Picture(NamedTuple):
    """One picture: its name, see ``PictureSet.folder``, and its class."""

    name: str
    label: int


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """One data set, split into pictures to train on and to test."""

    where: Path
    """The list or folder that was read, for messages."""

    folder: Path | Drawn
    """A picture's name is its path relative to this folder, or ``<file>#<row>`` inside a file that
    holds many. Rows count from 0. A drawn picture's name says what is drawn."""

    names: tuple[str, ...] = ()
    """Class names in label order; empty if the files hold none."""

    train: tuple[Picture, ...]
    test: tuple[Picture, ...]
    val: tuple[Picture, ...] = ()
    """Read only where a protocol trains on it, too."""

    notes: tuple[str, ...] = ()
    """What a run should record about the files, such as a missing test split."""


Names = Sequence[str] | Mapping[str, str]
"""Class names in label order, or new names by those in the files."""


def complete(found: PictureSet, names: Names = ()) -> PictureSet:
    """A set with its class names, checked.

    Args:
        found: what a reader made of the files.
        names: the names to use; those of the files where empty.

    Raises:
        InputError: a class without a name or without training pictures, a name given twice, no
            test pictures, or a picture whose name cannot be stored.
    """
    named = replace(found, names=_names(found, names))
    if not named.test:
        raise InputError(f"{named.where}: holds no test pictures")
    trained: set[int] = set()
    for split in ("train", "test"):
        for index, (name, label) in enumerate(getattr(named, split)):
            if not _is_text(name):
                raise InputError(f"{named.where}: the file name {quoted(name)} is not UTF-8")
            if not 0 <= label < len(named.names):
                raise InputError(
                    f"{named.where}: {split} picture {index} has label {label}, which has no name; "
                    f"there are {len(named.names)} names"
                )
            if split == "train":
                trained.add(label)
    for label, name in enumerate(named.names):
        if label not in trained:
            raise InputError(
                f"{named.where}: class {label}, {quoted(name)}, has no training pictures"
            )
    return named


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8; Python reads other bytes as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(found: PictureSet, names: Names) -> tuple[str, ...]:
    if isinstance(names, Mapping):
        for name in names:
            if name not in found.names:
                raise InputError(f"{found.where}: no class {quoted(name)} that could be renamed")
        names = [names.get(name, name) for name in found.names]
    elif names and found.names and len(names) != len(found.names):
        raise InputError(
            f"{found.where}: {len(found.names)} classes, but {len(names)} names for them"
        )
    chosen = tuple(class_name(name, str(found.where)) for name in names or found.names)
    if not chosen:
        raise InputError(
            f"{found.where}: holds no class names; list them as 'classes' in tasks.yaml"
        )
    if len(set(chosen)) < len(chosen):
        twice = next(name for name in chosen if chosen.count(name) > 1)
        raise InputError(f"{found.where}: two classes are named {quoted(twice)}")
    return chosen


def check_present(folder: Path, names: Iterable[str], where: str) -> None:
    """Check that pictures exist, with one listing of each folder: there may be 90,000 of them.

    Args:
        folder: where the names start.
        names: paths of single files, relative to the folder.
        where: the list that names them, for messages.

    Raises:
        InputError: the first name that is no file below the folder.
    """
    listed: dict[str, set[str]] = {}
    for index, name in enumerate(names):
        parent, _, file = name.rpartition("/")
        if _ROW.search(name) or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise InputError(f"{where}, record {index}: no picture can be named {quoted(name)}")
        if parent not in listed:
            try:
                listed[parent] = set(os.listdir(folder / parent))
            except OSError:
                listed[parent] = set()
        if file not in listed[parent]:
            raise InputError(
                f"{where}, record {index}: no such picture: {quoted(name)} in {folder}"
            )
