"""MoRAM in a T5: which linears are asked together, and for whose tokens."""

from __future__ import annotations

import pytest
import torch

from moram_dist.atoms import reads_source
from moram_dist.methods import METHODS
from tests.helpers.configs import config_of
from tests.helpers.tiny import tokens
from tests.helpers.tiny_t5 import tiny_t5


def learned(target_modules="attention", dropout=0.0, dtype=torch.float32, **changes):
    """A T5 with one task's frozen atoms and another's active ones."""
    model = tiny_t5(**changes).to(dtype)
    config = config_of(atoms_per_task=4, dropout=dropout, target_modules=target_modules)
    method = METHODS["moram"](config, seed=0)
    method.build(model)
    for i in range(2):
        with torch.no_grad():
            for name, value in method.begin_task(i).items():
                model.get_parameter(name).copy_(value + 0.1)
        if i == 0:
            method.end_task(i, lambda: [])
    return model, method


def logits(model):
    """Of an answer of four tokens to a prompt of nine."""
    return model(input_ids=tokens(2, 9), decoder_input_ids=tokens(2, 4, seed=1)).logits


@pytest.mark.parametrize("ff", ["gated-gelu", "relu"])
def test_linears_are_asked_with_those_that_share_their_input(ff):
    model, method = learned("all-linear", feed_forward_proj=ff)
    last = {tuple(name.rpartition(".")[2] for name in names) for names in method.memories}
    inner = {("wi_0", "wi_1")} if ff == "gated-gelu" else {("wi",)}
    assert last == {("q", "k", "v"), ("q",), ("k", "v"), ("o",), ("wo",)} | inner
    calls = []
    for names, memory in method.memories.items():
        memory.register_forward_pre_hook(
            lambda _, arguments, names=names: calls.append((names, arguments))
        )
    with torch.no_grad():
        logits(model)
    assert len(calls) == len(method.memories)  # one call of each is enough for all its linears
    for names, (x, members) in calls:
        assert members == tuple(range(len(names)))
        assert x.shape[1] == (9 if reads_source(names[0]) else 4)


def test_a_memory_asked_together_answers_as_each_linear_alone():
    model, method = learned()
    with torch.no_grad():
        together = logits(model)
        for layer in method.layers.values():
            layer.asked._apart = True
        torch.testing.assert_close(logits(model), together)


def test_checkpointed_layers_ask_again():
    gradients = []
    for checkpointing in (False, True):
        model, method = learned("all-linear", dropout=0.3, dtype=torch.float64)
        method.token_keys.set([3, 4], [4, 9], torch.device("cpu"))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        logits(model.train()).logsumexp(-1).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        # What decoder layers send back to the encoder is summed in another order.
        error = (gradients[1][name] - gradient).norm() / gradient.norm()
        assert error < 1e-10, name
