"""Forward and backward of recall, over pairs of a home and a share.

One computation for every placement of the atoms. A memory is split into shares, tokens have a home
rank, and everything is computed for pairs of a home and a share: scores, candidates, partial sums.
A placement says which pairs this rank works on and brings together what belongs to a token. Sums
over shares are taken in the order of shares. So a pair is the same product of the same matrices on
whichever rank, and placements agree to the last bit (but for K^T K, below).

Active atoms come after the frozen ones of the share that they will be frozen into, so freezing
leaves these products, and with them the outputs, as they are. The gradients of their scores go to
the token's home, which has what turns them into gradients of keys and values.

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

Shape letters: T tokens, N atoms, R active atoms, D inputs, E outputs, K atoms kept per token.
"""

from __future__ import annotations

import itertools
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
    Candidates,
    Mixture,
    Routing,
    candidates,
    in_order,
    mixture,
    weigh,
)
from moram_dist.atoms.scan import scan
from moram_dist.atoms.share import Chosen, add, mixed, products, scored, spread
from moram_dist.comm.partition import largest_share, new_rows, share_size


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is asked, but for tensors."""

    bank: Bank
    members: tuple[int, ...]
    placement: Placement
    routing: Routing
    num_frozen: int
    """When it was asked: a bank grows."""

    num_active: int

    recorded: bool
    """Whether there may be a backward pass."""

    @property
    def num_atoms(self) -> int:
        """Frozen and active, of each linear."""
        return self.num_frozen + self.num_active

    @property
    def num_shares(self) -> int:
        """Into how many the memory is split: ranks of its group."""
        return self.bank.group.size

    def shares(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], *, forward: bool
    ) -> dict[int, list[Atoms]]:
        """Share to the atoms of the linears that are asked, frozen ones before active ones."""
        found = self.placement.atoms(self.bank, forward=forward)
        out = {}
        for share, flat_F in found.items():
            own = self.active_rows(share)
            active = {
                i: (k[own], v[own]) for i, k, v in zip(self.members, keys, values, strict=True)
            }
            out[share] = [*self.bank.joined(flat_F, share, active).values()]
        return out

    def active_rows(self, share: int) -> slice:
        """Which of the active atoms will be frozen into a share."""
        return new_rows(self.num_frozen, share, self.num_shares)

    def chosen(self, mix: Mixture, num_rows: Mapping[int, int]) -> dict[int, Chosen]:
        """Share to where the atoms of a mixture stand among its first ``num_rows`` rows."""
        index_TK = mix.index_TK
        if num_rows == {0: self.num_atoms}:
            return {0: Chosen(index_TK, None)}
        row_TK = index_TK.div(self.num_shares, rounding_mode="floor")
        share_TK = index_TK % self.num_shares
        return {
            share: Chosen(row_TK.clamp(max=max(rows - 1, 0)), (share_TK == share) & (row_TK < rows))
            for share, rows in num_rows.items()
        }

    def frozen_keys(self, shares: Mapping[int, Sequence[Atoms]], one: int) -> dict[int, Tensor]:
        """Share to the keys of its frozen atoms, of one of the linears that are asked."""
        return {share: atoms[one][0][: self.first_active(share)] for share, atoms in shares.items()}

    def grams(self) -> list[Tensor | None]:
        """K^T K of the frozen atoms of each linear that is asked, (D, D), where it is at hand."""
        return [self.placement.gram(self.bank, i) for i in self.members]

    def keeps_all(self, gram: Tensor | None) -> bool:
        """Whether all scores of a linear are saved, so those of chosen atoms are among them."""
        return gram is None and self.num_shares == 1

    def first_active(self, share: int) -> int:
        """The row of a share from which its atoms are active."""
        return share_size(self.num_frozen, share, self.num_shares)

    def packed(self, active_TR: Tensor) -> Tensor:
        """Columns of a share's active atoms, as many for every share."""
        room = largest_share(self.num_active, self.num_shares)
        return F.pad(active_TR, (0, room - active_TR.shape[1])).contiguous()

    def unpacked(self, shares: Sequence[Tensor]) -> Tensor:
        """From what ``packed`` made of each share: a column for each active atom."""
        if self.num_shares == 1:
            return shares[0]
        out_TR = shares[0].new_empty(len(shares[0]), self.num_active)
        for share, packed in enumerate(shares):
            columns = out_TR[:, self.active_rows(share)]
            columns.copy_(packed[:, : columns.shape[1]])
        return out_TR

    def active_strength(self, mix: Mixture) -> Tensor:
        """How strongly each active atom answers each token, (T, R)."""
        row_TK = mix.index_TK - self.num_frozen
        active = Chosen(row_TK.clamp(min=0), row_TK >= 0)
        strength_TK = mix.spoken_TK * mix.score_TK
        return spread(active, strength_TK, self.num_active, strength_TK.dtype)


