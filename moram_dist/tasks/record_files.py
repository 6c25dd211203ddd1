"""Read records from a file of any type, which the end of its name tells.

    .json, .jsonl   ``tasks.readers``
    .csv            a header with the names of the fields, then one record per row; all are texts
    .parquet        one record per row

Python's own csv serves better than the library ``datasets``, whose rows move by a column if each
has one value more than the header, and whose answers ``NA`` and ``None`` are missing values.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moram_dist.reading import read_text
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records

Records = Iterator[tuple[str, dict[str, Any]]]
"""Records, each with its place for messages."""

FILE_TYPES = (".json", ".jsonl", ".csv", ".parquet", ".json.gz", ".jsonl.gz", ".csv.gz")

ROWS_AT_ONCE = 1000


def read_file(path: Path) -> Records:
    """The records of a file.

    Raises:
        InputError: the file is missing, unreadable, malformed or of another type.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        return _csv(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    if Path(name).suffix in (".json", ".jsonl"):
        return read_records(path)
    raise InputError(f"{path}: expected a name that ends in {in_words(FILE_TYPES)}")


def in_words(names: Sequence[str], last: str = "or") -> str:
    """``a, b or c``, of at least two names."""
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def _csv(path: Path) -> Records:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # by default a field has 128 KiB at most
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next((row for row in rows if row), [])
        if len({*header}) < len(header):
            raise InputError(f"{path}: its header names a field twice: {', '.join(header)}")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if row and len(row) != len(header):
                raise InputError(
                    f"{where}: {len(row)} values, but the header has {len(header)}; quote values "
                    'that hold commas: "a, b"'
                )
            if row:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: malformed CSV: {error}") from None


def _parquet(path: Path) -> Records:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: is read with pyarrow: pip install 'moram-dist[data]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(ROWS_AT_ONCE) for row in batch.to_pylist())
            for index, row in enumerate(rows):
                yield f"{path}, record {index}", row
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's are ValueErrors
        said = " ".join(str(error).split())
        raise InputError(f"{path}: no parquet file that can be read: {said}") from None
