"""A base's folder whose files are missing, broken or of something else: one line says which."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from moram_dist.config import ModelConfig
from moram_dist.models import language_model
from moram_dist.registry import InputError
from tests.helpers.tiny import save_tiny_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("base") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "base")


def refusal(model, **settings):
    """The one line about a base; nothing if there is nothing wrong with it."""
    config = ModelConfig(model=str(model), dtype="fp32", **settings)
    try:
        language_model.check_weights(config, language_model.skeleton(config))
        language_model.load_tokenizer(config)
    except InputError as error:
        assert str(error).startswith("--model ")
        assert "\n" not in str(error)
        return str(error)
    return ""


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(folder):
    """The same weights in two files, with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = (names[:10], names[10:])
    weight_map = {}
    for file, part in zip(SHARDS, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return weight_map


def test_a_whole_base_is_taken(folder):
    assert refusal(folder) == ""
    shard(folder)
    assert refusal(folder) == ""
    assert refusal(language_model.DEMO_BASE) == ""


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a" * 300, "cannot be the name"),
        ("a\0b", "no such folder|cannot be the name"),
        (" ", r"' ': no such folder"),
        ("two words", "no such folder, and no name of a model of the hub"),
        ("one/two/three", "no such folder, and no name of a model of the hub"),
        ("line\nbreak", r"'line\\nbreak': no such folder"),
        ("./none", "no such folder"),
        ("nobody/nothing", "neither in the cache of the Hugging Face hub"),
    ],
)
def test_names_of_nothing(name, problem, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=problem) as caught:
        language_model.check(ModelConfig(model=name))
    assert len(str(caught.value)) < 500


def test_a_file_in_the_place_of_a_folder(folder):
    assert "is a file; give the folder" in refusal(folder / WEIGHTS)


@pytest.mark.parametrize(
    "file", [WEIGHTS, "config.json", "tokenizer.model", "tokenizer_config.json", "merges.txt"]
)
def test_pointers_of_git_lfs(folder, file):
    (folder / file).write_text(POINTER)
    assert f"{file} is a git-lfs pointer" in refusal(folder)


def test_pointers_in_the_place_of_shards_and_index(folder):
    shard(folder)
    (folder / SHARDS[1]).write_text(POINTER)
    assert f"{SHARDS[1]} is a git-lfs pointer" in refusal(folder)
    (folder / INDEX).write_text(POINTER)
    assert f"{INDEX} is a git-lfs pointer" in refusal(folder)


def test_a_pointer_that_nothing_reads_is_no_matter(folder):
    (folder / "pytorch_model.bin").write_text(POINTER)
    assert refusal(folder) == ""


def test_weights_that_are_not_whole(folder):
    path = folder / WEIGHTS
    content = path.read_bytes()
    broken = [
        content[: len(content) // 2],
        content[:100],
        content[:5],
        (2**62).to_bytes(8, "little") + content[8:],  # the header is longer than the file
        content + b"more",
        b"\x02\0\0\0\0\0\0\0[]",
    ]
    for each in broken:
        path.write_bytes(each)
        assert f"{WEIGHTS} is cut short or damaged" in refusal(folder)
    path.write_bytes(b"")
    assert f"{WEIGHTS} is empty" in refusal(folder)
    path.unlink()
    path.mkdir()
    assert f"neither {WEIGHTS} nor {INDEX}" in refusal(folder)
    path.rmdir()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "holds no *.safetensors" in refusal(folder)


def test_an_index_and_its_shards(folder):
    weight_map = shard(folder)
    path = folder / INDEX
    for text in ("", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'):
        path.write_text(text)
        assert INDEX in refusal(folder)
    for file in ("../outside.safetensors", "/etc/passwd", ""):
        path.write_text(json.dumps({"weight_map": weight_map | {"lm_head.weight": file}}))
        assert "is not in this folder" in refusal(folder)
    path.write_text(json.dumps({"weight_map": weight_map | {"lm_head.weight": SHARDS[1]}}))
    assert f"lm_head.weight is in {SHARDS[1]}, and it is not" in refusal(folder)
    path.write_text(json.dumps({"weight_map": weight_map}))
    tensors = load_file(folder / SHARDS[0])
    save_file(tensors, folder / "model-00003-of-00003.safetensors", {"format": "pt"})
    assert "holds model-00003-of-00003.safetensors, which" in refusal(folder)
    (folder / "model-00003-of-00003.safetensors").unlink()
    second = load_file(folder / SHARDS[1])
    save_file(second | {"lm_head.weight": tensors["lm_head.weight"]}, folder / SHARDS[1])
    assert "lm_head.weight is in two files" in refusal(folder)
    (folder / SHARDS[1]).unlink()
    assert f"names 2 files, of which {SHARDS[1]} is missing" in refusal(folder)
    path.unlink()
    assert f"{INDEX} does not exist" in refusal(folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_of_an_adapter(folder, file):
    (folder / file).write_text("{}")
    assert f"holds {file}, of a PEFT adapter" in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "none"},
        {"model_type": ["llama"]},
        {"model_type": None},
        {"hidden_size": "wide"},
        {"hidden_size": None},
        {"hidden_size": -1},
        {"hidden_size": 10**18},
        {"num_attention_heads": 0},
        {"vocab_size": -5},
        {"hidden_act": "none"},
        {"pad_token_id": 10**6},
        {"rope_parameters": 3},
        {"dtype": "float33"},
        {"layer_types": ["none"]},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1e300},
        {"num_labels": 10**8},
        {"text_config": {"num_hidden_layers": 10**9}},
    ],
    ids=str,
)
def test_settings_that_cannot_be(folder, changes):
    change(folder / "config.json", **changes)
    assert refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\x00", '{"a": ' * 10**5])
