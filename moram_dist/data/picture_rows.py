"""Files that hold many pictures, one a row: idx, CIFAR's binary files, parquet.

Rows are counted from 0. Errors do not name the file; ``data.picture_files`` does, which opens it.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from PIL import Image

from moram_dist.data.picture_bytes import check_size, to_rgb
from moram_dist.registry import InputError

NAMED = re.compile(r"(.*(?:idx3-ubyte(?:\.gz)?|\.bin|\.parquet))#([0-9]{1,15})", re.DOTALL)
"""The name of a picture in such a file: ``<file>#<row>``."""

MOST_UNPACKED = 2**30
"""Most bytes of an unpacked ``.gz`` file, which is kept in memory."""

GROUPS = 2
"""Row groups of a parquet file that are kept in memory: threads that read rows in order are in two
at once."""

IDX_HEADER = struct.Struct(">HBB3I")
CIFAR_SHAPE = (3, 32, 32)


class Rows(Protocol):
    """The pictures of a file. Thread-safe."""

    @property
    def count(self) -> int:
        """Number of rows."""
        ...

    def picture(self, row: int) -> Image.Image:
        """Row ``row``, from 0 to ``count - 1``, in RGB. Raises as ``open_rows`` does."""
        ...

    def content(self, row: int) -> bytes:
        """The bytes of a row's pixels or picture file."""
        ...


def open_rows(path: Path) -> Rows:
    """Open a file by its name's end.

    Raises:
        InputError: it is not what its name says.
        Exception: whatever gzip or pyarrow raise on a damaged file.
    """
    if path.suffix == ".parquet":
        return ParquetRows(path)
    return _cifar(path) if path.suffix == ".bin" else _idx(path)


@dataclass(frozen=True)
class PlainRows:
    """Uncompressed pictures of one size, one after the other."""

    path: Path
    count: int
    start: int
    """Bytes before row 0."""

    label: int
    """Bytes before the pixels of each row."""

    shape: tuple[int, ...]
    """Of a row's pixels: (H, W) if grey, else (3, H, W)."""

    unpacked: bytes | None = None
    """The unpacked file; None: rows are read from the file itself."""

    def picture(self, row: int) -> Image.Image:
        """Row ``row`` in RGB."""
        pixels = np.frombuffer(self.content(row), np.uint8).reshape(self.shape)
        if pixels.ndim == 3:
            pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        return Image.fromarray(pixels).convert("RGB")

    def content(self, row: int) -> bytes:
        """The pixels of row ``row``."""
        size = math.prod(self.shape)
        first = self.start + row * (self.label + size) + self.label
        if self.unpacked is not None:
            return self.unpacked[first : first + size]
        # Opened for each row: no descriptor stays open, and a file that shrinks while it is mapped
        # into memory would kill the process.
        with open(self.path, "rb") as file:
            file.seek(first)
            return file.read(size)


def _idx(path: Path) -> PlainRows:
    """An idx file of grey pictures: a header of 16 bytes, then the rows."""
    packed = path.suffix == ".gz"
    with gzip.open(path) if packed else open(path, "rb") as file:
        header = file.read(IDX_HEADER.size)
        if len(header) < IDX_HEADER.size:
            raise InputError("shorter than the header of an idx file")
        zero, kind, dimensions, count, height, width = IDX_HEADER.unpack(header)
        if (zero, kind, dimensions) != (0, 8, 3):
            raise InputError("not an idx file of pictures: bytes in three dimensions")
        check_size(width, height)
        size = IDX_HEADER.size + count * height * width
        content = None
        if packed:
            if size > MOST_UNPACKED:
                raise InputError(f"{size:,} bytes unpacked, and {MOST_UNPACKED:,} are the most")
            content = header + file.read(size - len(header) + 1)
    found = path.stat().st_size if content is None else len(content)
    if found != size:
        more = "more" if found > size else "fewer"
        raise InputError(f"{more} bytes than the {size:,} of which its header speaks")
    return PlainRows(path, count, IDX_HEADER.size, 0, (height, width), content)


def _cifar(path: Path) -> PlainRows:
    """A binary file of CIFAR-10 (one byte for the label) or of CIFAR-100 (two)."""
    size, pixels = path.stat().st_size, math.prod(CIFAR_SHAPE)
    fits = [label for label in (1, 2) if size and size % (label + pixels) == 0]
    if not fits:
        raise InputError(
            f"{size:,} bytes; a row of CIFAR-10 has {1 + pixels:,}, of CIFAR-100 {2 + pixels:,}"
        )
    # Both only after three thousand rows; the files of CIFAR-100 are train.bin and test.bin.
    label = fits[-1] if path.stem in ("train", "test") else fits[0]
    return PlainRows(path, size // (label + pixels), 0, label, CIFAR_SHAPE)


class ParquetRows:
    """A parquet file as Hugging Face's datasets write it: pictures as ``{bytes, path}``."""

    def __init__(self, path: Path) -> None:
        """Reads the file's description only. Raises as ``open_rows`` does."""
        try:
            from pyarrow import parquet
        except ImportError:
            raise InputError("parquet files are read with pyarrow: pip install pyarrow") from None
        self._file = parquet.ParquetFile(path)
        self._column = _picture_column(self._file.schema_arrow)
        sizes = [
            self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)
        ]
        self._ends = np.cumsum(sizes)
        self.count = sum(sizes)
        self._group = lru_cache(maxsize=GROUPS)(self._read_group)
        self._lock = Lock()

    def picture(self, row: int) -> Image.Image:
        """Row ``row`` in RGB."""
        return to_rgb(self.content(row))

    def content(self, row: int) -> bytes:
        """The picture file of row ``row``."""
        index = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[index - 1]) if index else 0
        with self._lock:
            column = self._group(index)
        content = column[row - first]["bytes"].as_py()
        if content is None:
            raise InputError("the row holds no picture, at most the path of one")
        return content

    def _read_group(self, index: int) -> Any:
        return self._file.read_row_group(index, columns=[f"{self._column}.bytes"]).column(0)


def _picture_column(schema: Any) -> str:
    """The column ``image`` if it holds pictures, otherwise the first one that does."""
    from pyarrow import types

    def holds_pictures(kind: Any) -> bool:
        index = kind.get_field_index("bytes") if types.is_struct(kind) else -1
        return index >= 0 and (
            types.is_binary(kind.field(index).type) or types.is_large_binary(kind.field(index).type)
        )

    fitting: Sequence[str] = [field.name for field in schema if holds_pictures(field.type)]
    if not fitting:
        raise InputError("no column holds pictures as {bytes, path}")
    return "image" if "image" in fitting else fitting[0]
