"""What the pictures of the demo show: subjects with their classes, and how a picture is named.

A subject is a task of the demo, such as ``shapes`` with the class ``star``. The demo's base has
seen some of the classes (``tools/train_demo_clip.py``). ``moram_dist.data.drawn_pictures`` draws.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """What the pictures of a task show."""

    classes: tuple[str, ...]
    text: str
    """The text of a class, with braces in place of its name."""


SUBJECTS = {
    "shapes": Subject(
        ("circle", "square", "triangle", "star", "cross", "ring", "moon", "heart"),
        "a drawing of a {}.",
    ),
    "stripes": Subject(
        ("horizontal", "vertical", "rising", "falling", "crossed", "wavy"),
        "{} stripes.",
    ),
    "colours": Subject(
        ("red", "green", "blue", "yellow", "purple", "orange", "pink", "brown"),
        "{} paint.",
    ),
    "digits": Subject(
        ("one", "two", "three", "four", "five", "six", "seven", "eight"),
        "the digit {}.",
    ),
    "dots": Subject(("two", "three", "four", "five", "six"), "{} dots."),
}


def picture_name(subject: str, label: str, *, split: str, seed: int, index: int) -> str:
    """The name that determines a picture, such as ``shapes/star/train-0-17``."""
    return f"{subject}/{label}/{split}-{seed}-{index}"
