"""Backward pass of a recall: one shard, all tokens at it (see ``recall_function``).

With scores p, their norm n, relevance s = p / n, weights w, m = 0 for silenced atoms and else 1,
the set S of chosen atoms, the gradient g of y, and the temperature tau:

    u_j  = v_j . g                          q_j = m_j p_j u_j
    A    = sum_S w_j q_j                    B   = sum_S w_j q_j s_j
    gam  = (B - A sum_S w_j s_j) / tau
    dp_i = [i in S] (m_i w_i u_i + w_i (q_i - A) / (tau n)) - gam / n^2 p_i
    dx   = sum_i dp_i k_i       dk_i = dp_i x       dv_i = m_i w_i p_i g

The last term of dp reaches every atom, but it reaches dx only through sum_i p_i k_i = K^T K x. If a
rank has K^T K of more than D frozen atoms, it uses that product instead of one with all of them,
and the forward pass saves the scores of active atoms only.

Shape letters: T tokens, B = L T tokens of all L queried linears, N atoms, R active atoms, D inputs,
E outputs, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moram_dist.atoms import native
from moram_dist.atoms.backend import backend
from moram_dist.atoms.bank import Atoms
from moram_dist.atoms.recall_call import RecallCall
from moram_dist.atoms.recall_saved import Saved
from moram_dist.atoms.routing import Mixture, in_order, summed
from moram_dist.atoms.shard import MULTIPLY_ALL, Chosen, add, each, mixed, product, products


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Gradients of each linear."""

    inputs: Sequence[Tensor | None]
    """(T, D); None if not wanted."""

    keys: Sequence[Tensor]
    """Of active keys, (R, D)."""

    values: Sequence[Tensor]
    """Of active values, (R, E)."""


def backward(
    call: RecallCall, saved: Saved, grads: Sequence[Tensor | None], *, wants_inputs: bool
) -> Gradients:
    """Compute the gradients by the formulas above.

    Args:
        call: as in the forward pass.
        saved: from the forward pass.
        grads: of each linear's outputs, (T, E); None if an output was not used.
        wants_inputs: whether to compute the gradients of inputs.
    """
    upstream = [
        x.new_zeros(x.shape[0], v.shape[1]) if g is None else g
        for g, x, v in zip(grads, saved.inputs, saved.values, strict=True)
    ]
    if call.is_one_operation([*saved.inputs, *saved.keys, *saved.values], keep=True):
        return _at_once(call, saved, upstream, wants_inputs=wants_inputs)
    precise = torch.promote_types(saved.inputs[0].dtype, torch.float32)
    mix = saved.mixture(call.routing)
    atoms = call.atoms(saved.keys, saved.values, forward=False)
    gradients = call.placement.tokens(upstream, "gradients")
    chosen = call.chosen(mix, atoms)
    u_BK = products(gradients, [v for _, v in atoms], chosen, precise)
    sums = backend(u_BK).sums(mix.score_TK, mix.relevance_TK, mix.spoken_TK, u_BK)
    totals_B2 = in_order(call.placement.sums(sums))
    direct_BK, through_norm_B1 = backend(u_BK).score_gradient(
        *mix[1:], u_BK, totals_B2, call.routing.temperature
    )
    grams = call.grams()
    parts = _parts(
        call,
        atoms,
        chosen,
        saved.score_BN * through_norm_B1,
        direct_BK,
        by_gram=grams is not None,
        wants_inputs=wants_inputs,
        dtype=saved.inputs[0].dtype,
    )
    collected = call.placement.collect(parts, "input gradients")
    num_linears = len(call.members)
    return Gradients(
        inputs=_of_inputs(saved.inputs, collected[:num_linears], grams, through_norm_B1)
        if wants_inputs
        else [None] * num_linears,
        keys=_of_keys(call, saved, collected[-num_linears:], precise),
        values=_of_values(call, saved, mix, upstream),
    )


