"""What the forward pass of a recall keeps for its backward pass, by name.

Shape letters: B tokens of all linears that are asked, N atoms, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moram_dist.atoms.placement import Pair
from moram_dist.atoms.routing import Mixture, Routing, weigh


@dataclass(frozen=True, kw_only=True)
class SavedMixture:
    """A mixture without what ``routing.weigh`` computes again to the same bits."""

    index_BK: Tensor
    """In the smallest type of integer that holds all indices."""

    score_BK: Tensor | None
    """None where the scores of all atoms are saved, and those of chosen ones among them."""

    norm_B1: Tensor

    @classmethod
    def of(cls, mix: Mixture, num_atoms: int, *, scores_are_saved: bool) -> SavedMixture:
        """Of a memory of ``num_atoms``."""
        kinds = (torch.uint8, torch.int16, torch.int32)
        kind = next(kind for kind in kinds if num_atoms - 1 <= torch.iinfo(kind).max)
        return cls(
            index_BK=mix.index_TK.to(kind),
            score_BK=None if scores_are_saved else mix.score_TK,
            norm_B1=mix.norm_T1,
        )


class Layout(NamedTuple):
    """What ``Saved.tensors`` does not say of the tensors."""

    num_linears: int
    pairs: tuple[Pair, ...]
    owners: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Frozen atoms are not kept: the placement supplies them again."""

    inputs: Sequence[Tensor]
    """Of each linear, (T, D)."""

    keys: Sequence[Tensor]
    """Active ones of each linear, (R, D)."""

    values: Sequence[Tensor]
    scores: dict[Pair, Tensor]
    """Owner and shard to scores of the shard's atoms, (B, N); only of its active ones where K^T K
    serves for the frozen ones."""

    mixtures: dict[int, SavedMixture]
    """By owner."""

    def mixture(self, owner: int, routing: Routing) -> Mixture:
        """The mixture of an owner's tokens."""
        saved = self.mixtures[owner]
        index_BK, score_BK = saved.index_BK.int(), saved.score_BK
        if score_BK is None:  # there is one owner and one shard
            (score_BN,) = self.scores.values()
            score_BK = score_BN.gather(1, index_BK.long())
        return weigh(index_BK, score_BK, saved.norm_B1, routing)

    def tensors(self) -> tuple[list[Tensor | None], Layout]:
        """All tensors, as autograd keeps them, and what ``of`` needs beside them."""
        flat: list[Tensor | None] = [*self.inputs, *self.keys, *self.values, *self.scores.values()]
        for saved in self.mixtures.values():
            flat += [saved.index_BK, saved.score_BK, saved.norm_B1]
        return flat, Layout(len(self.inputs), tuple(self.scores), tuple(self.mixtures))

    @classmethod
    def of(cls, tensors: Sequence[Any], layout: Layout) -> Saved:
        """From what ``tensors`` gave."""
        given = iter(tensors)
        inputs, keys, values = ([next(given) for _ in range(layout.num_linears)] for _ in range(3))
        return cls(
            inputs=inputs,
            keys=keys,
            values=values,
            scores={pair: next(given) for pair in layout.pairs},
            mixtures={
                owner: SavedMixture(index_BK=next(given), score_BK=next(given), norm_B1=next(given))
                for owner in layout.owners
            },
        )
