"""The interface of metrics: functions of one answered example with values from 0 to 100."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moram_dist.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction with its prompt and one accepted answer."""

    prompt: str
    prediction: str
    reference: str
    labels: tuple[str, ...] = ()
    """The task's closed answer set, empty if it has none."""


METRICS: Registry[Callable[[Answer], float]] = Registry("metric")


def score(
    metric: str,
    *,
    prompt: str,
    prediction: str,
    references: tuple[str, ...],
    labels: tuple[str, ...] = (),
) -> float:
    """Best score over the references, 0 to 100.

    Raises:
        InputError: no metric of that name.
        ValueError: no reference.
    """
    if not references:
        raise ValueError("an example without a reference cannot be scored")
    measure = METRICS[metric]
    return max(
        measure(Answer(prompt=prompt, prediction=prediction, reference=reference, labels=labels))
        for reference in references
    )
