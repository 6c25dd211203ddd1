"""From the bytes of a picture file to an RGB picture. PIL and numpy only.

Errors do not name the picture; ``data.picture_files`` does, which opens it.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from moram_dist.registry import InputError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by PIL's names, whatever the file's name ends in. PIL knows more, and for
some it starts another program."""

MOST_PIXELS = 89_478_485
"""Most pixels of a picture; PIL warns of more. A file of some kilobytes can claim billions."""

MOST_ELONGATED = 100
"""Most times that a picture may be as long as wide. Resized to a shorter edge of 224 pixels, a
picture of 1 x 1,000,000 would take 150 GB."""


def to_rgb(content: bytes) -> Image.Image:
    """Decode a picture file; of several frames, the first.

    EXIF rotation is ignored and transparency dropped. 16-bit grey is scaled to 8 bits.

    Raises:
        InputError: in no format of ``FORMATS``, too large or too elongated.
        Exception: whatever PIL raises on a damaged file, of any type.
    """
    if not content:
        raise InputError("is empty")
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError(f"not a picture, or damaged; read are {', '.join(FORMATS)}") from None
    check_size(*picture.size)
    return _eight_bits(picture).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel, without transparency that is one of its colours."""
    picture.load()
    # It changes no pixel's colour, but PIL converts it too, and warns of some forms of it.
    picture.info.pop("transparency", None)
    if picture.mode == "F":
        raise InputError("its pixels are floating-point numbers without a known range")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # PIL's own conversion cuts values off at 255. Like PIL for colours of 16 bits, keep the
        # high byte. A picture of mode I holds numbers of 32 bits, of which files use 16.
        values = np.asarray(picture).astype(np.int64).clip(0, 2**16 - 1)
        return Image.fromarray((values >> 8).astype(np.uint8))
    return picture


def check_size(width: int, height: int) -> None:
    """Raises InputError for a picture without pixels, with too many, or that is too elongated."""
    short, long = sorted((width, height))
    if short < 1:
        raise InputError(f"has no pixels: {width} x {height}")
    if width * height > MOST_PIXELS:
        raise InputError(f"{width} x {height} pixels; the most are {MOST_PIXELS:,}")
    if long > MOST_ELONGATED * short:
        raise InputError(f"{width} x {height} pixels, over {MOST_ELONGATED} times as long as wide")
