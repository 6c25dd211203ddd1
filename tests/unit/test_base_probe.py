"""Bases that see what is to come, and numbers that are none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from moram_dist.families import family_of_model
from moram_dist.models import probe
from moram_dist.registry import InputError
from tests.helpers.bases import LLAMA, ROWS, SMALL, made
from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_t5 import tiny_t5

CAUSAL, T5 = family_of_model(tiny_model()), family_of_model(tiny_t5())


def ask(model, family=CAUSAL, vocabulary=64):
    probe.check_causal(model, "x", family, vocabulary=vocabulary)


class NotCausal(nn.Module):
    """Adds to each token's logits a little of what comes after it."""

    def __init__(self, model, part):
        super().__init__()
        self.model, self.part = model, part

    def forward(self, **inputs):
        logits = self.model(**inputs).logits
        return SimpleNamespace(logits=logits + self.part * logits.roll(-1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_models_pass_the_probe(dtype):
    ask(tiny_model().to(dtype))
    ask(tiny_t5().to(dtype), T5)
    ask(made("mixtral", **LLAMA, num_local_experts=4).to(dtype), vocabulary=ROWS)


@pytest.mark.parametrize(("dtype", "part"), [(torch.float32, 0.2), (torch.bfloat16, 0.2)])
def test_logits_that_move_with_a_later_token(dtype, part):
    with pytest.raises(InputError, match="NotCausal is no causal language model"):
        ask(NotCausal(tiny_model().to(dtype), part))
    with pytest.raises(InputError, match="is no causal language model"):
        ask(NotCausal(tiny_t5().to(dtype), part), T5)


def test_real_models_that_look_ahead():
    kinds = {
        "bert": {**SMALL, "intermediate_size": 48, "initializer_range": 0.2},
        "xlm": {"vocab_size": ROWS, "emb_dim": 32, "n_layers": 1, "n_heads": 4, "init_std": 0.2},
        "xlnet": {
            "vocab_size": ROWS,
            "d_model": 32,
            "n_layer": 1,
            "n_head": 4,
            "d_inner": 48,
            "initializer_range": 0.2,
        },
    }
    for kind, settings in kinds.items():
        model = made(kind, **settings)
        with pytest.raises(InputError, match="is no causal language model"):
            ask(model, vocabulary=ROWS)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(number):
    model = tiny_model()
    probe.check_finite(model, "x")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = number
    with pytest.raises(InputError, match=r"layers.1.mlp.up_proj.weight holds NaN or infinity"):
        probe.check_finite(model, "x")


def test_logits_that_are_not_finite():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
    probe.check_finite(model, "x")
    with pytest.raises(InputError, match="its logits hold NaN or infinity"):
        ask(model)
