"""From a picture to the pixels that a model reads: resize, crop, normalise. PIL and numpy only.

Both ways are torchvision's on PIL pictures, value for value: PIL's antialiased bicubic resize, and
a centred crop whose corner Python rounds, a half to the even number. Shapes: H = W = ``size``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

AREA = (0.9, 1.0)
"""Least and largest part of a picture's area in a training crop."""

ASPECT = (3 / 4, 4 / 3)
"""Least and largest width / height of a training crop."""

TRIES = 10
"""Drawn crops that may fall outside the picture before the largest centred one is taken."""


@dataclass(frozen=True)
class Pixels:
    """How a model wants its pictures: CLIP's way unless ``data.preprocessor`` reads another."""

    size: int = 224
    """Edge of the square that the model reads, in pixels."""

    edge: int = 224
    """Shorter edge to which a test picture is resized before the crop; at least ``size``."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Of red, green and blue, on a scale from 0 to 1."""

    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def for_test(self, picture: Image.Image) -> NDArray[np.float32]:
        """(3, H, W): the middle of an RGB picture."""
        short = min(picture.size)
        width, height = (
            self.edge if side == short else int(self.edge * side / short) for side in picture.size
        )
        left = round((width - self.size) / 2)
        top = round((height - self.size) / 2)
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        return self._normalised(resized.crop((left, top, left + self.size, top + self.size)))

    def for_training(self, picture: Image.Image, rng: np.random.Generator) -> NDArray[np.float32]:
        """(3, H, W): a random part of an RGB picture, resized to a square. No flip, no colours."""
        # Cropped first: with a box, PIL's resize would also look at pixels around it.
        part = picture.crop(crop_box(*picture.size, rng))
        return self._normalised(part.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def _normalised(self, picture: Image.Image) -> NDArray[np.float32]:
        pixels = np.asarray(picture).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        mean, std = (np.array(each, np.float32)[:, None, None] for each in (self.mean, self.std))
        return np.ascontiguousarray((pixels - mean) / std)


def at(*place: int) -> np.random.Generator:
    """The generator of a place, such as (seed, task, step, row), so that crops depend on it alone.

    Each number is at least 0.
    """
    # The length goes first, because numpy takes (1,) and (1, 0) for the same seed.
    return np.random.default_rng([len(place), *place])


def crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of a training crop of a picture, in pixels.

    Area and aspect are drawn, the aspect uniformly on a logarithmic scale, until the crop fits into
    the picture; after ``TRIES`` draws it is the largest centred one whose aspect is allowed.
    """

    def uniform(least: float, most: float) -> float:
        # random() is the one draw whose values numpy's releases are known to keep.
        return least + (most - least) * rng.random()

    for _ in range(TRIES):
        area = width * height * uniform(*AREA)
        aspect = math.exp(uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int((width - w + 1) * rng.random())
            top = int((height - h + 1) * rng.random())
            return left, top, left + w, top + h
    return _largest(width, height)


def _largest(width: int, height: int) -> tuple[int, int, int, int]:
    """The largest centred box whose aspect is allowed."""
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
