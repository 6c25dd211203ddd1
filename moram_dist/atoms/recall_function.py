"""Forward and backward of recall, over pairs of an owner and a shard.

One computation for every placement of the atoms. A memory is split into shards, each token is owned
by a rank, and everything is computed for pairs of an owner and a shard: scores, candidates, partial
sums. A placement says which pairs this rank works on and brings together what belongs to a token.
Sums over shards are taken in the order of shards. So a pair is the same product of the same
matrices on whichever rank, and placements agree to the last bit (but for K^T K, below).

Active atoms come after the frozen ones of the shard that they will be frozen into, so freezing
leaves these products, and with them the outputs, as they are. The gradients of their scores go to
the token's owner, which has what turns them into gradients of keys and values.

Backward, with p scores, n their norm, s = p / n, w weights, m 1 for speaking atoms, S the chosen
ones, g the gradient of y, tau the temperature:

    u_j  = v_j . g                          q_j = m_j p_j u_j
    A    = sum_S w_j q_j                    B   = sum_S w_j q_j s_j
    gam  = (B - A sum_S w_j s_j) / tau
    dp_i = [i in S] (m_i w_i u_i + w_i (q_i - A) / (tau n)) - gam / n^2 p_i
    dx   = sum_i dp_i k_i       dk_i = dp_i x       dv_i = m_i w_i p_i g

The last term of dp reaches every atom, but dx only through sum_i p_i k_i = K^T K x. Where a rank
has K^T K of the frozen atoms, and they are more than D, that product takes the place of those with
all of them, and no score is saved but those of active atoms.

Linears that are asked together choose their atoms in one go: what belongs to the first one's tokens
comes first, then the next one's.

Shape letters: T tokens, B = L T tokens of all L linears that are asked, N atoms, R active atoms, D
inputs, E outputs, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moram_dist.atoms import kernels
from moram_dist.atoms.bank import Atoms, Bank
from moram_dist.atoms.placement import Placement
from moram_dist.atoms.routing import (
    Mixture,
    Routing,
    ShardCandidates,
    candidates,
    in_order,
    mixture,
    weigh,
)
from moram_dist.atoms.scan import Image, scan
from moram_dist.atoms.shard import Chosen, add, each, mixed, products, scored, spread
from moram_dist.comm.partition import largest_shard, new_rows, shard_size


@dataclass(frozen=True, kw_only=True)
class RecallCall:
    """What is asked, but for tensors."""

    bank: Bank
    members: tuple[int, ...]
    placement: Placement
    routing: Routing
    num_frozen: int
    """That are asked: all, or the first ones of the bank's."""

    num_active: int

    recorded: bool
    """Whether there may be a backward pass."""

    @property
    def num_atoms(self) -> int:
        """Frozen and active, of each linear."""
        return self.num_frozen + self.num_active

    @property
    def num_shards(self) -> int:
        """Into how many the memory is split: ranks of its group."""
        return self.bank.group.size

    def shards(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], *, forward: bool
    ) -> dict[int, list[Atoms]]:
        """Shard to the atoms of the linears that are asked, frozen ones before active ones."""
        found = self.placement.atoms(self.bank, forward=forward)
        out = {}
        for shard, flat_F in found.items():
            own = self.active_rows(shard)
            active = {
                i: (k[own], v[own]) for i, k, v in zip(self.members, keys, values, strict=True)
            }
            out[shard] = [*self.bank.joined(flat_F, shard, active, self.num_frozen).values()]
        return out

    def active_rows(self, shard: int) -> slice:
        """Which of the active atoms will be frozen into a shard."""
        return new_rows(self.num_frozen, shard, self.num_shards)

    def chosen(self, mix: Mixture, shards: Mapping[int, Sequence[Atoms]]) -> dict[int, Chosen]:
        """Shard to where the atoms of a mixture stand among its rows."""
        index_BK = mix.index_TK
        if self.num_shards == 1:
            return {0: Chosen(index_BK, None)}
        row_BK = index_BK.div(self.num_shards, rounding_mode="floor")
        shard_BK = index_BK % self.num_shards
        # A token whose scores are no numbers may have chosen an atom that is none.
        num_rows = {shard: len(atoms[0][0]) for shard, atoms in shards.items()}
        return {
            shard: Chosen(row_BK.clamp(max=max(rows - 1, 0)), (shard_BK == shard) & (row_BK < rows))
            for shard, rows in num_rows.items()
        }

    def scanned(
        self,
        images: Sequence[Image],
        inputs: Sequence[Tensor],
        shards: Mapping[int, Sequence[Atoms]],
    ) -> ShardCandidates:
        """The best of the frozen atoms, all of whose shards this rank has, by a scan."""
        most = min(self.routing.top_k, self.num_frozen)
        found = []
        for one, (x_TD, image) in enumerate(zip(inputs, images, strict=True)):
            keys = {shard: own[one][0][: self.first_active(shard)] for shard, own in shards.items()}
            found.append(scan(x_TD, image, keys, num_kept=most)[0])
        return ShardCandidates(*(torch.cat(field) for field in zip(*found, strict=True)))

    def grams(self) -> list[Tensor] | None:
        """K^T K of the frozen atoms of each linear that is asked, (D, D), where it is at hand."""
        whole = self.num_frozen == self.bank.num_atoms
        return self.placement.grams(self.bank, self.members) if whole else None

    def images(self) -> list[Image] | None:
        """For scans of the frozen atoms of each linear that is asked, where that pays."""
        whole = self.num_frozen == self.bank.num_atoms
        return self.placement.images(self.bank, self.members) if whole else None

    def first_active(self, shard: int) -> int:
        """The row of a shard from which its atoms are active."""
        return shard_size(self.num_frozen, shard, self.num_shards)

    def packed(self, active_TR: Tensor) -> Tensor:
        """Columns of a shard's active atoms, as many for every shard."""
        room = largest_shard(self.num_active, self.num_shards)
        return F.pad(active_TR, (0, room - active_TR.shape[1])).contiguous()

    def unpacked(self, shards: Sequence[Tensor]) -> Tensor:
        """From what ``packed`` made of each shard: a column for each active atom."""
        if self.num_shards == 1:
            return shards[0]
        out_TR = shards[0].new_empty(len(shards[0]), self.num_active)
        for shard, packed in enumerate(shards):
            columns = out_TR[:, self.active_rows(shard)]
            columns.copy_(packed[:, : columns.shape[1]])
        return out_TR

    def active_strength(self, mix: Mixture) -> Tensor:
        """How strongly each active atom answers each token, (B, R)."""
        row_TK = mix.index_TK - self.num_frozen
        active = Chosen(row_TK.clamp(min=0), row_TK >= 0)
        strength_TK = mix.spoken_TK * mix.score_TK
        return spread(active, strength_TK, self.num_active, strength_TK.dtype)


