"""Shards are padded with whatever memory held, and that is no weight of the base."""

from __future__ import annotations

import pytest
from torch import nn

from moram_dist.comm import env
from moram_dist.models.probe import check_finite
from moram_dist.registry import InputError


def check_padding_is_no_weight(module: nn.Module) -> None:
    """Of a model that ZeRO-3 has sharded. All ranks call it; weights are spoilt afterwards."""
    check_finite(module, "x")
    shards = [
        (parameter.ds_tensor, parameter.ds_tensor.numel() * env.world_size() - parameter.ds_numel)
        for parameter in module.parameters()
    ]
    padded = [(shard, excess) for shard, excess in shards if 0 < excess < shard.numel()]
    is_last = env.rank() == env.world_size() - 1
    for shard, excess in padded if is_last else ():
        shard[-excess:] = float("nan")
    check_finite(module, "x")
    if env.world_size() == 3:
        assert padded
        if is_last:
            shard, excess = padded[-1]
            shard[-excess - 1] = float("nan")
        with pytest.raises(InputError, match="holds NaN or infinity"):
            check_finite(module, "x")
