"""A second pass in training: the same examples, with nothing dropped."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from moram_dist.config import ModelConfig
from moram_dist.families import family_of_model
from moram_dist.models import language_model
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.train.forward import Forward, without_dropout
from tests.helpers.tiny_t5 import WIDE, tiny_t5


@pytest.fixture(scope="module")
def batch():
    model = tiny_t5(**WIDE)
    tokenizer = language_model.load_tokenizer(ModelConfig())
    tokenizer.add_eos_token = True
    family, task = family_of_model(model), BENCHMARKS["demo"](Source()).tasks[0]
    encoded = [family.encode_training(tokenizer, example, task) for example in task.train[:3]]
    return family.collate(encoded, tokenizer.pad_token_id)


def test_again_is_without_the_dropout_of_the_base(batch):
    model = tiny_t5(**WIDE, dropout_rate=0.5).train()
    forward = Forward(model, model, torch.device("cpu"))
    seen = forward(batch)
    again = seen.again()
    assert all(module.training for module in model.modules())
    assert torch.equal(again, seen.again()) and not again.requires_grad
    whole = Forward(model.eval(), model, torch.device("cpu"))(batch).logits_BPV
    torch.testing.assert_close(again, whole, check_stride=False)
    assert not torch.allclose(again, seen.logits_BPV, atol=1e-3)  # which did drop


def test_checkpointed_layers_stay_in_training():
    """They recompute only then."""
    model = tiny_t5(dropout_rate=0.5).train()
    kinds = {module: isinstance(module, GradientCheckpointingLayer) for module in model.modules()}
    assert any(kinds.values())
    with without_dropout(model):
        assert all(module.training == kept for module, kept in kinds.items())
    assert all(module.training for module in kinds)
