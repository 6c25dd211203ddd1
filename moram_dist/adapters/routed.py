"""Linears whose atoms or experts compete for each token, and a way to watch which ones answer.

Watching changes no output: a linear hands over the weights that it computes anyway.

Shape letters: T tokens, K atoms chosen per token, N atoms, D inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Weights(NamedTuple):
    """The atoms that one linear chose for its tokens in one call."""

    index_TK: Tensor
    """Atoms in the order of the memory. An expert counts as one atom."""

    weight_TK: Tensor
    """They sum to 1, or are all 0 for a token whose scores are all 0."""

    spoken_TK: Tensor
    """Weights; 0 for atoms that are silenced."""

    def tasks(self, ends: Sequence[int]) -> Tensor:
        """The task of each of these atoms, (T, K), given ``Routed.task_ends``."""
        # A token with NaN scores may have chosen an index that is not an atom.
        index_TK = self.index_TK.long().clamp(max=ends[-1] - 1).contiguous()
        ends_N = torch.tensor(ends[1:], device=index_TK.device)
        return torch.searchsorted(ends_N, index_TK, right=True)


Take = Callable[[Weights], None]


class Routed(ABC):
    """An adapted linear that chooses among the atoms, or the experts, of all tasks."""

    @property
    @abstractmethod
    def task_ends(self) -> Sequence[int]:
        """``task_ends[n]``: number of atoms after n tasks."""

    @abstractmethod
    def watch(self, take: Take | None) -> None:
        """Give the weights of each following call to ``take``; None: to nobody."""

    @abstractmethod
    def whole_keys(self) -> Tensor:
        """The keys of all atoms, or the router's rows, (N, D). All ranks call it together."""


def routed_linears(model: nn.Module) -> dict[str, Routed]:
    """The linears of a model that route tokens, by full name; empty for most methods."""
    return {name: part for name, part in model.named_modules() if isinstance(part, Routed)}


@contextmanager
def watching(linears: Mapping[str, Routed], take: Callable[[str, Weights], None]) -> Iterator[None]:
    """Context in which each call of a linear also gives its name and weights to ``take``.

    Rows that different numbers of tasks answer (``Prefix``) would be counted more than once.
    """
    for name, linear in linears.items():
        linear.watch(partial(take, name))
    try:
        yield
    finally:
        for linear in linears.values():
            linear.watch(None)