class RecallFunction(torch.autograd.Function):
    """``recall_together`` on flat tokens: for each linear (T, D), keys, values to (T, E)."""

    @staticmethod
    def forward(ctx: Any, call: RecallCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``tensors``: all inputs, then all active keys, then all active values."""
        place, linears = call.placement, range(len(call.members))
        inputs, keys, values = (tensors[k * len(linears) :][: len(linears)] for k in range(3))
        dtype = inputs[0].dtype
        precise = torch.promote_types(dtype, torch.float32)
        # bf16 scores change the top-k set of many tokens, so routing never sees less than float32.
        num_kept = min(call.routing.top_k, largest_shard(call.num_atoms, call.num_shards))
        tokens = place.tokens(inputs, "tokens")
        shards = call.shards(keys, values, forward=True)
        images = call.images()
        scores: dict[Any, Tensor] = {}
        offered: dict[Any, ShardCandidates] = {}
        for owner, rows in tokens.items():
            for shard, atoms in shards.items():
                # Atoms before the first are scanned: this rank has all shards of them.
                first = call.first_active(shard) if images else 0
                scores[owner, shard] = scored(rows, [k[first:] for k, _ in atoms], precise)
                offered[owner, shard] = candidates(
                    scores[owner, shard],
                    num_kept=num_kept,
                    shard=shard,
                    num_shards=call.num_shards,
                    num_atoms=call.num_atoms,
                    first=first,
                )
        mixtures: dict[int, Mixture] = {}
        for owner, offers in place.candidates(offered, len(linears)).items():
            if images:
                asked = [x.to(precise) for x in tokens[owner]]
                offers.insert(0, call.scanned(images, asked, shards))
            mixtures[owner] = mixture(offers, num_atoms=call.num_atoms, routing=call.routing)
        partial: dict[Any, list[Tensor]] = {}
        for owner, mix in mixtures.items():
            strength_BK = mix.spoken_TK * mix.score_TK
            chosen = call.chosen(mix, shards)
            for shard, atoms in shards.items():
                parts = mixed(chosen[shard], strength_BK, [v for _, v in atoms])
                partial[owner, shard] = [part.to(dtype) for part in parts]
        outputs = [
            in_order([part.to(precise) for part in parts]).to(dtype)
            for parts in place.collect(partial, "outputs")
        ]
        if call.recorded and any(ctx.needs_input_grad):
            ctx.call, ctx.owners = call, list(tokens)
            # Atoms of the bank are not saved: they are had again from the placement.
            grams = call.grams()
            kept = [*scores.values()]
            if grams is not None:
                active = [
                    len(shards[shard][0][0]) - call.first_active(shard) for _, shard in scores
                ]
                kept = [
                    score[:, score.shape[1] - num_new :].contiguous()
                    for score, num_new in zip(kept, active, strict=True)
                ]
            ctx.num_scores = len(kept)
            indices = _smallest_integer(call.num_atoms)
            # Where all scores are saved, those of chosen atoms are among them.
            among = grams is None and call.num_shards == 1
            flat = [
                t
                for mix in mixtures.values()
                for t in (mix.index_TK.to(indices), None if among else mix.score_TK, mix.norm_T1)
            ]
            ctx.save_for_backward(*tensors, *kept, *flat)
            ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The formulas above."""
        call: RecallCall = ctx.call
        place, linears = call.placement, range(len(call.members))
        saved = iter(ctx.saved_tensors)
        inputs, keys, values = ([next(saved) for _ in linears] for _ in range(3))
        kept = [next(saved) for _ in range(ctx.num_scores)]
        mixtures: dict[int, Mixture] = {}
        for owner in ctx.owners:
            index_BK, score_BK, norm_B1 = next(saved).int(), next(saved), next(saved)
            if score_BK is None:  # the only owner's, of the only shard
                score_BK = kept[0].gather(1, index_BK.long())
            mixtures[owner] = weigh(index_BK, score_BK, norm_B1, call.routing)
        dtype = inputs[0].dtype
        precise = torch.promote_types(dtype, torch.float32)
        upstream = [
            x.new_zeros(len(x), v.shape[1]) if g is None else g
            for g, x, v in zip(grads, inputs, values, strict=True)
        ]

        shards = call.shards(keys, values, forward=False)
        gradients = place.tokens(upstream, "gradients")
        pairs = [(owner, shard) for owner in gradients for shard in shards]
        scores = dict(zip(pairs, kept, strict=True))
        chosen = {owner: call.chosen(mixtures[owner], shards) for owner in gradients}
        u = {
            (owner, shard): products(
                gradients[owner], [v for _, v in shards[shard]], chosen[owner][shard], precise
            )
            for owner, shard in pairs
        }
        sums = {(owner, shard): _sums(mixtures[owner], u[owner, shard]) for owner, shard in pairs}
        totals = {owner: in_order(parts) for owner, parts in place.sums(sums, len(linears)).items()}

        # The owner gets each linear's gradient of its input, then the active scores' gradients.
        wanted = any(ctx.needs_input_grad[1 : 1 + len(linears)])
        grams = call.grams()
        partial: dict[Any, list[Tensor]] = {}
        through_norm: dict[int, Tensor] = {}
        for owner, shard in pairs:
            direct_BK, through_norm[owner] = _score_gradient(
                mixtures[owner], u[owner, shard], totals[owner], call.routing.temperature
            )
            # Of the shard's atoms, or, where K^T K serves for the frozen ones, its active ones.
            dp_BN = scores[owner, shard] * through_norm[owner]
            here, first = chosen[owner][shard], call.first_active(shard)
            add(here if grams is None else here.since(first), direct_BK, dp_BN)
            gone: list[Tensor] = []
            if wanted:
                atoms = [k.to(precise) for k, _ in shards[shard]]
                begin = 0 if grams is None else first
                parts = each(dp_BN, len(linears))
                gone = [dp_TN @ k[begin:] for dp_TN, k in zip(parts, atoms, strict=True)]
                if grams is not None:
                    frozen = mixed(here.before(first), direct_BK, atoms)
                    gone = [part.add_(other) for part, other in zip(gone, frozen, strict=True)]
            active_BR = dp_BN[:, first:] if grams is None else dp_BN
            packed = each(call.packed(active_BR), len(linears))
            partial[owner, shard] = [part.to(dtype) for part in gone] + [
                p.view(dtype) for p in packed
            ]
        collected = place.collect(partial, "input gradients")

        dx: list[Tensor | None] = [None] * len(linears)
        if wanted:
            norms = each(through_norm[place.group.rank], len(linears))
            for one, parts in enumerate(collected[: len(linears)]):
                terms = [part.to(precise) for part in parts]
                if grams is not None:
                    gram_DD = grams[one].to(precise)
                    terms.append((inputs[one].to(precise) @ gram_DD) * norms[one])
                dx[one] = in_order(terms).to(dtype)
        strengths = each(call.active_strength(mixtures[place.group.rank]), len(linears))
        dk, dv = [], []
        for one, (x, k, v) in enumerate(zip(inputs, keys, values, strict=True)):
            of_shards = collected[len(collected) - len(linears) + one]
            dp_TR = call.unpacked([part.contiguous().view(precise) for part in of_shards])
            dk.append((dp_TR.T @ x.to(precise)).to(k.dtype))
            dv.append(strengths[one].to(v.dtype).T @ upstream[one].to(v.dtype))
        return (None, *dx, *dk, *dv)


def _smallest_integer(num_atoms: int) -> torch.dtype:
    """What an atom's index fits in."""
    kinds = (torch.uint8, torch.int16, torch.int32)
    return next(kind for kind in kinds if num_atoms - 1 <= torch.iinfo(kind).max)


def _sums(mix: Mixture, u_TK: Tensor) -> Tensor:
    """A and B of the atoms that u belongs to, (T, 2)."""
    if kernels.serve(u_TK):
        return kernels.sums(mix.score_TK, mix.relevance_TK, mix.spoken_TK, u_TK)
    wq_TK = mix.spoken_TK * mix.score_TK * u_TK
    return torch.stack([wq_TK.sum(-1), (wq_TK * mix.relevance_TK).sum(-1)], -1)


def _score_gradient(
    mix: Mixture, u_TK: Tensor, totals_T2: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """Gradient of scores, from u of the atoms that are asked, and A and B over all atoms.

    Returns:
        What chosen atoms get, (T, K), of those that u belongs to; and what every score is
        multiplied by for its gradient through the norm, (T, 1).
    """
    if kernels.serve(u_TK):
        return kernels.score_gradient(*mix[1:], u_TK, totals_T2, tau)
    A_T1, B_T1 = totals_T2.split(1, -1)
    speaks_TK = mix.spoken_TK == mix.weight_TK
    through_weights = mix.weight_TK * (speaks_TK * mix.score_TK * u_TK - A_T1)
    through_weights = through_weights / (tau * mix.norm_T1)
    gam_T1 = (B_T1 - A_T1 * (mix.weight_TK * mix.relevance_TK).sum(-1, keepdim=True)) / tau
    return mix.spoken_TK * u_TK + through_weights, -gam_T1 / mix.norm_T1.square()
