"""Recall: a memory's answer to a token, the weighted sum of the values of the atoms it activates.

Shape letters: N atoms, R active atoms, D inputs, E outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moram_dist.atoms import native
from moram_dist.atoms.backend import backend
from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Placement, Resident
from moram_dist.atoms.recall_call import Mask, RecallCall
from moram_dist.atoms.recall_function import RecallFunction
from moram_dist.atoms.routing import Mixture, Routing
from moram_dist.atoms.scan import SOME_TOKENS
from moram_dist.atoms.shard import MIX_ALL
from moram_dist.comm.collectives import AtomGroup

AT_ONCE = 64
"""Tokens that one operation answers on a CPU; with more, calls cost little beside products."""


def recall(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    top_k: int,
    temperature: float,
    threshold: float = 0.0,
) -> Tensor:
    """sum_i w_i p_i v_i: scores p = K x, weights w of their relevance, over all N atoms.

    Args:
        x: tokens, (..., D).
        keys: one key per row, (N, D).
        values: one value per row, (N, E).
        top_k: atoms that answer a token; for this and the next two see ``routing.mixture``.
        temperature: of the softmax over their relevance.
        threshold: atoms with a relevance below this are silenced; 0 silences none.

    Returns:
        (..., E) in the dtype of ``x``, differentiable once in all three. N = 0 gives zeros. Scores
        and routing are in float32, or in float64 if ``x`` is.

    Raises:
        ValueError: shapes do not fit, top_k < 1, or temperature <= 0.

    Source: Lu et al. 2026, arXiv:2506.21035, the update of one adapted linear layer.
    """
    if (
        keys.ndim != 2
        or values.ndim != 2
        or len(keys) != len(values)
        or keys.shape[1] != x.shape[-1]
    ):
        raise ValueError(
            f"need x (..., D), keys (N, D), values (N, E); got {tuple(x.shape)}, "
            f"{tuple(keys.shape)}, {tuple(values.shape)}"
        )
    bank = Bank([(keys.shape[1], values.shape[1])], AtomGroup(), like=keys)
    routing = Routing(top_k=top_k, temperature=temperature, threshold=threshold)
    return recall_together(bank, Resident(bank.group), routing, [x], [keys], [values])[0]


def recall_together(
    bank: Bank,
    placement: Placement,
    routing: Routing,
    inputs: Sequence[Tensor],
    active_keys: Sequence[Tensor] = (),
    active_values: Sequence[Tensor] = (),
    members: Sequence[int] = (0,),
    num_frozen: int | None = None,
    masks: Sequence[Mask | None] = (),
    show: Callable[[Mixture], None] | None = None,
) -> list[Tensor]:
    """``recall`` for several linears of a bank, over its frozen atoms followed by active ones.

    All ranks of the bank's group must call it together, each with its own tokens.

    Args:
        bank: frozen atoms of the linears, and perhaps of others.
        placement: where their atoms and tokens meet.
        routing: how atoms are chosen.
        inputs: one per linear, (..., D); linears that share an input pass the same object.
        active_keys: one per linear, (R, D), the same on all ranks; none if there are none.
        active_values: one per linear, (R, E), the same on all ranks.
        members: indices of these linears in the bank.
        num_frozen: query only the first ``num_frozen`` frozen atoms, with R = 0; default: all.
        masks: one per linear: drops elements of its input as rows (T, D), the same ones at each
            call; None or none at all: nothing is dropped.
        show: gets the mixture of this rank's tokens, stacked as in ``shard``; not called for N = 0.

    Returns:
        One per linear, (..., E).
    """
    num_frozen = bank.num_atoms if num_frozen is None else num_frozen
    num_active = len(active_keys[0]) if active_keys else 0
    if num_frozen + num_active == 0:
        return [
            x.new_zeros(*x.shape[:-1], bank.shapes[i][1])
            for x, i in zip(inputs, members, strict=True)
        ]
    recorded = torch.is_grad_enabled()
    plain = not (recorded or num_active or masks or show)
    if plain and all(x is inputs[0] for x in inputs):
        answers = recall_at_once(bank, placement, routing, inputs[0], members, num_frozen)
        if answers is not None:
            return answers
    call = RecallCall(
        bank=bank,
        members=tuple(members),
        placement=placement,
        routing=routing,
        num_frozen=num_frozen,
        num_active=num_active,
        recorded=recorded,
        masks=tuple(masks),
        show=show,
    )
    if not active_keys:
        sizes = [bank.shapes[i] for i in members]
        active_keys = [bank.shard_F.new_empty(0, d) for d, _ in sizes]
        active_values = [bank.shard_F.new_empty(0, e) for _, e in sizes]
    rows = {id(x): x.reshape(-1, x.shape[-1]) for x in inputs}
    found = RecallFunction.apply(call, *(rows[id(x)] for x in inputs), *active_keys, *active_values)
    return [y.view(*x.shape[:-1], y.shape[1]) for x, y in zip(inputs, found, strict=True)]


def recall_at_once(
    bank: Bank,
    placement: Placement,
    routing: Routing,
    x: Tensor,
    members: Sequence[int],
    num_frozen: int,
) -> list[Tensor] | None:
    """Answers of few tokens by one operation on a CPU, as in decoding; None if it does not serve.

    Without gradients, over frozen atoms that are all here, for linears that share their input. For
    the arguments see ``recall_together``.
    """
    num_tokens = x.numel() // x.shape[-1]
    if (
        num_tokens > AT_ONCE
        or not num_frozen
        or not isinstance(placement, Resident)
        or backend(x) is not native
        or (num_tokens >= SOME_TOKENS and placement.images(bank, members) is not None)
    ):
        return None
    keys, values = bank.rows()
    if keys[0].dtype != x.dtype:
        return None
    if len(members) < len(keys):
        keys, values = [keys[i] for i in members], [values[i] for i in members]
    return native.answers(
        x,
        keys,
        values,
        num_frozen,
        top_k=routing.top_k,
        temperature=routing.temperature,
        threshold=routing.threshold,
        mix_all=MIX_ALL["cpu"],
    )
