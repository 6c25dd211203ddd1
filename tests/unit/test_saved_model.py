"""``save_pretrained`` of a model with a memory: what loads again is the same model, or nothing."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    pipeline,
)

from launch.generate import main
from moram_dist import answered_by, from_pretrained, load_memory
from moram_dist.config import ModelConfig
from moram_dist.methods import METHODS
from moram_dist.models.language_model import DEMO_BASE, load_tokenizer
from moram_dist.registry import InputError
from tests.helpers.drawn_runs import demo_benchmark, draw_run

WITHOUT = {"in_context", "rail"}
"""Methods that put nothing into a model."""
QUICK = {"moram", "sequential_lora", "single_task"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return draw_run(tmp_path_factory.mktemp("drawn") / "run")


def base(**settings):
    return AutoModelForCausalLM.from_pretrained(DEMO_BASE, **{"dtype": torch.float32} | settings)


def batch():
    """A prompt of each task, with padding, so that rows are recognised as different tasks."""
    tokenizer = load_tokenizer(ModelConfig())
    prompts = [task.test[0].prompt for task in demo_benchmark().tasks]
    return tokenizer(prompts, return_tensors="pt", padding=True)


@torch.no_grad()
def logits(model):
    return model(**batch()).logits


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted({*METHODS} - WITHOUT)
    ],
)
def test_the_loaded_model_is_the_saved_one_bit_for_bit(tmp_path, method):
    run = draw_run(tmp_path / "run", method)
    model = load_memory(base(), run)
    before = logits(model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(model), before)  # saving leaves it alone
    again = from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), before) and not again.training
    if method != "zero_shot":
        assert not torch.equal(before, logits(base().eval()))


@pytest.mark.parametrize(
    "settings",
    [
        {"upto": 1},
        {"upto": 0},
        {"recall": "prefix"},
        {"recall": "prefix", "recogniser": "ridge", "unknown": "base"},
        {"dtype": torch.bfloat16},
        {"attn_implementation": "eager"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_with_its_settings(run, tmp_path, settings):
    of_base = {k: settings[k] for k in ("dtype", "attn_implementation") if k in settings}
    of_memory = {k: v for k, v in settings.items() if k not in of_base}
    model = load_memory(base(**of_base), run, **of_memory)
    before = logits(model)
    model.save_pretrained(tmp_path / "saved")
    again = from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), before)
    assert again.dtype == model.dtype
    again.save_pretrained(tmp_path / "twice")  # also of what was loaded so
    assert torch.equal(logits(from_pretrained(tmp_path / "twice")), before)


def test_earlier_states_and_files_of_the_loaded_tasks_alone(run, tmp_path):
    model = load_memory(base(), run, upto=1)
    model.save_pretrained(tmp_path / "saved")
    names = sorted(path.name for path in (tmp_path / "saved" / "memory").iterdir())
    stem = "000_topic"
    assert names == [f"{stem}.recogniser.safetensors", f"{stem}.safetensors", "memory.json"]
    with answered_by(from_pretrained(tmp_path / "saved"), [0]) as _:
        pass
    model = from_pretrained(tmp_path / "saved")
    with answered_by(model, [0]):
        found = logits(model)
    assert torch.equal(found, logits(base().eval()))


@pytest.mark.parametrize("load", [AutoModelForCausalLM, AutoConfig, LlamaForCausalLM, "pipeline"])
def test_transformers_gives_no_model_without_the_memory(run, tmp_path, load):
    load_memory(base(), run).save_pretrained(tmp_path / "saved")
    with pytest.raises((ValueError, OSError)) as error:
        if load == "pipeline":
            pipeline("text-generation", str(tmp_path / "saved"))
        else:
            load.from_pretrained(tmp_path / "saved")
    if load is not LlamaForCausalLM:
        assert "moram_dist.from_pretrained" in str(error.value)


def test_its_tokenizer_is_there_and_generate_takes_the_folder(run, tmp_path, capsys):
    load_memory(base(), run, recall="prefix").save_pretrained(tmp_path / "saved")
    text = "a b"
    expected = AutoTokenizer.from_pretrained(DEMO_BASE)(text)["input_ids"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved" / "base")
    assert tokenizer(text)["input_ids"] == expected
    prompt = demo_benchmark().tasks[0].test[0].prompt
    words = ["--prompt", prompt, "--max_new_tokens", "8"]
    capsys.readouterr()  # what saving a model may say
    assert main([str(run), *words, "--recall", "prefix"]) == 0
    of_run = capsys.readouterr()
    assert main([str(tmp_path / "saved"), *words]) == 0
    assert capsys.readouterr() == of_run


def test_a_copy_saves_itself(run, tmp_path):
    model = load_memory(base(), run)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.norm.weight += 0.5
    twin.save_pretrained(tmp_path / "saved")
    again = from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(twin)) and not torch.equal(
        logits(again), logits(model)
    )


def test_refusals_write_nothing(run, tmp_path):
    model = load_memory(base(), run)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"there already holds config\.json: give a new folder"):
        model.save_pretrained(tmp_path / "there")
    for name in ("push_to_hub", "state_dict"):
        with pytest.raises(InputError, match=f"takes no {name}"):
            model.save_pretrained(tmp_path / "new", **{name: True})
    model.bfloat16()
    with pytest.raises(InputError, match=r"was float32 when .* is bfloat16 now; load"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_memory_that_is_gone(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    model = load_memory(base(), copied)
    shutil.rmtree(copied / "memory")
    with pytest.raises(
        InputError, match=r"000_topic\.safetensors is named in memory\.json but mis"
    ):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_none_or_was_changed(run, tmp_path):
    with pytest.raises(InputError, match=r"holds no moram\.json: .*snapshot_download"):
        from_pretrained(DEMO_BASE)
    load_memory(base(), run).save_pretrained(tmp_path / "saved")
    other = base()
    other.model.norm.weight.data += 1
    shutil.rmtree(tmp_path / "saved" / "base")
    other.save_pretrained(tmp_path / "saved" / "base")
    with pytest.raises(InputError, match="is not the base that was saved with this memory"):
        from_pretrained(tmp_path / "saved")
    about = tmp_path / "saved" / "moram.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"version": 2}))
    with pytest.raises(InputError, match="has version 2"):
        from_pretrained(tmp_path / "saved")
