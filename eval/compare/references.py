"""Published scores to print next to ours: source, model, and whether they are comparable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.continual import sequence_metrics
from moram_dist.reading import read_json, record
from moram_dist.registry import InputError

FILE = Path(__file__).with_name("reference_scores.json")

PROVENANCE = {
    "read": "read in the source",
    "computed": "computed from the source's logs",
    "restated": "restated by a third party",
    "unverified": "unverified",
}

SAME_BASE = {"CLIP ViT-B/16": ("clip-vit-base-patch16",)}
"""Base model as published -> names of the folder of the same weights."""

KNOWN_METRICS = frozenset(sequence_metrics([[0.0]]))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What our compared runs have in common."""

    base: str
    """The name of its folder."""

    protocol: str
    orders: tuple[str, ...] = ()
    """All that were run."""

    shots: str = ""
    """Training pictures of each class; empty for texts, as are ``splits``."""

    splits: str = ""
    """Whose lists split the data sets of pictures."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One published row."""

    benchmark: str
    protocol: str
    """Our most similar protocol; empty if the source does not say enough."""

    method: str
    model: str
    """Empty if the source does not say."""

    metric: str
    """A name of ``sequence_metrics``, with its sign: forgetting is a negative BWT."""

    values: Mapping[str, float]
    """Order to value, 0 to 100; ``mean`` is that over the source's orders."""

    source: str
    provenance: str
    """A key of ``PROVENANCE``."""

    note: str
    """Other differences from our runs; may be empty."""

    shots: str = ""
    """Training pictures of each class: a number or ``all``; empty for texts."""

    splits: str = ""
    """Whose lists split the data sets of pictures; empty for texts, or if it is not stated."""

    def mark(self, ours: Setting, order: str | None = None) -> str:
        """Whether it is comparable with our runs, and if not, why.

        Args:
            ours: what our runs have in common.
            order: the order of the value in question; None for all orders together.
        """
        same_base = ours.base in SAME_BASE.get(self.model, ())
        reasons = [
            f"other {what}" if said else f"{what} not stated"
            for what, said, own in (
                ("base model", self.model, self.model if same_base else ours.base),
                ("protocol", self.protocol, ours.protocol),
                ("shots", self.shots, ours.shots),
                ("splits", self.splits, ours.splits),
            )
            if said != own
        ]
        reasons += ["other order"] if order is not None and order not in ours.orders else []
        reasons += [self.note] if self.note else []
        verdict = f"not comparable: {'; '.join(reasons)}" if reasons else "comparable"
        return f"{verdict} ({PROVENANCE[self.provenance]})"


def read_references(path: Path = FILE) -> list[Reference]:
    """All published rows. Raises InputError if the file is not a list of valid ``Reference``."""
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list")
    references = []
    for k, value in enumerate(content):
        where = f"{path}, record {k}"
        one = record(Reference, value, where)
        if one.provenance not in PROVENANCE or one.metric not in KNOWN_METRICS or not one.source:
            raise InputError(f"{where}: unknown provenance or metric, or no source")
        for order, value in one.values.items():
            if not -100 <= value <= 100:
                raise InputError(f"{where}: {order}: no score: {value!r}")
        references.append(one)
    return references
