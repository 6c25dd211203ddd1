"""Scores of single items: read from a predictions file, packed for a line, unpacked as numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.compare.bootstrap import Array
from eval.continual import MatrixEntry
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records

Items = str | list[float] | None
"""Scores of a test set's items, in its order: a string of 0 and 1 if each is 0 or 100, otherwise
numbers. None if the cell was not measured."""


def read_cell(path: Path, mean: MatrixEntry) -> tuple[Items, str]:
    """Item scores of a cell and the digest of its test set; None and empty if not measured."""
    if mean is None:
        return None, ""
    scores, digest = [], hashlib.sha256()
    for where, line in read_records(path):
        if not is_score(line.get("score")):
            raise InputError(
                f"{where}: no score yet; rerun the command that trained the run to resume it"
            )
        scores.append(float(line["score"]))
        question = [line.get(key) for key in ("id", "prompt", "references")]
        try:
            text = json.dumps(question, ensure_ascii=False)
        except RecursionError:
            raise InputError(f"{where}: nested too deeply") from None
        digest.update(text.encode(errors="surrogatepass"))
    if not scores or abs(sum(scores) / len(scores) - mean) > 1e-6:
        raise InputError(f"{path}: its scores do not have the mean {mean} that the matrix holds")
    return pack(scores), digest.hexdigest()[:16]


def pack(scores: Sequence[float]) -> Items:
    """Item scores, 0 to 100, in the shorter of both forms."""
    if set(scores) <= {0.0, 100.0}:
        return "".join("1" if score else "0" for score in scores)
    return list(scores)


def unpack(items: Items) -> Array | None:
    """Item scores, 0 to 100, as an array (N,); None if they were not measured."""
    if isinstance(items, str):
        digits = np.frombuffer(items.encode(), dtype=np.uint8)
        return np.where(digits == ord("1"), 100.0, 0.0)
    return None if items is None else np.array(items, dtype=np.float64)


def is_score(value: Any) -> bool:
    """Whether a JSON value is a number from 0 to 100; NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100
