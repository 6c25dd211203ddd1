"""The audit of a benchmark of pictures as Markdown."""

from __future__ import annotations

from eval.audit.pictures import PictureAudit, PictureSplit
from eval.audit.table import page
from eval.markup import markdown_text

_HEADER = (
    "task",
    "split",
    "pictures",
    "used",
    "classes",
    "fewest",
    "most",
    "smallest",
    "median",
    "unreadable",
)


def picture_markdown(audit: PictureAudit) -> str:
    """The whole audit, aligned so that it reads well as plain text."""
    legend = (
        "Used: those that a run trains on or tests. Fewest, most: pictures of a class. Smallest, "
        "median: shorter edges in pixels."
    )
    return page(audit, legend, [_HEADER, *map(_cells, audit.splits)])


def _cells(split: PictureSplit) -> tuple[str, ...]:
    numbers = (
        split.pictures,
        split.used,
        split.classes,
        split.fewest,
        split.most,
        split.smallest,
        round(split.median),
        split.unreadable,
    )
    return markdown_text(split.task), split.split, *map(str, numbers)
