"""Weights that do not fill the model that their config.json describes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from moram_dist.config import ModelConfig
from moram_dist.models import language_model, load_report
from moram_dist.registry import InputError
from tests.helpers.bases import GPT2, LLAMA, OPT, ROWS, SMALL, WEIGHTS, change, rename, save
from tests.helpers.tiny import save_tiny_model, tiny_model
from tests.helpers.tiny_t5 import save_tiny_t5


def check(folder):
    config = ModelConfig(model=str(folder), dtype="fp32")
    language_model.check_weights(config, language_model.skeleton(config))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", LLAMA),
        ("llama", LLAMA | {"tie_word_embeddings": True}),
        ("gpt2", GPT2),
        ("opt", OPT),
        ("mixtral", LLAMA | {"num_local_experts": 2}),
        ("bloom", {"vocab_size": ROWS, "hidden_size": 32, "n_layer": 1, "n_head": 4}),
        ("mamba2", SMALL | {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}),
        ("gpt_neox", SMALL | {"intermediate_size": 48}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_fill_a_model_are_taken(tmp_path, kind, settings):
    """Tied weights, experts that transformers joins, and all that it renames, among them."""
    folder = save(kind, tmp_path, **settings)
    check(folder)
    prefix = language_model.skeleton(ModelConfig(model=str(folder))).base_model_prefix
    rename(folder, lambda name: name.removeprefix(f"{prefix}."))
    if kind != "llama" or "tie_word_embeddings" in settings:  # a head of its own is of no prefix
        check(folder)


def test_an_encoder_decoder_is_taken(tmp_path):
    folder = save_tiny_t5(tmp_path)
    check(folder)
    rename(folder, lambda name: None if name.startswith("encoder.block.1.") else name)
    with pytest.raises(InputError, match=r"do not fill T5\w+: encoder.block.1"):
        check(folder)


def test_constants_that_older_versions_saved_are_no_matter(tmp_path):
    folder = save("llama", tmp_path, **LLAMA)
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    check(folder)
    save_file(tensors | {"transformer.h.0.attn.bias": torch.ones(4)}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"hold transformer.h.0.attn.bias, which"):
        check(folder)


@pytest.mark.parametrize(
    ("new_names", "said"),
    [
        (lambda name: None if ".layers.1." in name else name, r"layers.1.* \(9 of 21\)"),
        (lambda name: None if name == "lm_head.weight" else name, r"lm_head.weight .*\(1 of 21\)"),
        (lambda name: None if name == "model.norm.weight" else name, "model.norm.weight"),
        (lambda name: f"x.{name}", r"\(21 of 21\); they hold x\.lm_head\.weight"),
        (lambda name: f"base_model.model.{name}", "they hold base_model.model.lm_head.weight"),
        (lambda name: name.replace("q_proj", "query"), "they hold .*query"),
        (lambda name: name.replace("q_proj.w", "q_proj.base_layer.w"), "they hold .*base_layer"),
    ],
)
def test_tensors_that_are_missing(tmp_path, new_names, said):
    folder = save("llama", tmp_path, **LLAMA)
    rename(folder, new_names)
    with pytest.raises(InputError, match="do not fill LlamaForCausalLM: .*" + said):
        check(folder)


def test_tensors_that_are_left_over(tmp_path):
    folder = save("llama", tmp_path, **LLAMA)
    change(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(InputError, match=r"hold model.layers.1\S+, which Llama\w+ does not have"):
        check(folder)
    change(folder / "config.json", num_hidden_layers=2)
    tensors = load_file(folder / WEIGHTS)
    further = {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}
    save_file(tensors | further, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(InputError, match=r"lora_A\.weight, which"):
        check(folder)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 64}, {"vocab_size": 32}, {"intermediate_size": 8}, {"num_key_value_heads": 4}],
    ids=str,
)
def test_a_configuration_that_claims_another_shape(tmp_path, changes):
    folder = save("llama", tmp_path, **LLAMA)
    change(folder / "config.json", **changes)
    with pytest.raises(InputError, match=r" x .* in the weights and .* x .* by config.json"):
        check(folder)


def test_two_tensors_where_one_is_said_to_be(tmp_path):
    folder = save("llama", tmp_path, **LLAMA | {"tie_word_embeddings": True})
    tensors = load_file(folder / WEIGHTS)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, folder / WEIGHTS, {"format": "pt"})
    check(folder)
    head[-1, -1] += 1
    save_file(tensors | {"lm_head.weight": head}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(InputError, match=r"ties lm_head\.weight to model\.embed_tokens"):
        check(folder)


def test_the_report_of_the_load_itself_is_the_last_word():
    model = tiny_model()
    report = {key: () for key in ("unexpected_keys", "mismatched_keys", "error_msgs")}
    load_report.refuse({**report, "missing_keys": set()}, model, {}, "x")
    with pytest.raises(InputError, match=r"do not fill LlamaForCausalLM: lm_head.weight"):
        load_report.refuse({**report, "missing_keys": {"lm_head.weight"}}, model, {}, "x")


def test_models_that_are_known_to_see_all_tokens(tmp_path):
    bert = {**SMALL, "intermediate_size": 48, "max_position_embeddings": 64}
    for kind in ("bert", "electra"):
        folder = save(kind, tmp_path / kind, **bert)
        with pytest.raises(InputError, match="is no causal language model: in"):
            check(folder)
        change(folder / "config.json", is_decoder=True)
        check(folder)


def test_loading_checks_as_well(tmp_path):
    """Whoever loads a base, a plan or a benchmark, gets no random weights."""
    folder = save_tiny_model(tmp_path)
    rename(folder, lambda name: None if name == "lm_head.weight" else name)
    with pytest.raises(InputError, match=r"lm_head\.weight is missing"):
        language_model.load(
            ModelConfig(model=str(folder), dtype="fp32"), {"zero_optimization": {"stage": 0}}
        )


def test_sizes_that_go_together_only_where_modules_are_made(tmp_path):
    """Known before the weights are: no pass of this model can work."""
    sizes = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    sizes |= {"v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
    settings = {**LLAMA, **sizes, "num_key_value_heads": 4, "num_experts_per_tok": 2}
    folder = save("deepseek_v3", tmp_path, **settings)
    check(folder)
    change(folder / "config.json", qk_rope_head_dim=7)
    with pytest.raises(InputError):
        check(folder)


def test_a_kernel_that_a_configuration_names_is_not_read(tmp_path):
    folder = save_tiny_model(tmp_path)
    change(folder / "config.json", _attn_implementation=[None])
    config = ModelConfig(model=str(folder), dtype="fp32")
    loaded = language_model.load(config, {"zero_optimization": {"stage": 0}})
    assert loaded.model.config._attn_implementation == "sdpa"
