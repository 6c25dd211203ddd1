"""Choose pictures of each class to train on, as a function of seed, task and class name alone.

So neither the order of tasks nor the number of ranks nor what else is drawn changes a sample.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from moram_dist.tasks.pictures.picture_set import Picture

T = TypeVar("T")


def draw_shots(
    pictures: Sequence[Picture], names: Sequence[str], *, shots: int, seed: int, task: str
) -> list[int]:
    """Places of the chosen pictures, ascending.

    Args:
        pictures: of all classes.
        names: class names in label order.
        shots: pictures of each class. Without replacement, but with it where a class has fewer; the
            same place then occurs several times.
        seed: another one gives another sample.
        task: the task's name.
    """
    places = defaultdict(list)
    for place, picture in enumerate(pictures):
        places[picture.label].append(place)
    chosen: list[int] = []
    for label, own in places.items():
        rng = random.Random(f"shots/{seed}/{task}/{names[label]}")
        enough = len(own) >= shots
        chosen += rng.sample(own, shots) if enough else rng.choices(own, k=shots)
    return sorted(chosen)


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most ``limit`` of the items, evenly spaced: lists of pictures are sorted by class."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]
