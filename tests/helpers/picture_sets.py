"""Make small data sets of pictures in the forms that users have; readers never open a picture."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

ANIMALS = ("cat", "dog")


def touch(folder: Path, names: Iterable[str]) -> None:
    """Empty files in place of pictures."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path: Path, content: object) -> Path:
    """A text, bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def split_records(names: Iterable[str], each: Mapping[str, int]) -> dict[str, list[list[object]]]:
    """The content of CoOp's list with so many pictures of each class in a split."""
    return {
        split: [
            [f"{name}/{split}_{index}.jpg", label, name]
            for label, name in enumerate(names)
            for index in range(count)
        ]
        for split, count in each.items()
    }


def coop(folder: Path, content: dict, *, list_file: str = "split.json", images: str = "") -> Path:
    """A data set with CoOp's list, pictures included."""
    for records in content.values():
        touch(folder / images, (record[0] for record in records))
    return write(folder / list_file, content)


def class_folders(folder: Path, names: Iterable[str] = ANIMALS, *, train: int = 3, test: int = 2):
    """A data set in folders of classes."""
    for name in names:
        for split, count in (("train", train), ("test", test)):
            touch(folder / split / name, (f"{index}.jpg" for index in range(count)))


def idx(folder: Path, split: str, labels: bytes, *, pictures: int | None = None, packed=False):
    """One split in idx files of 2 x 2 pixels."""
    count = len(labels) if pictures is None else pictures
    content = {
        f"{split}-images-idx3-ubyte": struct.pack(">4I", 2051, count, 2, 2) + bytes(4 * count),
        f"{split}-labels-idx1-ubyte": struct.pack(">2I", 2049, len(labels)) + labels,
    }
    for name, data in content.items():
        if packed:
            write(folder / f"{name}.gz", gzip.compress(data))
        else:
            write(folder / name, data)


def parquet(path: Path, labels: list, *, names=ANIMALS, column="label", image="image", **more):
    """A file as Hugging Face datasets writes it."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": b"x", "path": None}] * len(labels), kind)
    table = pa.table({image: pictures, column: pa.array(labels, pa.int64()), **more})
    if names:
        features = {image: {"_type": "Image"}, column: {"names": [*names], "_type": "ClassLabel"}}
        told = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": told})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
