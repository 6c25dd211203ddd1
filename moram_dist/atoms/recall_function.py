"""Forward and backward of recall, over pairs of a home and a share.

One computation for every placement of the atoms. A memory is split into shares, tokens have a home
rank, and everything is computed for pairs of a home and a share: scores, candidates, partial sums.
A placement says which pairs this rank works on and brings together what belongs to a token. Sums
over shares are taken in the order of shares. So a pair is the same product of the same matrices on
whichever rank, and placements agree to the last bit.

Active atoms come after the frozen ones of the share that they will be frozen into, so freezing
leaves these products, and with them the outputs, as they are. Their gradients need only what the
token's home has, and are computed there.

Backward, with p scores, n their norm, s = p / n, w weights, m 1 for speaking atoms, S the chosen
ones, g the gradient of y, tau the temperature:

    u_j  = v_j . g                          q_j = m_j p_j u_j
    A    = sum_S w_j q_j                    B   = sum_S w_j q_j s_j
    gam  = (B - A sum_S w_j s_j) / tau
    dp_i = [i in S] (m_i w_i u_i + w_i (q_i - A) / (tau n)) - gam / n^2 p_i
    dx   = sum_i dp_i k_i       dk_i = dp_i x       dv_i = m_i w_i p_i g

Shape letters: T tokens, N atoms, R active atoms, D inputs, E outputs, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moram_dist.atoms.bank import Atoms, Bank
from moram_dist.atoms.placement import Placement
from moram_dist.atoms.routing import Mixture, Routing, candidates, in_order, mixture
from moram_dist.comm.partition import largest_share, new_rows, share_size


@dataclass(frozen=True)
class Call:
    """What is asked, but for tensors."""

    bank: Bank
    members: tuple[int, ...]
    placement: Placement
    routing: Routing
    num_frozen: int
    """When it was asked: a bank grows."""

    num_active: int

    @property
    def num_atoms(self) -> int:
        """Frozen and active, of each linear."""
        return self.num_frozen + self.num_active

    @property
    def num_shares(self) -> int:
        """Into how many the memory is split: ranks of its group."""
        return self.bank.group.size

    def frozen(self, *, forward: bool) -> dict[int, list[Atoms]]:
        """Share to the frozen atoms of the linears that are asked."""
        found = self.placement.atoms(self.bank, forward=forward)
        return {share: [atoms[i] for i in self.members] for share, atoms in found.items()}

    def extended(self, frozen: Tensor, active: Tensor, share: int) -> Tensor:
        """A share's frozen rows, and the active ones that will be frozen into it."""
        own = active[new_rows(self.num_frozen, share, self.num_shares)]
        return torch.cat([frozen, own]) if len(own) else frozen

    def places(self, index_TK: Tensor, share: int, num_rows: int) -> tuple[Tensor, Tensor]:
        """Where chosen atoms stand among a share's first rows, and which of them do."""
        row_TK = index_TK.div(self.num_shares, rounding_mode="floor")
        here_TK = (index_TK % self.num_shares == share) & (row_TK < num_rows)
        return row_TK.clamp(max=max(num_rows - 1, 0)), here_TK

    def active_places(self, index_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Where chosen atoms stand among the active ones, and which of them do."""
        return (index_TK - self.num_frozen).clamp(min=0), index_TK >= self.num_frozen


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
        shares = {
            share: [
                (call.extended(k, keys[one], share), call.extended(v, values[one], share))
                for one, (k, v) in enumerate(atoms)
            ]
            for share, atoms in call.frozen(forward=True).items()
        }
        scores = {
            (home, share): [rows[one].to(precise) @ atoms[one][0].to(precise).T for one in linears]
            for home, rows in tokens.items()
            for share, atoms in shares.items()
        }
        offered = {
            (home, share): [
                candidates(
                    score,
                    num_kept=num_kept,
                    share=share,
                    num_shares=call.num_shares,
                    num_atoms=call.num_atoms,
                )
                for score in found
            ]
            for (home, share), found in scores.items()
        }
        mixtures: dict[int, list[Mixture]] = {
            home: [
                mixture(shares_of_one, num_atoms=call.num_atoms, routing=call.routing)
                for shares_of_one in of_linears
            ]
            for home, of_linears in place.candidates(offered).items()
        }
        partial: dict[Any, list[Tensor]] = {}
        for home, mixed in mixtures.items():
            spoken = [mix.spoken_TK * mix.score_TK for mix in mixed]
            for share, atoms in shares.items():
                partial[home, share] = []
                for one in linears:
                    v = atoms[one][1]
                    places = call.places(mixed[one].index_TK, share, len(v))
                    strength = _spread(spoken[one], places, len(v))
                    partial[home, share].append((strength.to(v.dtype) @ v).to(inputs[0].dtype))
        outputs = [
            in_order([part.to(precise) for part in parts]).to(inputs[0].dtype)
            for parts in place.collect(partial, "outputs")
        ]
        if any(ctx.needs_input_grad):
            ctx.call, ctx.homes = call, list(tokens)
            # Frozen atoms are not saved: they are had again from the placement.
            kept = [
                score[:, : share_size(call.num_frozen, share, call.num_shares)].contiguous()
                for (_, share), found in scores.items()
                for score in found
            ]
            ctx.num_scores = len(kept)
            flat = [t for mixed in mixtures.values() for mix in mixed for t in mix]
            ctx.save_for_backward(*tensors, *kept, *flat)
            ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The formulas above."""
        call: Call = ctx.call
        place, tau, linears = call.placement, call.routing.temperature, range(len(call.members))
        saved = iter(ctx.saved_tensors)
        inputs, keys, values = ([next(saved) for _ in linears] for _ in range(3))
        kept = [next(saved) for _ in range(ctx.num_scores)]
        mixtures = {home: [_next_mixture(saved) for _ in linears] for home in ctx.homes}
        dtype = inputs[0].dtype
        precise = torch.promote_types(dtype, torch.float32)
        own = mixtures[place.group.rank]
        upstream = [
            x.new_zeros(len(x), v.shape[1]) if g is None else g
            for g, x, v in zip(grads, inputs, values, strict=True)
        ]

        shares = call.frozen(forward=False)
        gradients = place.tokens(upstream, "gradients")
        pairs = [(home, share) for home in gradients for share in shares]
        scores = {
            pair: kept[i * len(linears) : (i + 1) * len(linears)] for i, pair in enumerate(pairs)
        }
        places: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        u: dict[Any, list[Tensor]] = {}
        sums: dict[Any, list[Tensor]] = {}
        for home, share in pairs:
            places[home, share], u[home, share], sums[home, share] = [], [], []
            for one in linears:
                v, mix = shares[share][one][1], mixtures[home][one]
                here = call.places(mix.index_TK, share, len(v))
                u_TK = _look_up((gradients[home][one].to(v.dtype) @ v.T).to(precise), here)
                places[home, share].append(here)
                u[home, share].append(u_TK)
                sums[home, share].append(_sums(mix, u_TK))
        places_own = [call.active_places(mix.index_TK) for mix in own]
        u_own = [
            _look_up((g.to(v.dtype) @ v.T).to(precise), here)
            for g, v, here in zip(upstream, values, places_own, strict=True)
        ]
        sums_own = [_sums(mix, u_TK) for mix, u_TK in zip(own, u_own, strict=True)]
        totals = {
            home: [in_order(parts) for parts in linear]
            for home, linear in place.sums(sums, sums_own).items()
        }

        partial: dict[Any, list[Tensor]] = {}
        if any(ctx.needs_input_grad[1 : 1 + len(linears)]):
            for home, share in pairs:
                partial[home, share] = []
                for one in linears:
                    k, pair = shares[share][one][0], (home, share)
                    dp = _score_gradient(
                        mixtures[home][one],
                        u[pair][one],
                        totals[home][one],
                        tau,
                        places[pair][one],
                        scores[pair][one],
                    )
                    partial[home, share].append((dp @ k.to(precise)).to(dtype))
        collected = place.collect(partial, "input gradients") if partial else [None] * len(linears)

        dx: list[Tensor | None] = []
        dk: list[Tensor | None] = []
        dv: list[Tensor | None] = []
        for one, (x, k, v, mix) in enumerate(zip(inputs, keys, values, own, strict=True)):
            here = places_own[one]
            score = x.to(precise) @ k.to(precise).T
            dp = _score_gradient(mix, u_own[one], totals[place.group.rank][one], tau, here, score)
            parts = collected[one]
            if parts is None:
                dx.append(None)
            else:
                terms = [*(part.to(precise) for part in parts), dp @ k.to(precise)]
                dx.append(in_order(terms).to(dtype))
            dk.append((dp.T @ x.to(precise)).to(k.dtype))
            strength = _spread(mix.spoken_TK * mix.score_TK, here, len(v))
            dv.append(strength.to(v.dtype).T @ upstream[one].to(v.dtype))
        return (None, *dx, *dk, *dv)


def _spread(numbers_TK: Tensor, places: tuple[Tensor, Tensor], num_rows: int) -> Tensor:
    """(T, num_rows): each number at its atom's place, 0 elsewhere."""
    row_TK, here_TK = places
    out = numbers_TK.new_zeros(len(numbers_TK), num_rows)
    return out.scatter_add_(1, row_TK, numbers_TK * here_TK) if num_rows else out


def _look_up(numbers_TN: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """(T, K): each chosen atom's number, 0 for those that have no place here."""
    row_TK, here_TK = places
    if numbers_TN.shape[1] == 0:
        return numbers_TN.new_zeros(row_TK.shape)
    return numbers_TN.gather(1, row_TK) * here_TK


def _sums(mix: Mixture, u_TK: Tensor) -> Tensor:
    """A and B of the atoms that u belongs to, (T, 2)."""
    wq_TK = mix.spoken_TK * mix.score_TK * u_TK
    return torch.stack([wq_TK.sum(-1), (wq_TK * mix.relevance_TK).sum(-1)], -1)


def _score_gradient(
    mix: Mixture,
    u_TK: Tensor,
    totals_T2: Tensor,
    tau: float,
    places: tuple[Tensor, Tensor],
    score_TN: Tensor,
) -> Tensor:
    """Gradient of some atoms' scores, (T, N), from them, u, and A and B over all atoms."""
    A_T1, B_T1 = totals_T2.split(1, -1)
    q_TK = mix.speaks_TK * mix.score_TK * u_TK
    through_weights = mix.weight_TK * (q_TK - A_T1) / (tau * mix.norm_T1)
    gam_T1 = (B_T1 - A_T1 * (mix.weight_TK * mix.relevance_TK).sum(-1, keepdim=True)) / tau
    dp_TN = score_TN * (-gam_T1 / mix.norm_T1.square())
    row_TK, here_TK = places
    if score_TN.shape[1]:
        dp_TN.scatter_add_(1, row_TK, (mix.spoken_TK * u_TK + through_weights) * here_TK)
    return dp_TN


def _next_mixture(saved: Iterator[Tensor]) -> Mixture:
    return Mixture(*(next(saved) for _ in Mixture._fields))
