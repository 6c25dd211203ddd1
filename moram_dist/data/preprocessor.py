"""Read how a model wants its pictures, and refuse the steps that we would do otherwise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from moram_dist.data.pictures import Pixels
from moram_dist.reading import read_object
from moram_dist.registry import InputError
from moram_dist.terminal import quoted

FILE = "preprocessor_config.json"
WHOLE = "processor_config.json"
"""Holds the same under ``image_processor``: what transformers 5 writes for a whole processor."""

STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
"""The steps that are taken, as transformers calls them; a configuration may ask for no others."""

LARGEST = 4096
"""Largest edge in pixels."""

BICUBIC = 3


def read_pixels(folder: Path) -> Pixels:
    """What a model's folder says about pictures; CLIP's values for fields that are not given.

    Raises:
        InputError: no configuration, a malformed one, or one that asks for a step that we would do
            otherwise. One line with the file and the field.
    """
    path = folder / FILE
    if path.exists() or not (folder / WHOLE).exists():
        fields: Any = read_object(path)
    else:
        path = folder / WHOLE
        fields = read_object(path).get("image_processor")
        if not isinstance(fields, dict):
            raise InputError(f"{path}: expected an object 'image_processor'")
    try:
        return _pixels(fields)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _pixels(fields: dict[str, Any]) -> Pixels:
    _check_steps(fields)
    clip = Pixels()
    size = _edge(fields, "crop_size", ("height", "width"), clip.size)
    edge = _edge(fields, "size", ("shortest_edge",), clip.edge)
    if edge < size:
        raise InputError(f"size: {edge} is less than crop_size, {size}; pictures are not padded")
    std = _colours(fields, "image_std", clip.std)
    if min(std) <= 0:
        raise InputError("image_std: expected numbers over 0")
    return Pixels(size, edge, _colours(fields, "image_mean", clip.mean), std)


def _check_steps(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name.startswith("do_") and value is not None and value is not (name in STEPS):
            expected = str(name in STEPS).lower()
            raise InputError(f"{name}: pictures are read with {expected} only")
    if (resample := fields.get("resample", BICUBIC)) != BICUBIC:
        raise InputError(f"resample: {quoted(resample)}; only {BICUBIC}, bicubic, is known")
    scale = fields.get("rescale_factor", 1 / 255)
    if not _is_number(scale) or not math.isclose(scale, 1 / 255, rel_tol=1e-6):
        raise InputError(f"rescale_factor: {quoted(scale)}; only 1/255 is known")


def _edge(fields: dict[str, Any], name: str, keys: tuple[str, ...], default: int) -> int:
    """A square's edge: a number, or an object with the same number under each of ``keys``."""
    value = fields.get(name, default)
    numbers = [value]
    if isinstance(value, dict):
        given = {key: number for key, number in value.items() if number is not None}
        if set(given) != set(keys):
            raise InputError(f"{name}: expected {' and '.join(keys)}, got {quoted(value)}")
        numbers = list(given.values())
    if any(type(number) is not int or not 0 < number <= LARGEST for number in numbers):
        raise InputError(f"{name}: expected pixels from 1 to {LARGEST}, got {quoted(value)}")
    if len(set(numbers)) > 1:
        raise InputError(f"{name}: not a square: {quoted(value)}")
    edge: int = numbers[0]
    return edge


def _colours(
    fields: dict[str, Any], name: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    value = fields.get(name, default)
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_is_number, value)):
        raise InputError(f"{name}: expected three numbers, got {quoted(value)}")
    red, green, blue = value
    return red, green, blue


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e6  # NaN is not
