"""Check pictures before a run starts, so that a damaged one does not stop it hours later.

When a run first starts:

- The readers of benchmarks have checked that every listed picture exists.
- At most ``DECODED`` training pictures are all decoded. Of more, ``OPENED`` headers are read.
- ``OPENED`` headers of test pictures are read.

A sample is spread evenly over the tasks. ``moram audit`` decodes every picture. A damaged picture
that the check misses stops the run later, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moram_dist.data.ahead import read_all
from moram_dist.data.picture_files import PictureFolder
from moram_dist.data.tokens import WorkProgress
from moram_dist.tasks.pictures.shots import spread
from moram_dist.tasks.task import Benchmark

DECODED = 20_000
"""Most training pictures that are all decoded; X-TAIL, with 16 of each class, has 17,600."""

OPENED = 5_000
"""Most headers that are read of a split, over all tasks."""

THREADS = 4
AT_ONCE = 512

Named = tuple[PictureFolder, str]


def check_pictures(benchmark: Benchmark, *, trained: bool, say: Callable[[str], None]) -> None:
    """Check pictures as described above.

    Args:
        benchmark: tasks whose prompts are not picture files are skipped.
        trained: whether the run reads training pictures.
        say: prints progress every few seconds.

    Raises:
        InputError: the first picture that cannot be read, by name.
    """
    folders: dict[Path, PictureFolder] = {}
    of_split: dict[str, list[Named]] = {"train": [], "test": []}
    for task in benchmark.tasks:
        if not isinstance(task.pictures, Path):
            continue
        folder = folders.setdefault(task.pictures, PictureFolder(task.pictures))
        for split, found in of_split.items():
            # Where a class has fewer pictures than shots, some are drawn several times.
            names = dict.fromkeys(example.prompt for example in getattr(task, split))
            found += [(folder, name) for name in names]
    train = of_split["train"] if trained else []
    if len(train) <= DECODED:
        _each(PictureFolder.open, train, "reading the training pictures", say)
    else:
        some = spread(train, OPENED)
        _each(PictureFolder.check, some, "opening training pictures", say)
    _each(PictureFolder.check, spread(of_split["test"], OPENED), "opening test pictures", say)


def _each(
    look: Callable[[PictureFolder, str], object],
    pictures: Sequence[Named],
    what: str,
    say: Callable[[str], None],
) -> None:
    def one(picture: Named) -> None:  # keeps no pixels
        look(*picture)

    done = WorkProgress(what, len(pictures), say, lambda what: None).started()
    for start in range(0, len(pictures), AT_ONCE):
        part = pictures[start : start + AT_ONCE]
        read_all(one, part, THREADS)
        done(start + len(part))