def _at_once(
    call: RecallCall, saved: Saved, upstream: Sequence[Tensor], *, wants_inputs: bool
) -> Gradients:
    """``backward`` by one operation."""
    atoms = call.atoms(saved.keys, saved.values, forward=False)
    mix = saved.of_mixture
    inputs, keys, values = native.recall_gradients(
        saved.inputs,
        [k for k, _ in atoms],
        [v for _, v in atoms],
        upstream,
        saved.score_BN,
        mix.index_BK.int(),
        mix.norm_B1,
        first=call.first_active,
        temperature=call.routing.temperature,
        threshold=call.routing.threshold,
        multiply_all=MULTIPLY_ALL["cpu"],
        wants_inputs=wants_inputs,
    )
    return Gradients(inputs=inputs or [None] * len(values), keys=keys, values=values)


def _parts(
    call: RecallCall,
    atoms: Sequence[Atoms],
    chosen: Chosen,
    dp_BN: Tensor,
    direct_BK: Tensor,
    *,
    by_gram: bool,
    wants_inputs: bool,
    dtype: torch.dtype,
) -> list[Tensor]:
    """What the tokens' owners need: input gradients of each linear, then of its active scores.

    Args:
        call: the query.
        atoms: the shard's atoms of each linear.
        chosen: rows of the mixture's atoms in the shard.
        dp_BN: gradient of scores through their norm: of all atoms of the shard, or of its active
            ones if K^T K is used for the frozen ones. Updated in place to the full gradient.
        direct_BK: the remaining gradient of the chosen atoms' scores.
        by_gram: whether K^T K is used.
        wants_inputs: whether to compute input gradients.
        dtype: of the parts.
    """
    num_linears, first = len(call.members), call.first_active
    add(chosen.since(first) if by_gram else chosen, direct_BK, dp_BN)
    of_inputs: list[Tensor] = []
    if wants_inputs:
        keys = [k for k, _ in atoms]
        begin = first if by_gram else 0
        pairs = zip(each(dp_BN, num_linears), keys, strict=True)
        # With K^T K, other parts are added first.
        kept = dp_BN.dtype if by_gram else dtype
        of_inputs = [product(dp_TN, k[begin:], dp_BN.dtype).to(kept) for dp_TN, k in pairs]
        if by_gram:
            frozen = mixed(chosen.before(first), direct_BK, keys, dp_BN.dtype)
            of_inputs = [part.add_(other) for part, other in zip(of_inputs, frozen, strict=True)]
    active_BR = dp_BN if by_gram else dp_BN[:, first:]
    packed = each(call.packed(active_BR), num_linears)
    return [part.to(dtype) for part in of_inputs] + [part.view(dtype) for part in packed]


def _of_inputs(
    inputs: Sequence[Tensor],
    collected: Sequence[Tensor],
    grams: Sequence[Tensor] | None,
    through_norm_B1: Tensor,
) -> list[Tensor | None]:
    norms = each(through_norm_B1, len(inputs))
    precise = through_norm_B1.dtype
    out: list[Tensor | None] = []
    for one, (x_TD, parts_PTD) in enumerate(zip(inputs, collected, strict=True)):
        if grams is None:
            out.append(summed(parts_PTD, precise, x_TD.dtype))
            continue
        through_norm = product(x_TD, grams[one], precise) * norms[one]
        out.append((parts_PTD[0].to(precise) + through_norm).to(x_TD.dtype))
    return out


def _of_keys(
    call: RecallCall, saved: Saved, collected: Sequence[Tensor], precise: torch.dtype
) -> list[Tensor]:
    out = []
    for x_TD, k_RD, parts in zip(saved.inputs, saved.keys, collected, strict=True):
        dp_TR = call.unpacked(parts.contiguous().view(precise))
        out.append(product(dp_TR.T, x_TD, precise).to(k_RD.dtype))
    return out


def _of_values(
    call: RecallCall, saved: Saved, mix: Mixture, upstream: Sequence[Tensor]
) -> list[Tensor]:
    mine = Mixture(*(call.placement.own(numbers, len(saved.values)) for numbers in mix))
    strengths = each(call.active_strength(mine), len(saved.values))
    return [
        strength_TR.to(v_RE.dtype).T @ g_TE.to(v_RE.dtype)
        for strength_TR, v_RE, g_TE in zip(strengths, saved.values, upstream, strict=True)
    ]
