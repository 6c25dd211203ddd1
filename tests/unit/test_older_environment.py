"""What an older torch, or a machine without MLflow, does not have."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch
import torch.distributed as dist

from moram_dist.comm.collectives import AtomGroup
from moram_dist.train.run_dir import environment


class Work:
    def wait(self):
        pass


@pytest.mark.parametrize("name", ["all_gather_single", "all_gather_into_tensor"])
def test_atoms_are_gathered_by_what_torch_has(name, monkeypatch):
    """all_gather_single is torch 2.13's name, all_gather_into_tensor that of all before."""
    asked = []

    def gather(out, mine, group, async_op):
        asked.append((group, async_op))
        out.copy_(torch.cat([mine, mine + 10]))  # the other rank's are larger by 10
        return Work()

    for each in ("all_gather_single", "all_gather_into_tensor"):
        monkeypatch.delattr(dist, each, raising=False)
    monkeypatch.setattr(dist, name, gather, raising=False)
    group = AtomGroup(0, 2, "the group")
    mine = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(group.all_gather(mine, "atoms"), torch.stack([mine, mine + 10]))
    assert asked == [("the group", True)]


def test_a_run_is_described_without_mlflow(monkeypatch):
    version = metadata.version

    def without(name):
        if name == "mlflow":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    packages = environment(1)["packages"]
    assert packages["mlflow"] is None and packages["torch"] == version("torch")
