"""Forward pass of a recall: one shard, all tokens at it (see ``recall_function``).

Shape letters: T tokens, B = L T tokens of all L queried linears, E outputs, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moram_dist.atoms import native
from moram_dist.atoms.bank import Atoms
from moram_dist.atoms.recall_call import RecallCall
from moram_dist.atoms.recall_saved import Saved, SavedMixture
from moram_dist.atoms.routing import Mixture, candidates, mixture, of_all, summed
from moram_dist.atoms.shard import MIX_ALL, mixed, scored
from moram_dist.comm.partition import largest_shard


def forward(
    call: RecallCall,
    inputs: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    keep: bool,
) -> tuple[list[Tensor], Saved | None]:
    """Outputs of each linear, (T, E), and, if ``keep``, the tensors for the backward pass.

    Args:
        call: the query.
        inputs: of each linear, (T, D).
        keys: active keys of each linear, (R, D).
        values: active values of each linear, (R, E).
        keep: whether there will be a backward pass.
    """
    if call.is_one_operation([*inputs, *keys, *values], keep=keep):
        return _at_once(call, inputs, keys, values, keep=keep)
    dtype = inputs[0].dtype
    # bf16 scores change the top-k set of many tokens, so routing uses at least float32.
    precise = torch.promote_types(dtype, torch.float32)
    tokens = call.placement.tokens(inputs, "tokens")
    atoms = call.atoms(keys, values, forward=True)
    score_BN, mix = _route(call, tokens, atoms, precise)
    strength_BK = mix.spoken_TK * mix.score_TK
    parts = mixed(call.chosen(mix, atoms), strength_BK, [v for _, v in atoms], dtype)
    outputs = [summed(p, precise, dtype) for p in call.placement.collect(parts, "outputs")]
    if not keep:
        return outputs, None
    by_gram = call.grams() is not None
    if by_gram:  # a copy of the active atoms' scores, so that those of all can be freed
        num_active = atoms[0][0].shape[0] - call.first_active
        score_BN = score_BN[:, score_BN.shape[1] - num_active :].contiguous()
    among = not by_gram and call.num_shards == 1
    return outputs, Saved(
        inputs=inputs,
        keys=keys,
        values=values,
        score_BN=score_BN,
        of_mixture=SavedMixture.of(mix, call.num_atoms, scores_are_saved=among),
    )


def _at_once(
    call: RecallCall,
    inputs: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    keep: bool,
) -> tuple[list[Tensor], Saved | None]:
    """``forward`` by one operation."""
    atoms = call.atoms(keys, values, forward=True)
    outputs, score_BN, index_BK, norm_B1 = native.recall(
        inputs,
        [k for k, _ in atoms],
        [v for _, v in atoms],
        top_k=call.routing.top_k,
        temperature=call.routing.temperature,
        threshold=call.routing.threshold,
        mix_all=MIX_ALL["cpu"],
    )
    if not keep:
        return outputs, None
    return outputs, Saved(
        inputs=inputs,
        keys=keys,
        values=values,
        score_BN=score_BN,
        of_mixture=SavedMixture.of_atoms(index_BK, norm_B1, call.num_atoms),
    )


def _route(
    call: RecallCall, tokens: list[Tensor], atoms: list[Atoms], precise: torch.dtype
) -> tuple[Tensor, Mixture]:
    """Scores of the shard's atoms, and the mixture of the tokens at it.

    With images, the scores of frozen atoms are left out, and their best are found by a scan.
    """
    images = call.images()
    first = call.first_active if images else 0
    score_BN = scored(tokens, [k[first:] if first else k for k, _ in atoms], precise)
    if call.num_shards == 1 and not images:
        mix = of_all(score_BN, call.routing)
    else:
        offered = candidates(
            score_BN,
            num_kept=min(call.routing.top_k, largest_shard(call.num_atoms, call.num_shards)),
            shard=call.placement.shard,
            num_shards=call.num_shards,
            num_atoms=call.num_atoms,
            first=first,
        )
        offers = call.placement.candidates(offered)
        if images:
            offers.insert(0, call.scanned(images, [x.to(precise) for x in tokens], atoms))
        mix = mixture(offers, num_atoms=call.num_atoms, routing=call.routing)
    if call.show is not None:
        num_linears = len(call.members)
        call.show(Mixture(*(call.placement.own(numbers, num_linears) for numbers in mix)))
    return score_BN, mix
