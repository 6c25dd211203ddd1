"""Draw one picture of a class of the demo: what the class leaves open is drawn at random.

PIL and Python's random only, whose sequences are known to stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from PIL import Image, ImageDraw, ImageFilter

SIZE = 64
"""Edge of a picture in pixels."""

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "red": (215, 40, 40),
        "green": (45, 165, 60),
        "blue": (45, 80, 215),
        "yellow": (235, 215, 50),
        "purple": (130, 50, 165),
        "orange": (240, 140, 30),
        "pink": (245, 150, 190),
        "brown": (125, 75, 40),
    }
)

_STROKES: Mapping[str, tuple[Point, ...]] = MappingProxyType(
    {
        "one": ((0.2, 0.3), (0.6, 0), (0.6, 1)),
        "two": ((0, 0.2), (0.5, 0), (1, 0.25), (0, 1), (1, 1)),
        "three": ((0, 0), (1, 0), (0.4, 0.45), (1, 0.7), (0.5, 1), (0, 0.9)),
        "four": ((0.8, 1), (0.8, 0), (0, 0.65), (1, 0.65)),
        "five": ((1, 0), (0.1, 0), (0, 0.45), (0.8, 0.45), (1, 0.75), (0.6, 1), (0, 0.95)),
        "six": ((0.8, 0), (0.1, 0.5), (0.1, 1), (0.9, 1), (0.9, 0.55), (0.1, 0.6)),
        "seven": ((0, 0), (1, 0), (0.4, 1)),
        "eight": ((0.9, 0.2), (0.5, 0), (0.1, 0.2), (0.9, 0.75), (0.5, 1), (0.1, 0.75), (0.9, 0.2)),
    }
)
"""The corners of a digit in a square from (0, 0), its upper left corner, to (1, 1)."""

NUMBERS = ("one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Paper:
    """A picture that is drawn on."""

    picture: Image.Image
    pen: ImageDraw.ImageDraw
    grey: Colour

    @classmethod
    def of(cls, rng: Random) -> Paper:
        """Empty, in a light or dark grey."""
        grey = (rng.choice((rng.randint(5, 60), rng.randint(190, 250))),) * 3
        picture = Image.new("RGB", (SIZE, SIZE), grey)
        return cls(picture, ImageDraw.Draw(picture), grey)


def shape(label: str, rng: Random, colour: str | None = None) -> Image.Image:
    """A shape of some colour, size and tilt, on grey paper."""
    paper = Paper.of(rng)
    fill = _shade(colour or rng.choice(list(COLOURS)), rng)
    radius = rng.uniform(0.3, 0.42) * SIZE
    middle = tuple(SIZE / 2 + rng.uniform(-1, 1) * (SIZE / 2 - radius) for _ in "xy")
    tilt = rng.uniform(-0.25, 0.25)

    def at(points: list[Point]) -> list[Point]:
        """Points of the unit circle, tilted and put into place."""
        cos, sin = radius * math.cos(tilt), radius * math.sin(tilt)
        return [(middle[0] + cos * x - sin * y, middle[1] + sin * x + cos * y) for x, y in points]

    if label in ("circle", "ring", "moon"):
        paper.pen.polygon(at(_arc(1, 0, 0)), fill=fill)
        if label == "ring":
            paper.pen.polygon(at(_arc(0.55, 0, 0)), fill=paper.grey)
        if label == "moon":
            paper.pen.polygon(at(_arc(0.85, 0.5, -0.1)), fill=paper.grey)
    else:
        paper.pen.polygon(at(_OUTLINES[label]), fill=fill)
    return _aged(paper.picture, rng)


def stripes(label: str, rng: Random) -> Image.Image:
    """Lines over the whole picture, light on dark or dark on light."""
    paper = Paper.of(rng)
    ink = _ink(rng, paper)
    gap = rng.uniform(9, 17)
    width = round(gap * rng.uniform(0.3, 0.55))
    shift = rng.uniform(0, gap)
    tilts = {"horizontal": (0,), "vertical": (90,), "rising": (-45,), "falling": (45,)}
    for tilt in {**tilts, "crossed": (0, 90), "wavy": (0,)}[label]:
        angle = math.radians(tilt + rng.uniform(-9, 9))
        waves = rng.uniform(3, 5) if label == "wavy" else 0
        for k in range(-8, 9):
            line = [_along(angle, t, k * gap + shift, waves) for t in range(-48, 49, 2)]
            paper.pen.line(line, fill=ink, width=width)
    return _aged(paper.picture, rng)


def colour(label: str, rng: Random) -> Image.Image:
    """Some overlapping blots of one colour, and small ones of grey."""
    paper = Paper.of(rng)
    for k in range(rng.randint(5, 8)):
        fill = _shade(label, rng) if k > 1 else (rng.randint(60, 200),) * 3
        x, y = (rng.uniform(0, SIZE) for _ in "xy")
        w, h = (rng.uniform(5, 18) for _ in "xy")
        paper.pen.ellipse((x - w, y - h, x + w, y + h), fill=fill)
    return _aged(paper.picture, rng)


def digit(label: str, rng: Random) -> Image.Image:
    """A digit of straight strokes, each of whose corners is moved a little."""
    paper = Paper.of(rng)
    ink = _ink(rng, paper)
    w, h = rng.uniform(26, 34), rng.uniform(42, 52)
    left, top = rng.uniform(4, SIZE - w - 4), rng.uniform(4, SIZE - h - 4)
    slant, width = rng.uniform(-6, 6), rng.randint(5, 8)
    corners = [
        (left + w * x + slant * (0.5 - y) + rng.gauss(0, 1), top + h * y + rng.gauss(0, 1))
        for x, y in _STROKES[label]
    ]
    paper.pen.line(corners, fill=ink, width=width, joint="curve")
    return _aged(paper.picture, rng)


def dots(label: str, rng: Random) -> Image.Image:
    """As many dots as the label says, none of which touch."""
    paper = Paper.of(rng)
    ink = _ink(rng, paper)
    radius = rng.uniform(4.5, 6.5)
    found: list[Point] = []
    while len(found) < 1 + NUMBERS.index(label):
        x, y = (rng.uniform(radius + 2, SIZE - radius - 2) for _ in "xy")
        if all(math.dist((x, y), other) > 2 * radius + 3 for other in found):
            found.append((x, y))
    for x, y in found:
        paper.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return _aged(paper.picture, rng)


DRAW: Mapping[str, Callable[[str, Random], Image.Image]] = MappingProxyType(
    {"shapes": shape, "stripes": stripes, "colours": colour, "digits": digit, "dots": dots}
)
"""Subject -> the function that draws a class of it."""


def _arc(radius: float, x: float, y: float) -> list[Point]:
    """A circle as a polygon."""
    turns = [2 * math.pi * k / 40 for k in range(40)]
    return [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns]


def _star() -> list[Point]:
    turns = [(math.pi * k / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
    return [(r * math.sin(t), -r * math.cos(t)) for t, r in turns]


def _cross() -> list[Point]:
    arm = [(-0.3, -1.0), (0.3, -1.0), (0.3, -0.3)]
    quarter = list(arm)
    for _ in range(3):
        arm = [(-y, x) for x, y in arm]
        quarter += arm
    return quarter


def _heart() -> list[Point]:
    turns = [2 * math.pi * k / 40 for k in range(40)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


_OUTLINES: Mapping[str, list[Point]] = MappingProxyType(
    {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "triangle": [(0, -1), (0.95, 0.75), (-0.95, 0.75)],
        "star": _star(),
        "cross": _cross(),
        "heart": _heart(),
    }
)


def _along(angle: float, t: float, across: float, waves: float) -> Point:
    """The point at ``t`` of a line at a distance from the picture's middle."""
    across += waves * math.sin(t / 4)
    cos, sin = math.cos(angle), math.sin(angle)
    return SIZE / 2 + t * cos - across * sin, SIZE / 2 + t * sin + across * cos


def _ink(rng: Random, paper: Paper) -> Colour:
    """Any colour far enough from the paper's grey."""
    low, high = (0, 110) if paper.grey[0] > 128 else (145, 255)
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _shade(name: str, rng: Random) -> Colour:
    red, green, blue = (min(255, max(0, part + rng.randint(-22, 22))) for part in COLOURS[name])
    return red, green, blue


def _aged(picture: Image.Image, rng: Random) -> Image.Image:
    """Softened, and with a little grain."""
    soft = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    grain = Image.frombytes("RGB", (SIZE // 2, SIZE // 2), rng.randbytes(3 * SIZE * SIZE // 4))
    return Image.blend(soft, grain.resize((SIZE, SIZE)), rng.uniform(0, 0.2))
