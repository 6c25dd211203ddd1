"""Which tasks' atoms answer each token of a prompt.

Shape letters: T tokens, N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from moram_dist.adapters.routed import Weights, routed_linears, watching
from moram_dist.methods import METHODS
from moram_dist.registry import InputError, unknown
from moram_dist.use.answerer import Answerer
from moram_dist.use.source import MemorySource

WINDOW = 8
"""Tokens that are decoded with the next one: some tokenizers drop a blank at the beginning."""


@dataclass(frozen=True, kw_only=True)
class InspectedToken:
    """A token of a prompt."""

    text: str
    shares: tuple[float, ...]
    """Part of its mixture on the atoms of each task, then the part that is silenced; the sum is 1.
    The mean over linears."""

    @property
    def task(self) -> int | None:
        """The task with the largest share; None if the silenced part is larger."""
        most = max(range(len(self.shares)), key=lambda i: self.shares[i])
        return most if most + 1 < len(self.shares) else None


@dataclass(frozen=True, kw_only=True)
class InspectedPrompt:
    """A prompt as the model reads it."""

    tasks: tuple[str, ...]
    """The tasks that answer, in order."""

    linears: tuple[str, ...]
    tokens: tuple[InspectedToken, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """The mean over tokens."""
        columns = zip(*(token.shares for token in self.tokens), strict=True)
        return tuple(sum(column) / len(self.tokens) for column in columns)


def check_routes(source: MemorySource) -> None:
    """Raises InputError for a method without atoms or experts."""
    if not METHODS[source.manifest.method].routes:
        having = ", ".join(name for name in METHODS if METHODS[name].routes)
        raise InputError(
            f"{source.path}: {source.manifest.method} has no atoms or experts that tokens choose; "
            f"methods that have: {having}"
        )


def chosen_linears(source: MemorySource, layer: str | None) -> tuple[str, ...]:
    """The adapted linears of a name, or inside a module of that name; None: all.

    Raises:
        InputError: there are none.
    """
    names = source.manifest.modules
    found = [n for n in names if layer is None or n == layer or n.startswith(f"{layer}.")]
    if not found:
        raise unknown("layer", layer or "", names)
    return tuple(found)


def inspect_prompt(answerer: Answerer, prompt: str, linears: Sequence[str]) -> InspectedPrompt:
    """Read a prompt, and share each token's mixture among the tasks.

    Args:
        answerer: with recall ``all``.
        prompt: encoded by the rules of ``answerer.task``.
        linears: full names, from ``chosen_linears``.

    Raises:
        InputError: none of these linears reads the prompt, as in the decoder of a T5.
    """
    ids = answerer.encoded(prompt)
    num_tasks = answerer.upto
    totals: dict[str, Tensor] = {}

    def take(name: str, weights: Weights) -> None:
        spoken_TK = weights.spoken_TK.double().cpu()
        share_TN = torch.zeros(len(spoken_TK), num_tasks + 1, dtype=torch.float64)
        share_TN.scatter_add_(1, weights.tasks(routed[name].task_ends).cpu(), spoken_TK)
        share_TN[:, -1] = 1 - share_TN.sum(-1)
        totals[name] = share_TN

    routed = routed_linears(answerer.model)
    routed = {name: routed[name] for name in linears}
    device = next(answerer.model.parameters()).device
    with torch.no_grad(), watching(routed, take):
        answerer.family.reader(answerer.model)(input_ids=torch.tensor([ids], device=device))
    if not totals:
        raise InputError(f"layer {linears[0]} reads no token of the prompt: it reads the answer")
    mean_TN = torch.stack([*totals.values()]).mean(0).clamp(min=0)
    texts = pieces(answerer.tokenizer, ids)
    return InspectedPrompt(
        tasks=tuple(answerer.tasks[:num_tasks]),
        linears=tuple(totals),
        tokens=tuple(
            InspectedToken(text=text, shares=tuple(row))
            for text, row in zip(texts, mean_TN.tolist(), strict=True)
        ),
    )


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text. A part of a character is a replacement character."""

    def text(first: int, end: int) -> str:
        return str(tokenizer.decode(ids[first:end], clean_up_tokenization_spaces=False))

    out = []
    for k in range(len(ids)):
        first = max(0, k - WINDOW)
        before, after = text(first, k), text(first, k + 1)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
        out.append(after[sum(1 for _ in same) :])
    return out
