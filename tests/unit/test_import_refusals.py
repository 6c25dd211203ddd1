"""``moram import`` refuses in one line what is no plain LoRA on the base, and writes nothing."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from safetensors.torch import load_file, save_file

from launch.importing.command import main
from moram_dist.models.language_model import DEMO_BASE
from tests.helpers.drawn_runs import save_tiny_gpt2
from tests.helpers.peft_loras import plain, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "topic")


def change(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def tensors_of(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def first(tensors):
    return min(tensors)


def cut(tensors):
    tensors[first(tensors)] = tensors[first(tensors)][:, :-1].contiguous()


def drop(tensors):
    del tensors[first(tensors)]


def rename(name):
    def renamed(tensors):
        tensors[name] = tensors.pop(first(tensors))

    return renamed


def spoil(tensors):
    tensors[first(tensors)][0, 0] = math.nan


HEAD = "base_model.model.lm_head.lora_A.weight"
OTHER = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only a LORA can become a memory"),
        ({"use_dora": True}, "use_dora is True; only a plain LoRA on linears"),
        ({"bias": "all"}, "bias is 'all'; only a plain LoRA on linears"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']; only a plain LoRA"),
        ({"lora_bias": True}, "lora_bias is True; only a plain LoRA"),
        ({"something_new": 1}, "something_new is 1; only a plain LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changed the base's own"),
        ({"lora_alpha": "6"}, "lora_alpha must be a number, got '6'"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern: '(' is no regular expression"),
        ({"alpha_pattern": {"q_proj": None}}, "q_proj must be a number, got None"),
        ({"alpha_pattern": [1]}, "alpha_pattern must map names to numbers"),
        ({"base_model_name_or_path": 1}, "base_model_name_or_path must be a text, got 1"),
        ({"base_model_name_or_path": None}, "does not name its base: give --model"),
        ({"base_model_name_or_path": "/no/such/base"}, "--model /no/such/base: "),
        (cut, "has 128 inputs and 128 outputs there, and A is [4, 127] and B [128, 4]"),
        (drop, "model.layers.0.self_attn.q_proj has one of A and B"),
        (rename(OTHER), "does not fit --model demo: it has no linear model.layers.7.self_attn"),
        (rename(HEAD), "does not fit --model demo: its lm_head cannot have a memory"),
        (rename("base_model.model.score.weight"), "score.weight, which is no A or B of a linear"),
        (spoil, "holds something that is no finite number"),
        (lambda tensors: tensors.clear(), "holds no tensors"),
        ("adapter_config.json", "holds no adapter_config.json, so it is no adapter of PEFT"),
        ("adapter_model.safetensors", "holds no adapter_model.safetensors\n"),
    ],
)
def test_what_is_no_plain_lora_on_this_base_is_refused(trained, tmp_path, capsys, spoilt, said):
    lora = tmp_path / "topic"
    shutil.copytree(trained, lora)
    if isinstance(spoilt, dict):
        change(lora, **spoilt)
    elif isinstance(spoilt, str):
        (lora / spoilt).unlink()
    else:
        tensors_of(lora, spoilt)
    assert_refused(["--peft", str(lora), "--out", str(tmp_path / "out")], said, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["topic"]


def assert_refused(words, said, capsys):
    capsys.readouterr()
    assert main(words) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and said in found.err, found.err


def test_a_pickle_is_not_read(trained, tmp_path, capsys):
    lora = shutil.copytree(trained, tmp_path / "topic")
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    words = ["--peft", str(lora), "--out", str(tmp_path / "out")]
    assert_refused(words, "an adapter_model.bin is not read: unpickling runs code", capsys)


def test_a_broken_file_is_not_read(trained, tmp_path, capsys):
    lora = shutil.copytree(trained, tmp_path / "topic")
    (lora / "adapter_model.safetensors").write_bytes(b"no tensors")
    words = ["--peft", str(lora), "--out", str(tmp_path / "out")]
    assert_refused(words, "adapter_model.safetensors cannot be read as tensors", capsys)


def test_another_base_is_refused(trained, tmp_path, capsys):
    """With the same sizes, so that only the content tells; where it is not known, sizes do."""
    base = shutil.copytree(DEMO_BASE, tmp_path / "base")
    model = plain(base)
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(base)
    words = ["--peft", str(trained), "--out", str(tmp_path / "out"), "--model"]
    said = f"was trained on {DEMO_BASE}, and --model {base} is another one"
    assert_refused([*words, str(base)], said, capsys)
    assert_refused([*words, str(save_tiny_gpt2(tmp_path / "gpt2"))], "is another one", capsys)
    gone = shutil.copytree(trained, tmp_path / "topic")
    change(gone, base_model_name_or_path="/no/such/base")
    words = ["--peft", str(gone), "--out", str(tmp_path / "out"), "--model", "demo"]
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--peft", "topic", "mood"], "several LoRAs share a memory, which loses some of each"),
        (["--peft", "topic", "topic"], "2 folders are called topic, as their tasks would be"),
        (["--peft", "topic", "--data_dir", "."], "--data_dir: give --benchmark too"),
        (["--peft", "topic", "--out", "topic"], "--out topic: is there already"),
        (["--peft", "other", "--benchmark", "demo"], "unknown task of demo 'other'"),
        (["--peft", "topic", "--benchmark", "dem"], "unknown benchmark 'dem'; did you mean"),
        (["--peft", "a,b"], "cannot be a file name"),
        (["--peft", "topic", "far", "--benchmark", "demo"], "several bases: "),
        (["--peft", "none"], "none: holds no adapter_config.json"),
    ],
)
def test_a_refusal_writes_nothing(trained, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    for name in ("topic", "mood", "other", "a,b", "far"):
        shutil.copytree(trained, tmp_path / name)
    change(tmp_path / "far", base_model_name_or_path="somewhere/else")
    before = sorted(tmp_path.rglob("*"))
    assert_refused([*words, *([] if "--out" in words else ["--out", "out"])], said, capsys)
    assert sorted(tmp_path.rglob("*")) == before
