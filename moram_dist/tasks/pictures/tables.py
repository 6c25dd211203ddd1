"""Read labels from parquet files as Hugging Face ``datasets`` writes them, without their pictures.

A picture is in the column ``image``, or else in the first one of the same type: a struct of
``bytes`` and ``path``. Its class is a whole number in ``label``, ``fine_label`` or the only column
of class labels, whose names are in the schema's metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from moram_dist.registry import InputError
from moram_dist.tasks.pictures.class_folders import TEST, TRAIN, VAL
from moram_dist.tasks.pictures.folders import below, entries, shortly
from moram_dist.tasks.pictures.picture_set import Picture, PictureSet

VALIDATED = "tested on the validation split, as there is no test split"
"""Note about a data set in which the validation split stands in for the test split."""

_LABELS = ("label", "fine_label")

_BUFFER = 65_536
"""Bytes read at a time. Without it, one picture is read with all the others of its row group."""


def find_tables(folder: Path) -> dict[str, list[Path]]:
    """Parquet files of each split, by their own or their folder's name; empty if there are none."""
    found: dict[str, list[Path]] = {}
    for place in below(folder, 3):
        for name in entries(place)[1]:
            if name.endswith(".parquet"):
                split = _split(name) or _split(place.name) or ""
                found.setdefault(split, []).append(place / name)
    return found


def _split(name: str) -> str | None:
    word = name.lower().removesuffix(".parquet").partition("-")[0]
    for split, words in (("train", TRAIN), ("test", TEST), ("val", VAL)):
        if word in words:
            return split
    return None


def read_tables(folder: Path, found: dict[str, list[Path]]) -> PictureSet:
    """A data set in parquet files.

    Args:
        folder: pictures are named relative to it.
        found: files of each split. Where none are for ``test``, those for ``val`` take their place.

    Raises:
        InputError: a split is missing, a file is malformed or lacks pictures or labels, or files
            differ in their class names.
    """
    notes: tuple[str, ...] = ()
    if "test" not in found and "val" in found:
        found = {**found, "test": found["val"]}
        notes = (VALIDATED,)
    splits: dict[str, tuple[Picture, ...]] = {}
    names: tuple[str, ...] = ()
    for split in ("train", "test"):
        pictures: list[Picture] = []
        if split not in found:
            there = [path.name for paths in found.values() for path in paths]
            raise InputError(f"{folder}: no parquet file for {split}; found: {shortly(there)}")
        for path in found[split]:
            labels, own = _read(path)
            if names and own and own != names:
                raise InputError(f"{path}: has other class names than the files before")
            names = names or own
            inside = path.relative_to(folder).as_posix()
            pictures += [Picture(f"{inside}#{row}", label) for row, label in enumerate(labels)]
        splits[split] = tuple(pictures)
    return PictureSet(
        where=folder,
        folder=folder,
        names=names,
        notes=notes,
        train=splits["train"],
        test=splits["test"],
    )


def _read(path: Path) -> tuple[list[int], tuple[str, ...]]:
    """Labels and class names of a file."""
    pyarrow, parquet = _pyarrow(path)
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER) as file:
            schema = file.schema_arrow
            _check_pictures(file, path)
            features = _features(schema)
            column = _label_column(pyarrow, schema, features, path)
            labels = file.read([column]).column(column).to_pylist()
    except InputError:
        raise
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a parquet file, or a damaged one: {error}") from None
    for row, label in enumerate(labels):
        if type(label) is not int:
            raise InputError(f"{path}, row {row}: no label in column {column!r}")
    names = features.get(column, {}).get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: class names of {column!r} must be a list of texts")
    return labels, tuple(names)


def _pyarrow(path: Path) -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: parquet files need a package: pip install pyarrow") from None
    return pyarrow, parquet


def _check_pictures(file: Any, path: Path) -> None:
    """Raises InputError where no column can hold pictures, or the first has no bytes."""
    columns = [
        field.name
        for field in file.schema_arrow
        if {"bytes", "path"} <= {part.name for part in getattr(field.type, "fields", [])}
    ]
    if not columns:
        there = list(file.schema_arrow.names)
        raise InputError(
            f"{path}: no column of pictures, a struct of bytes and path; found: {shortly(there)}"
        )
    name = "image" if "image" in columns else columns[0]
    for batch in file.iter_batches(batch_size=1, columns=[f"{name}.bytes"]):
        if batch.column(0)[0].as_py()["bytes"] is None:
            raise InputError(
                f"{path}: pictures are only paths to other files; let datasets write their bytes "
                "into the file, as its push_to_hub does"
            )
        return


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Columns of class labels, by the metadata of ``datasets``."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told["info"]["features"].items()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: value
        for name, value in features
        if isinstance(value, dict) and value.get("_type") == "ClassLabel"
    }


def _label_column(pyarrow: ModuleType, schema: Any, features: dict[str, Any], path: Path) -> str:
    whole = [field.name for field in schema if pyarrow.types.is_integer(field.type)]
    labelled = [name for name in whole if name in features]
    for name in _LABELS:
        if name in whole:
            return name
    for columns in (labelled, whole):
        if len(columns) == 1:
            return columns[0]
    raise InputError(
        f"{path}: no column 'label' of whole numbers; found: {shortly(list(schema.names))}"
    )
