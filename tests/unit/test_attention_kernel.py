"""``--attention``: what the model's class supports, or one line."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import CLIPVisionConfig, Gemma2Config, LlavaConfig

from moram_dist.config import ModelConfig
from moram_dist.models import attention, language_model
from moram_dist.models.language_model import resolve_attention, skeleton
from moram_dist.registry import InputError
from tests.helpers.architectures import WIDE, bare


def resolved(architecture, **settings):
    return resolve_attention(ModelConfig(**{"dtype": "fp32", **settings}), architecture)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("Llama", "sdpa"),
        ("T5", "sdpa"),
        ("Bloom", "eager"),
        ("Gemma2", "eager"),
        ("Mamba", "eager"),
        ("GptOss", "eager"),
    ],
)
def test_auto_takes_what_the_class_supports(name, kernel):
    architecture = bare(name).config
    assert resolved(architecture) == kernel
    assert resolved(architecture, attention="eager") == "eager"
    if kernel == "sdpa":
        assert resolved(architecture, attention="sdpa") == "sdpa"
    else:
        with pytest.raises(InputError, match="--attention sdpa: this model's class does not"):
            resolved(architecture, attention="sdpa")


def test_a_part_that_does_not_support_it_decides_for_the_whole():
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    both = LlavaConfig(vision_config=vision, text_config=Gemma2Config(vocab_size=64, **WIDE))
    assert resolved(both) == "eager"


def test_what_a_base_asks_for_itself_does_not_count(tmp_path):
    model = bare("Llama")
    model.config._attn_implementation = "eager"
    assert resolved(model.config) == "sdpa"
    model.config.to_json_file(tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        text.replace("{", '{"attn_implementation": "flash_attention_2", ', 1)
    )
    (tmp_path / "model.safetensors").touch()
    found = language_model.check(ModelConfig())
    assert resolved(found) == "sdpa"


@pytest.fixture
def flash(monkeypatch):
    """A machine on which flash-attn would run, as far as can be asked before."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        attention.importlib.util,
        "find_spec",
        lambda name, *rest: real("torch") if name == "flash_attn" else real(name, *rest),
    )


class Refuses:
    """A model that supports some kernels."""

    def __init__(self, *kernels):
        self.kernels = kernels

    def __call__(self, kernel):
        if kernel not in self.kernels:
            raise ValueError(kernel)


@pytest.mark.parametrize(
    ("kernels", "taken"),
    [
        (("flash_attention_2", "sdpa", "eager"), "flash_attention_2"),
        (("sdpa", "eager"), "sdpa"),
        (("flash_attention_2", "eager"), "flash_attention_2"),
        (("eager",), "eager"),
    ],
)
def test_the_fastest_is_tried_first(flash, kernels, taken):
    assert attention.resolve("auto", torch.bfloat16, Refuses(*kernels)) == taken
    for asked in ("flash_attention_2", "sdpa", "eager"):
        if asked in kernels:
            assert attention.resolve(asked, torch.bfloat16, Refuses(*kernels)) == asked
        else:
            with pytest.raises(InputError, match=f"--attention {asked}: this model's class"):
                attention.resolve(asked, torch.bfloat16, Refuses(*kernels))


def test_flash_attention_needs_half_precision(flash):
    every = Refuses("flash_attention_2", "sdpa", "eager")
    assert attention.resolve("auto", torch.float32, every) == "sdpa"
    with pytest.raises(InputError, match="flash_attention_2 needs CUDA, --dtype bf16, the package"):
        attention.resolve("flash_attention_2", torch.float32, every)


def test_a_model_that_cannot_be_built_at_all_is_no_matter_of_attention():
    assert attention.resolve("auto", torch.float32, Refuses()) == "eager"
    assert attention.resolve("sdpa", torch.float32, Refuses()) == "sdpa"


def test_the_skeleton_is_built_with_it():
    assert skeleton(ModelConfig(dtype="fp32")).config._attn_implementation == "sdpa"
    eager = skeleton(ModelConfig(dtype="fp32", attention="eager"))
    assert eager.config._attn_implementation == "eager"
