"""Published numbers, to print beside ours: who says so, of which model, and how far to trust it."""

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
    """Of ours, the nearest; empty where the source does not say enough."""

    method: str
    model: str
    """Empty where the source does not say."""

    metric: str
    """A name of ``sequence_metrics``, with its sign: forgetting is a negative BWT."""

    values: Mapping[str, float]
    """Order to value, 0 to 100; ``mean`` over the orders of the source."""

    source: str
    provenance: str
    """A key of ``PROVENANCE``."""

    note: str
    """What else differs from a run of ours; may be empty."""

    def mark(self, base: str, protocol: str) -> str:
        """Whether it can be compared with runs of ours on that base and protocol, and why not."""
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
    """All published rows. Raises InputError where the file is not what ``Reference`` says."""
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
