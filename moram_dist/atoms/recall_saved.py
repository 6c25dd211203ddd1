"""The tensors that a recall's forward pass keeps for its backward pass, by name.

Shape letters: B tokens of all queried linears, N atoms, K atoms kept per token.
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
    """A mixture without the tensors that ``routing.weigh`` recomputes bit for bit."""

    index_BK: Tensor
    """In the smallest integer type that holds all indices."""

    score_BK: Tensor | None
    """None if the scores of all atoms are saved: they include these."""

    norm_B1: Tensor

    @classmethod
    def of(cls, mix: Mixture, num_atoms: int, *, scores_are_saved: bool) -> SavedMixture:
        """From a mixture over a memory of ``num_atoms``."""
        score_BK = None if scores_are_saved else mix.score_TK
        return cls.of_atoms(mix.index_TK, mix.norm_T1, num_atoms, score_BK)

    @classmethod
    def of_atoms(
        cls, index_BK: Tensor, norm_B1: Tensor, num_atoms: int, score_BK: Tensor | None = None
    ) -> SavedMixture:
        """From the parts of a mixture."""
        kinds = (torch.uint8, torch.int16, torch.int32)
        kind = next(kind for kind in kinds if num_atoms - 1 <= torch.iinfo(kind).max)
        return cls(index_BK=index_BK.to(kind), score_BK=score_BK, norm_B1=norm_B1)


class Layout(NamedTuple):
    """The structure that ``Saved.of`` needs to rebuild a ``Saved`` from a flat list of tensors."""

    num_linears: int
    pairs: tuple[Pair, ...]
    owners: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Tensors for the backward pass. Frozen atoms are not kept: the placement supplies them."""

    inputs: Sequence[Tensor]
    """Of each linear, (T, D)."""

    keys: Sequence[Tensor]
    """Active keys of each linear, (R, D)."""

    values: Sequence[Tensor]
    scores: dict[Pair, Tensor]
    """Owner and shard to scores of the shard's atoms, (B, N); of its active ones only if K^T K is
    used for the frozen ones."""

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
        """All tensors in a flat list for autograd, and the layout that ``of`` needs."""
        flat: list[Tensor | None] = [*self.inputs, *self.keys, *self.values, *self.scores.values()]
        for saved in self.mixtures.values():
            flat += [saved.index_BK, saved.score_BK, saved.norm_B1]
        return flat, Layout(len(self.inputs), tuple(self.scores), tuple(self.mixtures))

    @classmethod
    def of(cls, tensors: Sequence[Any], layout: Layout) -> Saved:
        """Rebuild from the results of ``tensors``."""
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
