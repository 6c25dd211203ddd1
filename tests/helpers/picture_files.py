"""Picture files of every form that is read, written by hand or by PIL."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moram_dist.data.picture_files import open_picture
from moram_dist.registry import InputError


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture without any pattern."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def write_idx(path: Path, pixels: np.ndarray) -> None:
    """An idx file of grey pictures (N, H, W), packed if its name ends in .gz."""
    content = struct.pack(">HBB3I", 0, 8, 3, *pixels.shape) + pixels.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_cifar(path: Path, pixels: np.ndarray, label_bytes: int) -> None:
    """A binary file of CIFAR: pixels (N, 3, 32, 32), each after its label."""
    rows = [bytes([7] * label_bytes) + picture.tobytes() for picture in pixels]
    path.write_bytes(b"".join(rows))


def write_parquet(path: Path, pictures: list[bytes | None], *, rows_in_group: int = 3) -> None:
    """A parquet file as Hugging Face's datasets write it, with labels before the pictures."""
    import pyarrow as pa
    from pyarrow import parquet

    images = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(pictures)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"label": list(range(len(pictures))), "image": pa.array(images, kind)})
    parquet.write_table(table, path, row_group_size=rows_in_group)


def same(found: Image.Image, expected: Any) -> None:
    """Assert that a picture is RGB and has these pixels (H, W, 3)."""
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def refused(folder: Path, name: str) -> str:
    """Why a picture is refused: one line, here without the picture's name before it."""
    with pytest.raises(InputError) as error:
        open_picture(folder, name)
    said = str(error.value)
    assert "\n" not in said and said.startswith(str(folder / name)), said
    return said.removeprefix(f"{folder / name}: ")
