"""The tensors that a recall's forward pass keeps for its backward pass, by name.

Shape letters: B tokens of all queried linears, N atoms, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Tensors for the backward pass. Frozen atoms are not kept: the placement supplies them."""

    inputs: Sequence[Tensor]
    """Of each linear, (T, D)."""

    keys: Sequence[Tensor]
    """Active keys of each linear, (R, D)."""

    values: Sequence[Tensor]
    score_BN: Tensor
    """Scores of the shard's atoms; of its active ones only if K^T K is used for the frozen ones."""

    of_mixture: SavedMixture

    def mixture(self, routing: Routing) -> Mixture:
        """The mixture of the tokens at the shard."""
        index_BK, score_BK = self.of_mixture.index_BK.int(), self.of_mixture.score_BK
        if score_BK is None:
            score_BK = self.score_BN.gather(1, index_BK.long())
        return weigh(index_BK, score_BK, self.of_mixture.norm_B1, routing)

    def tensors(self) -> list[Tensor | None]:
        """All tensors in a flat list for autograd."""
        mix = self.of_mixture
        of_mixture = (mix.index_BK, mix.score_BK, mix.norm_B1)
        return [*self.inputs, *self.keys, *self.values, self.score_BN, *of_mixture]

    @classmethod
    def of(cls, tensors: Sequence[Any], num_linears: int) -> Saved:
        """Rebuild from the results of ``tensors``."""
        inputs, keys, values = (tensors[k * num_linears :][:num_linears] for k in range(3))
        score_BN, index_BK, score_BK, norm_B1 = tensors[3 * num_linears :]
        mix = SavedMixture(index_BK=index_BK, score_BK=score_BK, norm_B1=norm_B1)
        return cls(inputs=inputs, keys=keys, values=values, score_BN=score_BN, of_mixture=mix)