class Recall(torch.autograd.Function):
    """``recall_together`` on flat tokens: for each linear (T, D), keys, values to (T, E)."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``tensors``: all inputs, then all active keys, then all active values."""
        place, linears = call.placement, range(len(call.members))
        inputs, keys, values = (tensors[k * len(linears) :][: len(linears)] for k in range(3))
        precise = torch.promote_types(inputs[0].dtype, torch.float32)
        # bf16 scores change the top-k set of many tokens, so routing never sees less than float32.
        num_kept = min(call.routing.top_k, largest_share(call.num_atoms, call.num_shares))
        tokens = place.tokens(inputs, "tokens")
        shares = call.shares(keys, values, forward=True)
        images = [place.image(call.bank, i) for i in call.members]
        scores: dict[Any, list[Tensor]] = {}
        offered: dict[Any, list[Candidates]] = {}
        for home, rows in tokens.items():
            for share, atoms in shares.items():
                pair = home, share
                # Atoms before the first are scanned: this rank has all shares of them.
                starts = [call.first_active(share) if image else 0 for image in images]
                scores[pair] = [
                    scored(x, k[first:], precise)
                    for x, (k, _), first in zip(rows, atoms, starts, strict=True)
                ]
                offered[pair] = [
                    candidates(
                        score,
                        num_kept=num_kept,
                        share=share,
                        num_shares=call.num_shares,
                        num_atoms=call.num_atoms,
                        first=first,
                    )
                    for score, first in zip(scores[pair], starts, strict=True)
                ]
        mixtures: dict[int, list[Mixture]] = {}
        for home, of_linears in place.candidates(offered).items():
            for one, image in enumerate(images):
                if image is not None:
                    x, keys_of = tokens[home][one], call.frozen_keys(shares, one)
                    most = min(call.routing.top_k, call.num_frozen)
                    found, _ = scan(x.to(precise), image, keys_of, num_kept=most)
                    of_linears[one].insert(0, found)
            mixtures[home] = [
                mixture(offers, num_atoms=call.num_atoms, routing=call.routing)
                for offers in of_linears
            ]
        partial: dict[Any, list[Tensor]] = {}
        for home, mixtures_of in mixtures.items():
            strengths = [mix.spoken_TK * mix.score_TK for mix in mixtures_of]
            chosen = [call.chosen(mix, _rows_of(shares, i)) for i, mix in enumerate(mixtures_of)]
            for share, atoms in shares.items():
                partial[home, share] = [
                    mixed(here[share], strength, v).to(inputs[0].dtype)
                    for here, strength, (_, v) in zip(chosen, strengths, atoms, strict=True)
                ]
        outputs = [
            in_order([part.to(precise) for part in parts]).to(inputs[0].dtype)
            for parts in place.collect(partial, "outputs")
        ]
        if call.recorded and any(ctx.needs_input_grad):
            ctx.call, ctx.homes = call, list(tokens)
            # Atoms of the bank are not saved: they are had again from the placement.
            grams = call.grams()
            kept = [
                score if gram is None else score[:, score.shape[1] - num_new :].contiguous()
                for (_, share), found in scores.items()
                for num_new in [len(shares[share][0][0]) - call.first_active(share)]
                for score, gram in zip(found, grams, strict=True)
            ]
            ctx.num_scores = len(kept)
            indices = _smallest_integer(call.num_atoms)
            flat = [
                t
                for mixtures_of in mixtures.values()
                for mix, gram in zip(mixtures_of, grams, strict=True)
                for t in (
                    mix.index_TK.to(indices),
                    None if call.keeps_all(gram) else mix.score_TK,
                    mix.norm_T1,
                )
            ]
            ctx.save_for_backward(*tensors, *kept, *flat)
            ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The formulas above."""
        call: Call = ctx.call
        place, linears = call.placement, range(len(call.members))
        saved = iter(ctx.saved_tensors)
        inputs, keys, values = ([next(saved) for _ in linears] for _ in range(3))
        kept = [next(saved) for _ in range(ctx.num_scores)]
        mixtures: dict[int, list[Mixture]] = {home: [] for home in ctx.homes}
        for home, one in itertools.product(ctx.homes, linears):
            index_TK, score_TK, norm_T1 = next(saved).int(), next(saved), next(saved)
            if score_TK is None:  # the only home's, of the only share
                score_TK = kept[one].gather(1, index_TK.long())
            mixtures[home].append(weigh(index_TK, score_TK, norm_T1, call.routing))
        dtype = inputs[0].dtype
        precise = torch.promote_types(dtype, torch.float32)
        upstream = [
            x.new_zeros(len(x), v.shape[1]) if g is None else g
            for g, x, v in zip(grads, inputs, values, strict=True)
        ]

        shares = call.shares(keys, values, forward=False)
        gradients = place.tokens(upstream, "gradients")
        pairs = [(home, share) for home in gradients for share in shares]
        scores = {
            pair: kept[i * len(linears) : (i + 1) * len(linears)] for i, pair in enumerate(pairs)
        }
        chosen_of = {
            home: [call.chosen(mix, _rows_of(shares, i)) for i, mix in enumerate(mixtures[home])]
            for home in gradients
        }
        chosen = {(home, share): [here[share] for here in chosen_of[home]] for home, share in pairs}
        u = {
            (home, share): [
                products(gradients[home][one], shares[share][one][1], here, precise)
                for one, here in enumerate(chosen[home, share])
            ]
            for home, share in pairs
        }
        sums = {
            (home, share): [
                _sums(mix, u_TK) for mix, u_TK in zip(mixtures[home], u[home, share], strict=True)
            ]
            for home, share in pairs
        }
        totals = {
            home: [in_order(parts) for parts in linear] for home, linear in place.sums(sums).items()
        }

        # What goes home: for each linear the input's gradient, then the active scores' gradients.
        wanted = any(ctx.needs_input_grad[1 : 1 + len(linears)])
        grams = call.grams()
        partial: dict[Any, list[Tensor]] = {}
        through_norm: dict[int, list[Tensor]] = {home: [] for home in gradients}
        for home, share in pairs:
            gone: list[Tensor] = []
            active: list[Tensor] = []
            first = call.first_active(share)
            for one in linears:
                k, pair = shares[share][one][0].to(precise), (home, share)
                direct_TK, each_T1 = _score_gradient(
                    mixtures[home][one],
                    u[pair][one],
                    totals[home][one],
                    call.routing.temperature,
                )
                through_norm[home].append(each_T1)
                dp_TN = scores[pair][one] * each_T1  # of the share's atoms, or its active ones
                here, k_N = chosen[pair][one], k
                if grams[one] is not None:
                    here, k_N = here.since(first), k[first:]
                add(here, direct_TK, dp_TN)
                if wanted:
                    part = dp_TN @ k_N
                    if grams[one] is not None:
                        part += mixed(chosen[pair][one].before(first), direct_TK, k)
                    gone.append(part.to(dtype))
                active_TR = dp_TN if grams[one] is not None else dp_TN[:, first:]
                active.append(call.packed(active_TR).view(dtype))
            partial[home, share] = gone + active
        collected = place.collect(partial, "input gradients")

        dx: list[Tensor | None] = [None] * len(linears)
        if wanted:
            for one in linears:
                terms = [part.to(precise) for part in collected[one]]
                gram = grams[one]
                if gram is not None:
                    each_T1 = through_norm[place.group.rank][one]
                    terms.append((inputs[one].to(precise) @ gram.to(precise)) * each_T1)
                dx[one] = in_order(terms).to(dtype)
        own = mixtures[place.group.rank]
        dk, dv = [], []
        for one, (x, k, v, mix) in enumerate(zip(inputs, keys, values, own, strict=True)):
            parts = collected[len(collected) - len(linears) + one]
            dp_TR = call.unpacked([part.contiguous().view(precise) for part in parts])
            dk.append((dp_TR.T @ x.to(precise)).to(k.dtype))
            strength_TR = call.active_strength(mix)
            dv.append(strength_TR.to(v.dtype).T @ upstream[one].to(v.dtype))
        return (None, *dx, *dk, *dv)


def _rows_of(shares: Mapping[int, Sequence[Atoms]], one: int) -> dict[int, int]:
    """Share to how many atoms it has, of one of the linears that are asked."""
    return {share: len(atoms[one][1]) for share, atoms in shares.items()}


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
