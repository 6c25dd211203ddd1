"""``--attention``: what the model's class supports, or one line."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import CLIPVisionConfig, Gemma2Config, LlavaConfig

from moram_dist.config import ModelConfig
from moram_dist.decode.attention import is_built_in, one_text_a_row, taking_masks
from moram_dist.decode.labels import can_share_prefix
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


def test_the_skeleton_is_built_with_it(monkeypatch):
    assert skeleton(ModelConfig(dtype="fp32")).config._attn_implementation == "sdpa"
    resolve = language_model.resolve_attention
    monkeypatch.setattr(
        language_model,
        "resolve_attention",
        lambda asked, of: "flash_attention_2" if asked.dtype == "bf16" else resolve(asked, of),
    )
    # flash-attn computes nothing on the meta device
    for asked in ("auto", "flash_attention_2"):
        found = skeleton(ModelConfig(dtype="bf16", attention=asked))
        assert found.config._attn_implementation == "sdpa"
    eager = skeleton(ModelConfig(dtype="fp32", attention="eager"))
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize(("name", "kernel"), [("Llama", "sdpa"), ("Gemma2", "eager")])
def test_flash_attention_gives_way_to_what_takes_masks(name, kernel):
    """And a model computes with it; afterwards all is as before."""
    model = bare(name).eval()
    model.config._attn_implementation = "flash_attention_2"
    assert can_share_prefix(model, 8)
    with taking_masks(model), torch.no_grad():
        assert model.config._attn_implementation == kernel
        seen, ids = torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, dtype=torch.long)
        model(input_ids=ids.to("meta"), attention_mask=seen.to("meta"), use_cache=False)
    assert model.config._attn_implementation == "flash_attention_2"


class OwnFlashAttention2(torch.nn.Module):
    """Like the attention of Falcon, GPT-J and GPT-Neo, which is chosen when a model is built."""


def test_attention_that_is_built_in_stays():
    model = bare("Llama").eval()
    assert not is_built_in(model)
    model.config._attn_implementation = "flash_attention_2"
    model.model.layers[1].self_attn.kernel = OwnFlashAttention2()
    assert is_built_in(model) and not can_share_prefix(model, 8)
    with taking_masks(model):
        assert model.config._attn_implementation == "flash_attention_2"


def test_classes_whose_attention_is_built_in_are_known():
    """Those of the installed transformers that our test architectures have."""
    from transformers.models.falcon import modeling_falcon
    from transformers.models.gpt_neo import modeling_gpt_neo
    from transformers.models.gptj import modeling_gptj

    for module, name in (
        (modeling_falcon, "FalconFlashAttention2"),
        (modeling_gptj, "GPTJFlashAttention2"),
        (modeling_gpt_neo, "GPTNeoFlashAttention2"),
    ):
        assert hasattr(module, name)


def test_rows_are_not_searched_for_several_texts():
    from transformers import modeling_flash_attention_utils as flash_utils

    position_ids = torch.tensor([[0, 1, 0, 1]])
    assert flash_utils._is_packed_sequence(position_ids, 1)
    with one_text_a_row():
        assert not flash_utils._is_packed_sequence(position_ids, 1)
    assert flash_utils._is_packed_sequence(position_ids, 1)


def test_attention_is_never_left_to_cudnn():
    torch.backends.cuda.enable_cudnn_sdp(True)
    language_model.load(ModelConfig())
    assert not torch.backends.cuda.cudnn_sdp_enabled()