@pytest.mark.parametrize("file", ["config.json"])
def test_files_of_settings_that_are_no_settings(folder, file, text):
    (folder / file).write_text(text)
    assert file in refusal(folder)


def test_no_settings_at_all(folder):
    (folder / "config.json").unlink()
    assert "config.json does not exist" in refusal(folder)


@pytest.mark.parametrize(
    ("field", "how", "said"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq"),
        ("quantization_config", {"quant_method": "awq", "bits": 4}, "awq"),
        ("quantization_config", {"quant_method": "fp8"}, "fp8"),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandb"),
        ("quantization_config", {"bits": 4}, "quantization_config"),
        ("compression_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)
def test_quantised_weights(folder, field, how, said):
    change(folder / "config.json", **{field: how})
    line = refusal(folder)
    assert said in line
    assert "give the original weights" in line


def test_whole_numbers_are_no_weights(folder):
    tensors = load_file(folder / WEIGHTS)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert f"{name} is of int8: quantised weights" in refusal(folder)


def test_code_of_its_own(folder):
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    line = refusal(folder)
    assert "needs code of its own" in line
    assert "--trust_remote_code true" in line


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.model", ""),
        ("tokenizer.model", "no model at all"),
        ("tokenizer.json", ""),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not JSON"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 3}'),
        ("tokenizer_config.json", '{"tokenizer_class": "NoTokenizer"}'),
        ("special_tokens_map.json", "[1]"),
        ("added_tokens.json", "nothing"),
    ],
)
def test_broken_files_of_a_tokenizer(folder, file, text):
    (folder / file).write_text(text)
    assert file in refusal(folder)


def test_a_tokenizer_whose_file_is_missing_knows_no_word(folder):
    (folder / "tokenizer.model").unlink()
    assert "knows special tokens only" in refusal(folder)
    for kind in ("T5Tokenizer", "GPT2Tokenizer"):  # these need no file either
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
        assert "knows special tokens only" in refusal(folder)
    (folder / "tokenizer_config.json").unlink()
    assert "holds neither tokenizer.json nor tokenizer_config.json" in refusal(folder)


def test_merges_that_end_early_would_spell_words_by_letters(folder):
    """transformers takes a list that was cut short as it is."""
    letters = "abcdefghij"
    words = [a + b + c for a in letters for b in letters for c in letters]
    pairs = [(a, b) for a in letters for b in letters]
    merges = [*pairs, *((word[:2], word[2]) for word in words)]
    vocabulary = ["</s>", "<s>", *letters, *map("".join, pairs), *words]
    (folder / "tokenizer.model").unlink()
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "</s>"}))
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines))
    assert refusal(folder) == ""
    (folder / "merges.txt").write_text("\n".join(lines[: len(lines) // 2]))
    assert "merges.txt does not make 553 of the 1112 tokens of vocab.json" in refusal(folder)
    (folder / "merges.txt").write_text("")
    assert "merges.txt is empty" in refusal(folder)


@pytest.fixture
def cached(whole, tmp_path, monkeypatch):
    """A model in the cache of the hub, which cannot be reached."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--some--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    return shutil.copytree(whole, home / "snapshots" / commit)


def test_a_model_of_the_hub_is_looked_at_in_its_cache(cached):
    assert refusal("some/model") == ""
    (cached / WEIGHTS).write_bytes(b"x" * 100)
    assert f"some/model: {WEIGHTS} is cut short or damaged" in refusal("some/model")
    (cached / WEIGHTS).unlink()
    assert f"neither {WEIGHTS} nor {INDEX} with its files is in the cache" in refusal("some/model")
    (cached / "adapter_config.json").write_text("{}")
    assert "of a PEFT adapter" in refusal("some/model")


def test_a_model_of_the_hub_in_shards(cached):
    shard(cached)
    assert refusal("some/model") == ""
    (cached / SHARDS[1]).unlink()
    assert "with its files is in the cache" in refusal("some/model")


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "tokenizer_config.json"])
def test_pipes_and_devices_are_not_waited_for(folder, file):
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    assert f"{file} is no file but a device, pipe or socket" in refusal(folder)
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    assert f"{file} is no file but a device, pipe or socket" in refusal(folder)
