"""A training pass never waits for the device: nothing is read back, and copies come first."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from launch.planning.rehearsal import Ranks, Rehearsal
from moram_dist.config_io import build
from moram_dist.data.encode import Encoded
from moram_dist.families import FAMILIES
from tests.helpers.tiny import save_tiny_model

aten = torch.ops.aten


class Copies(TorchDispatchMode):
    """Records the places of copies to the device, and of computations with a model's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[int] = []
        self.computed: list[int] = []
        self._count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._count += 1
        out = func(*args, **(kwargs or {}))
        given, made = (
            {t.device.type for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}
            for tree in (args, out)
        )
        if "cpu" in given and "meta" in made:
            self.copies.append(self._count)
        if func in (aten.embedding.default, aten.mm.default):
            self.computed.append(self._count)
        return out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_training_pass(model, frozen, monkeypatch):
    """On the meta device, which has no numbers and so refuses every look at them."""
    monkeypatch.setattr("launch.planning.meter.ASKED", None)  # plans of other models answer looks
    settings = {"model": str(model), "dtype": "fp32", "top_k": "4", "dropout": "0.1"}
    config = build(settings | {"target_modules": "all-linear"})
    rehearsal = Rehearsal(config, Ranks(1, 1, "cpu", 1e9), "resident", 4, stage=3)
    if frozen:
        rehearsal.grow()
    texts = [Encoded("", (0,) * 30, 4), Encoded("", (0,) * 20, 3)]
    batch = FAMILIES["causal"]().collate(texts, 0)
    with Copies() as seen:
        rehearsal.train(batch)
    assert len(seen.computed) > 20
    assert seen.copies and max(seen.copies) < min(seen.computed)


def test_the_device_refuses_a_look():
    with pytest.raises(RuntimeError):
        assert torch.ones(3, device="meta").all()
