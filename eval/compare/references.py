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

KNOWN_METRICS = frozenset(sequence_metrics([[0.0]]))


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

    def mark(self, base: str, protocol: str) -> str:
        """Whether it is comparable with our runs on that base and protocol, and if not, why."""
        reasons = [
            f"other {what}" if said else f"{what} not stated"
            for what, said, ours in (
                ("base model", self.model, base),
                ("protocol", self.protocol, protocol),
            )
            if said != ours
        ]
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
