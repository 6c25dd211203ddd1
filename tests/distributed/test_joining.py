"""DeepSpeed's own group of all ranks waits as long as ours."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from moram_dist.comm.joining import join
from tests.helpers.ranks import run_ranks


def limit_of_deepspeed(rank: int, world_size: int) -> None:
    from deepspeed.utils import groups

    def limit() -> timedelta:
        group = groups._get_data_parallel_group()
        assert dist.get_world_size(group) == world_size
        return group._get_backend(torch.device("cpu")).options._timeout

    ours = groups._WORLD_GROUP
    assert limit() is not None and groups._WORLD_GROUP is ours  # made when joining
    groups._WORLD_GROUP = None
    join(timeout_s=1234.0)
    assert limit() == timedelta(seconds=1234)


@pytest.mark.parametrize("world_size", [1, 2])
def test_deepspeeds_group_waits_as_long(world_size, tmp_path):
    run_ranks(limit_of_deepspeed, world_size=world_size, tmp_path=tmp_path)
