"""The layer that holds a memory: freezing, gradients, threshold, dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moram_dist.adapters.dropout import TokenDropout, TokenKeys
from moram_dist.atoms import MemoryLinear, MemorySettings, Placer, Routing, give_memory, recall
from moram_dist.methods import METHODS
from tests.helpers import oracle
from tests.helpers.configs import config_of
from tests.helpers.tiny import tiny_model, tokens

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


def attention():
    """Four linears that share memories as a LLaMA's attention does, with frozen atoms."""
    torch.manual_seed(0)
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"]
    layers = {name: MemoryLinear(nn.Linear(D, E), dropout=nn.Dropout(0.0)).eval() for name in names}
    routing = Routing(top_k=4, temperature=0.1)
    settings = MemorySettings(routing=routing, num_active=R, scale=SCALE)
    memories = give_memory(layers, settings, Placer())
    for memory in memories.values():
        memory.grow([(torch.randn(5, d), torch.randn(5, e)) for d, e in memory.bank.shapes])
    return list(layers.values()), memories


def expected_of(layer):
    """What a layer answers that is asked by itself."""
    which = layer.asked.layers.index(layer)
    atoms = layer.asked.memory.bank.own()[which]
    return lambda x: layer.base(x) + recall(x, *atoms, top_k=4, temperature=0.1)


def counting(memory):
    """Calls of a memory, as they come."""
    calls = []
    memory.register_forward_pre_hook(lambda module, arguments: calls.append(arguments[1]))
    return calls


def test_linears_that_share_an_input_are_asked_together():
    layers, memories = attention()
    assert [[name.rpartition(".")[2] for name in names] for names in memories] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
    ]
    calls = counting(next(iter(memories.values())))
    for x in (some_tokens(), 2 * some_tokens()):
        for layer in layers:
            alias = x.detach()  # what ZeRO-3's hooks make of it
            torch.testing.assert_close(layer(alias), expected_of(layer)(x))
    assert calls == [(0, 1, 2)] * 2
    assert layers[0].asked._x is None and not layers[0].asked._waiting  # nothing is kept alive


def test_linears_that_do_not_share_their_input_are_asked_one_by_one():
    """As in cross-attention, whose keys and values are of other tokens; first seen when it is."""
    layers, memories = attention()
    calls = counting(next(iter(memories.values())))
    for x in (some_tokens(), 2 * some_tokens()):
        for layer, scale in zip(layers, (1.0, 3.0, 3.0, 1.0), strict=True):
            torch.testing.assert_close(layer(scale * x), expected_of(layer)(scale * x))
    assert calls == [(0, 1, 2), (1,), (2,), (0,), (1,), (2,)]


def test_an_input_that_was_changed_in_place_is_another_input():
    layers, _ = attention()
    x = some_tokens()
    layers[0](x)
    x *= 2
    torch.testing.assert_close(layers[1](x), expected_of(layers[1])(x))


def test_gradients_of_linears_that_are_asked_together():
    layers, memories = attention()
    for memory in memories.values():
        memory.learning = True
        with torch.no_grad():
            for parameter in memory.parameters(recurse=False):
                parameter.normal_()
    x = some_tokens().requires_grad_()
    together = torch.cat([layer(x) for layer in layers[:3]], -1)
    alone = torch.cat(
        [layer.base(x) + layer.asked.memory(x, (i,))[0] for i, layer in enumerate(layers[:3])], -1
    )
    torch.testing.assert_close(together, alone)
    wanted = [x, *layers[0].memory.parameters(recurse=False)]
    upstream = torch.linspace(-1, 1, together.numel()).view(together.shape)
    for ours, theirs in zip(
        torch.autograd.grad(together, wanted, upstream),
        torch.autograd.grad(alone, wanted, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().max() > 0


def test_checkpointed_layers_ask_again():
    """Gradients of a model whose layers are computed once more in the backward pass."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model()
        method = METHODS["moram"](config_of(atoms_per_task=4, dropout=0.3), seed=0)
        method.build(model)
        method.token_keys.set([3, 4], [7], torch.device("cpu"))
        for i in range(2):
            with torch.no_grad():
                for name, value in method.begin_task(i).items():
                    model.get_parameter(name).copy_(value + 0.1)
            if i == 0:
                method.end_task(i, lambda: [])
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model(input_ids=tokens(2, 7)).logits.logsumexp(-1).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert {name.rpartition(".")[2] for name in gradients[0]} == {
        f"{kind}_{i}" for kind in ("keys", "values") for i in range(3)
    }
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0 and torch.equal(gradient, gradients[1][name]), name


def test_dropout_is_computed_again_in_the_backward_pass():
    """Against dropout made by hand; of the input alone, once, a tensor of its size is kept."""
    generator = torch.Generator().manual_seed(0)
    keys = TokenKeys()
    keys.set([7, 11], (3,), torch.device("cpu"))
    adapted = {
        name: MemoryLinear(
            nn.Linear(D, E, dtype=torch.float64),
            dropout=TokenDropout(0.5, keys, name=name, size=D),
        )
        for name in ("m.q_proj", "m.k_proj")
    }
    routing = Routing(top_k=3, temperature=0.3)
    give_memory(adapted, MemorySettings(routing=routing, num_active=4, scale=1.0), Placer())
    q, k = adapted.values()
    memory = q.memory
    memory.learning = True
    with torch.no_grad():
        for parameter in memory.parameters(recurse=False):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 3, D, generator=generator).double().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = torch.cat(memory.train()(x, (0, 1)), -1)
    leaves = [x, *memory.parameters(recurse=False)]
    upstream = torch.randn(found.shape, generator=generator).double()
    gradients = torch.autograd.grad(found, leaves, upstream)
    expected = torch.cat(
        [
            oracle.recall(layer.dropout(x), *memory.active(i), top_k=3, temperature=0.3)
            for i, layer in enumerate((q, k))
        ],
        -1,
    )
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert {t.data_ptr() for t in kept if t.numel() == x.numel()} == {x.data_ptr()}
