"""Forward pass of a recall, over pairs of an owner and a shard (see ``recall_function``).

Shape letters: T tokens, B = L T tokens of all L queried linears, E outputs, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moram_dist.atoms import native
from moram_dist.atoms.bank import Atoms
from moram_dist.atoms.placement import Pair
from moram_dist.atoms.recall_call import RecallCall
from moram_dist.atoms.recall_saved import Saved, SavedMixture
from moram_dist.atoms.routing import Mixture, ShardCandidates, candidates, mixture, of_all, summed
from moram_dist.atoms.shard import MIX_ALL, mixed, scored
from moram_dist.comm.partition import largest_shard

Shards = dict[int, list[Atoms]]


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
    shards = call.shards(keys, values, forward=True)
    scores, mixtures = _route(call, tokens, shards, precise)
    partial: dict[Pair, list[Tensor]] = {}
    for owner, mix in mixtures.items():
        strength_BK = mix.spoken_TK * mix.score_TK
        chosen = call.chosen(mix, shards)
        for shard, atoms in shards.items():
            partial[owner, shard] = mixed(chosen[shard], strength_BK, [v for _, v in atoms], dtype)
    outputs = [summed(p, precise, dtype) for p in call.placement.collect(partial, "outputs")]
    if not keep:
        return outputs, None
    by_gram = call.grams() is not None
    among = not by_gram and call.num_shards == 1
    return outputs, Saved(
        inputs=inputs,
        keys=keys,
        values=values,
        scores=_of_active_atoms(call, scores, shards) if by_gram else scores,
        mixtures={
            owner: SavedMixture.of(mix, call.num_atoms, scores_are_saved=among)
            for owner, mix in mixtures.items()
        },
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
    ((shard, atoms),) = call.shards(keys, values, forward=True).items()
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
    own = call.placement.group.rank
    return outputs, Saved(
        inputs=inputs,
        keys=keys,
        values=values,
        scores={(own, shard): score_BN},
        mixtures={own: SavedMixture.of_atoms(index_BK, norm_B1, call.num_atoms)},
    )


def _route(
    call: RecallCall, tokens: dict[int, list[Tensor]], shards: Shards, precise: torch.dtype
) -> tuple[dict[Pair, Tensor], dict[int, Mixture]]:
    """Scores of each pair, and the mixture of each owner's tokens."""
    images = call.images()
    if call.num_shards == 1 and not images:
        ((owner, rows),), ((shard, atoms),) = tokens.items(), shards.items()
        score_BN = scored(rows, [k for k, _ in atoms], precise)
        mix = of_all(score_BN, call.routing)
        _show(call, mix)
        return {(owner, shard): score_BN}, {owner: mix}
    num_linears = len(call.members)
    num_kept = min(call.routing.top_k, largest_shard(call.num_atoms, call.num_shards))
    scores: dict[Pair, Tensor] = {}
    offered: dict[Pair, ShardCandidates] = {}
    for owner, rows in tokens.items():
        for shard, atoms in shards.items():
            # With images, frozen atoms (rows before ``first``) are scanned below.
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
    for owner, offers in call.placement.candidates(offered, num_linears).items():
        if images:
            asked = [x.to(precise) for x in tokens[owner]]
            offers.insert(0, call.scanned(images, asked, shards))
        mixtures[owner] = mixture(offers, num_atoms=call.num_atoms, routing=call.routing)
    _show(call, mixtures[call.placement.group.rank])
    return scores, mixtures


def _show(call: RecallCall, mix: Mixture) -> None:
    if call.show is not None:
        call.show(mix)


def _of_active_atoms(
    call: RecallCall, scores: dict[Pair, Tensor], shards: Shards
) -> dict[Pair, Tensor]:
    """Copies of active atoms' scores, so that the scores of all atoms can be freed."""
    kept = {}
    for (owner, shard), score_BN in scores.items():
        num_active = shards[shard][0][0].shape[0] - call.first_active(shard)
        kept[owner, shard] = score_BN[:, score_BN.shape[1] - num_active :].contiguous()
    return kept
