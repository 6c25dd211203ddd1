"""Read labels from files that hold many pictures one after another: idx and CIFAR's binary ones.

    <split>-images-idx3-ubyte[.gz]   big-endian: 2051, pictures, rows, columns, then pixels
    <split>-labels-idx1-ubyte[.gz]   big-endian: 2049, labels, then one byte each
    CIFAR-100: {train,test}.bin      records of two label bytes, coarse and fine, and 3,072 pixels
    CIFAR-10: data_batch_N.bin       records of one label byte and 3,072 pixels

Pixels are not read here: a picture is named ``<file>#<row>`` and opened when a step needs it.
"""

from __future__ import annotations

import gzip
import mmap
import re
import struct
import zlib
from pathlib import Path

from moram_dist.reading import read_text
from moram_dist.registry import InputError
from moram_dist.tasks.pictures.folders import entries, shortly
from moram_dist.tasks.pictures.picture_set import Picture, PictureSet

_IDX = re.compile(r"(.*?)(train|t10k|test)-images-idx3-ubyte(\.gz)?$")
_PIXELS = 3 * 32 * 32


def has_idx(folder: Path) -> bool:
    """Whether a folder holds pictures in idx files."""
    return any(_IDX.match(name) for name in entries(folder)[1])


def read_idx(folder: Path) -> PictureSet:
    """A data set in idx files, packed or not; they hold no class names.

    Raises:
        InputError: a split is missing or there twice, or a file is damaged or has other labels
            than its pictures need.
    """
    found: dict[str, set[str]] = {"train": set(), "test": set()}
    names = entries(folder)[1]
    for name in names:
        if match := _IDX.match(name):
            split = "train" if match[2] == "train" else "test"
            if not (match[3] and name.removesuffix(".gz") in names):  # unpacked beside its archive
                found[split].add(name)
    for split, files in found.items():
        if len(files) != 1:
            raise InputError(
                f"{folder}: expected one file of {split} pictures in idx format; found: "
                f"{shortly(sorted(files) or names)}"
            )
    splits = {split: _idx_pictures(folder, files.pop()) for split, files in found.items()}
    return PictureSet(where=folder, folder=folder, train=splits["train"], test=splits["test"])


def _idx_pictures(folder: Path, name: str) -> tuple[Picture, ...]:
    count, rows, columns = _idx_header(folder / name, 2051, 4)
    size = (folder / name).stat().st_size
    if not name.endswith(".gz") and size != 16 + count * rows * columns:
        raise InputError(
            f"{folder / name}: {count} pictures of {rows} x {columns} need "
            f"{16 + count * rows * columns} bytes, but the file has {size}"
        )
    plain = name.removesuffix(".gz").replace("images-idx3", "labels-idx1")
    packed = folder / f"{plain}.gz"
    path = packed if packed.exists() and not (folder / plain).exists() else folder / plain
    (labels,) = _idx_header(path, 2049, 2)
    if labels != count:
        raise InputError(f"{path}: {labels} labels, but {name} holds {count} pictures")
    values = _head(path, 8 + count)[8:]
    if len(values) != count:
        raise InputError(f"{path}: ends after {len(values)} of {count} labels")
    return tuple(Picture(f"{name}#{row}", label) for row, label in enumerate(values))


def _idx_header(path: Path, kind: int, length: int) -> tuple[int, ...]:
    """The numbers after the first of an idx file's header."""
    head = _head(path, 4 * length)
    if len(head) < 4 * length or struct.unpack(">I", head[:4]) != (kind,):
        raise InputError(f"{path}: not an idx file of {'labels' if length == 2 else 'pictures'}")
    return struct.unpack(f">{length - 1}I", head[4:])


def _head(path: Path, size: int) -> bytes:
    """A file's first bytes, unpacked."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def has_cifar(folder: Path) -> bool:
    """Whether a folder holds the binary version of CIFAR-10 or CIFAR-100."""
    return bool({"fine_label_names.txt", "batches.meta.txt"} & set(entries(folder)[1]))


def read_cifar(folder: Path) -> PictureSet:
    """CIFAR-10 or CIFAR-100, the latter by its fine labels.

    Raises:
        InputError: a file is missing, empty or not of whole records.
    """
    files = entries(folder)[1]
    if "fine_label_names.txt" in files:
        names_file, at, train, test = "fine_label_names.txt", 1, ["train.bin"], ["test.bin"]
    else:
        names_file, at, test = "batches.meta.txt", 0, ["test_batch.bin"]
        train = [name for name in files if re.fullmatch(r"data_batch_\d+\.bin", name)]
        if not train:
            raise InputError(f"{folder}: no data_batch_1.bin; found: {shortly(files)}")
    names = tuple(filter(None, map(str.strip, read_text(folder / names_file).split("\n"))))
    return PictureSet(
        where=folder,
        folder=folder,
        names=names,
        train=tuple(one for name in train for one in _records(folder / name, at)),
        test=tuple(one for name in test for one in _records(folder / name, at)),
    )


def _records(path: Path, at: int) -> list[Picture]:
    """Pictures of a file of records; ``at`` is the place of the label's byte."""
    size = at + 1 + _PIXELS
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if len(data) % size:
                raise InputError(f"{path}: {len(data)} bytes are not whole records of {size}")
            labels = data[at::size]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # the latter for an empty file
        raise InputError(f"{path}: cannot be read: {error}") from None
    return [Picture(f"{path.name}#{row}", label) for row, label in enumerate(labels)]
