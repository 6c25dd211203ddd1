"""The layer that holds a memory: freezing, gradients, threshold, dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moram_dist.atoms import MemoryLinear, MemorySettings, Placer, Routing, give_memory, recall

D, E, R = 12, 10, 8
SCALE = 10 / R  # no power of two, so folding it in rounds


def make_layer(*, dtype=torch.float32, dropout=0.0, threshold=0.2, num_frozen=5):
    """A layer that has learned: random base, frozen and active atoms."""
    torch.manual_seed(0)
    layer = MemoryLinear(nn.Linear(D, E, dtype=dtype), dropout=nn.Dropout(dropout))
    routing = Routing(top_k=4, temperature=0.1, threshold=threshold)
    settings = MemorySettings(routing=routing, num_active=R, scale=SCALE)
    (memory,) = give_memory({"q_proj": layer}, settings, Placer()).values()
    memory.grow([(torch.randn(num_frozen, D), torch.randn(num_frozen, E))])
    with torch.no_grad():
        for parameter in memory.active(0):
            parameter.normal_()
    memory.learning = True
    return layer


def freeze(layer):
    """What ``Moram.end_task`` does, with the atoms whole."""
    layer.memory.grow([tuple(tensor.detach() for tensor in layer.memory.stored(0))])
    layer.memory.learning = False


def frozen(layer):
    """Keys and values of the only linear of its bank."""
    return layer.memory.bank.own()[0]


def some_tokens(dtype=torch.float32):
    return torch.randn(7, 3, D, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_freezing_changes_no_bit(training, dtype):
    layer = make_layer(dtype=dtype).train(training)
    x = some_tokens(dtype)
    before = layer(x)
    without = before - layer.base(x)
    freeze(layer)
    assert torch.equal(layer(x), before)
    assert layer.memory.bank.num_atoms == 5 + R
    assert without.abs().max() > 0.1  # or there was nothing to change

    unscaled = make_layer(dtype=dtype).train(training)
    unscaled.memory.grow([tuple(tensor.detach() for tensor in unscaled.memory.active(0))])
    unscaled.memory.learning = False
    assert not torch.equal(unscaled(x), before)


def test_freezing_into_an_empty_memory():
    layer = make_layer(num_frozen=0).eval()
    before = layer(some_tokens())
    freeze(layer)
    assert torch.equal(layer(some_tokens()), before)


def test_only_active_atoms_learn():
    layer = make_layer()
    layer(some_tokens()).square().sum().backward()
    learned = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert learned == {"memory.keys_0", "memory.values_0"}
    assert all(layer.get_parameter(name).grad.abs().max() > 0 for name in learned)
    assert not any(tensor.requires_grad for tensor in frozen(layer))
    assert not any("bank" in name for name in layer.state_dict())  # the files are its only home


def test_frozen_atoms_compete_with_active_ones():
    layer, alone = make_layer(), make_layer(num_frozen=0)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            alone.get_parameter(name).copy_(parameter)
    assert not torch.allclose(layer(some_tokens()), alone(some_tokens()))


def test_active_atoms_are_silent_unless_learning():
    layer = make_layer()
    layer.memory.learning = False
    x = some_tokens()
    before = layer(x)
    with torch.no_grad():
        for parameter in layer.memory.active(0):
            parameter.normal_()
    assert torch.equal(layer(x), before)


def test_an_empty_memory_is_the_base():
    layer = make_layer(num_frozen=0)
    layer.memory.learning = False
    assert torch.equal(layer(some_tokens()), layer.base(some_tokens()))


def test_threshold_acts_at_inference_only():
    silent = make_layer(threshold=1.0)
    x = some_tokens()
    assert torch.equal(silent.train()(x), make_layer(threshold=0.0).train()(x))
    assert torch.equal(silent.eval()(x), silent.base(x))
    assert not torch.equal(make_layer(threshold=0.0).eval()(x), silent.base(x))


def test_dropout_acts_on_what_scores_see_and_not_on_the_base():
    layer, x = make_layer(dropout=0.5).train(), some_tokens()
    torch.manual_seed(3)
    found = layer(x)
    torch.manual_seed(3)
    atoms = (
        torch.cat([frozen(layer)[0], layer.memory.active(0)[0]]),
        torch.cat([frozen(layer)[1], layer.memory.active(0)[1] * SCALE]),
    )
    expected = layer.base(x) + recall(F.dropout(x, 0.5), *atoms, top_k=4, temperature=0.1)
    assert torch.equal(found, expected)
    assert torch.equal(layer.eval()(x), make_layer(dropout=0.0).eval()(x))

    deaf = make_layer(dropout=1.0).train()
    assert torch.equal(deaf(x), deaf.base(x))


def test_bfloat16():
    layer = make_layer(dtype=torch.bfloat16).eval()
    precise = make_layer().eval()
    with torch.no_grad():
        for tensors in (layer.named_parameters(), layer.named_buffers()):
            for name, tensor in tensors:
                getattr(
                    precise.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
                ).data = tensor.float()
    assert {tensor.dtype for tensor in frozen(layer)} == {torch.bfloat16}
    x = some_tokens(torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
    error = (layer(x).float() - precise(x.float())).norm() / precise(x.float()).norm()
    assert error < 0.01
