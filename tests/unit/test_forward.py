"""A second pass in training: the same examples, with nothing dropped."""

from __future__ import annotations

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM
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


def test_a_layer_that_drops_by_itself():
    """OPT's layers call the function, by their own mode."""
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=64,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            dropout=0.5,
        )
    ).train()
    ids = torch.arange(8)[None]
    with torch.no_grad(), without_dropout(model):
        assert torch.equal(model(ids).logits, model(ids).logits)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.no_grad(), without_dropout(model, graph=False):
        assert torch.equal(model(ids).logits, model(ids).logits)
    assert all(module.training for module in model.modules())


def test_layers_that_recompute_stay_in_training():
    """They do so only then."""
    model = tiny_t5(dropout_rate=0.5).train()
    kinds = {module: isinstance(module, GradientCheckpointingLayer) for module in model.modules()}
    assert any(kinds.values())
    with without_dropout(model):
        assert not any(module.training for module in kinds)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with without_dropout(model):
        assert all(module.training == kept for module, kept in kinds.items())
    with without_dropout(model, graph=False):
        assert not any(module.training for module in kinds)
    assert all(module.training for module in kinds)
