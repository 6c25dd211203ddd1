"""``moram export``: PEFT gives the same logits, a task of MoRAM says its loss, cards load."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

from launch.export.card import card
from launch.export.command import main
from moram_dist import load_memory
from moram_dist.models.language_model import DEMO_BASE
from moram_dist.use.approximate import _Fit
from moram_dist.use.source import read_source
from tests.helpers.drawn_runs import TASKS, draw_run, save_tiny_gpt2
from tests.helpers.tiny import tokens
from tests.helpers.tiny_t5 import save_tiny_t5

peft = pytest.importorskip("peft")

ONE_LORA = ("sequential_lora", "ewc", "lwf", "replay", "multitask", "slao", "single_task")
ONE_LORA += ("any_ssr", "inc_lora", "o_lora", "inf_lora", "gpm_lora")
IDS = tokens(2, 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return draw_run(tmp_path_factory.mktemp("drawn") / "run")


def as_peft(folder, base=DEMO_BASE, kind=AutoModelForCausalLM):
    """In double precision: nothing but rounding may differ, and machines round differently."""
    model = kind.from_pretrained(base, dtype=torch.float64)
    return peft.PeftModel.from_pretrained(model, folder).double().eval()


@torch.no_grad()
def logits(model, **inputs):
    return model(input_ids=IDS, **inputs).logits


def assert_equal(run, out, upto, base=DEMO_BASE, kind=AutoModelForCausalLM, within=1e-9, **inputs):
    plain = kind.from_pretrained(base, dtype=torch.float64).eval()
    before = logits(plain, **inputs)
    expected = logits(load_memory(plain, run, upto, recall="all"), **inputs)
    found = logits(as_peft(out, base, kind), **inputs)
    torch.testing.assert_close(found, expected, atol=within, rtol=0)
    assert (expected - before).abs().max() > 0.1


@pytest.mark.parametrize("method", ONE_LORA)
def test_peft_gives_the_same_logits(tmp_path, method):
    run = draw_run(tmp_path / "run", method, alpha=10)
    for upto, task in enumerate(TASKS, start=1):
        assert main([str(run), "--to", "peft", "--task", task, "--out", str(tmp_path / task)]) == 0
        assert_equal(run, tmp_path / task, upto)
    settings = json.loads((tmp_path / TASKS[1] / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    is_sum = method in ("inc_lora", "o_lora", "inf_lora", "gpm_lora")
    assert settings["r"] == (8 if is_sum else 4)


def test_the_newest_task_by_default_and_some_linears_alone(tmp_path):
    target = r"model\.layers\.1\.self_attn\.[qv]_proj"
    run = draw_run(tmp_path / "run", "sequential_lora", target_modules=target)
    assert main([str(run), "--to", "peft", "--out", str(tmp_path / "out")]) == 0
    assert_equal(run, tmp_path / "out", 2)
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["target_modules"] == [f"model.layers.1.self_attn.{k}_proj" for k in "qv"]


def test_transposed_linears_of_gpt2(tmp_path):
    base = save_tiny_gpt2(tmp_path / "base")
    flags = {"model": str(base), "target_modules": "c_attn,c_proj"}
    run = draw_run(tmp_path / "run", "sequential_lora", **flags)
    assert main([str(run), "--to", "peft", "--out", str(tmp_path / "out")]) == 0
    assert_equal(run, tmp_path / "out", 2, base)


def test_an_encoder_decoder(tmp_path):
    base = save_tiny_t5(tmp_path / "base")
    run = draw_run(tmp_path / "run", "inc_lora", model=str(base))
    assert main([str(run), "--to", "peft", "--out", str(tmp_path / "out")]) == 0
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_2_SEQ_LM"
    assert_equal(run, tmp_path / "out", 2, base, AutoModelForSeq2SeqLM, decoder_input_ids=IDS)


def test_a_task_of_moram_whose_weights_do_not_depend_on_the_token_is_exact(tmp_path, capsys):
    """So hot that all atoms weigh the same."""
    run = draw_run(tmp_path / "run", temperature=1e6, threshold=0, top_k=8)
    for upto, task in enumerate(TASKS, start=1):
        out = tmp_path / task
        assert main([str(run), "--to", "peft", "--task", task, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert f"LoRA of rank {4 * upto} for {task}" in said and "on 6 of its test exam" in said
        assert "KL to the memory 0.0000 nats per answer token" in said
        assert_equal(run, out, upto, within=1e-5)  # a fit
        assert all(line in (out / "README.md").read_text() for line in said.splitlines())


def test_a_task_of_moram_is_approximated_and_its_loss_is_told(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(run), "--to", "peft", "--task", "mood", "--out", str(out)]) == 0
    _, divergence, score = capsys.readouterr().out.splitlines()
    numbers = [float(word.rstrip(")")) for word in divergence.split() if word[0].isdigit()]
    assert len(numbers) == 2 and min(numbers) > 0
    assert score.startswith("exact_match_normalised ") and "(of the memory: " in score
    tensors = as_peft(out).state_dict()
    source, name = read_source(run), "model.layers.0.self_attn.q_proj"
    keys = [source.files.read(task)[f"{name}.keys"] for task in source.manifest.tasks]
    lora_A = tensors[f"base_model.model.{name}.lora_A.default.weight"]
    assert torch.equal(lora_A, torch.cat(keys))


def test_weights_are_the_least_squares_fit():
    """By torch's solver, over all numbers of the update at once."""
    generator = torch.Generator().manual_seed(0)
    x, keys, values = (torch.randn(n, 5, generator=generator) for n in (30, 3, 3))
    score, weight = x @ keys.T, torch.rand(30, 3, generator=generator)
    update = (weight * score) @ values
    fit = _Fit(keys, values)
    for some in (slice(10), slice(10, 30)):
        fit.add(score[some], weight[some], values)
    terms = torch.einsum("tr,re->ter", score, values).reshape(-1, 3)
    expected = torch.linalg.lstsq(terms, update.reshape(-1, 1)).solution[:, 0]
    found = fit.terms()
    assert found[0] is keys
    torch.testing.assert_close(found[1], values * expected[:, None], atol=1e-5, rtol=1e-4)


def test_changed_data_is_refused(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / "run.yaml").read_text()
    (copy / "run.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    words = [str(copy), "--to", "peft", "--task", "mood", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "split of task mood has changed" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("method", "words", "said"),
    [
        ("moe_lora", [], "what moe_lora adds is no LoRA"),
        ("gain_lora", [], "what gain_lora adds is no LoRA"),
        ("zero_shot", [], "what zero_shot adds is no LoRA"),
        ("in_context", [], "in_context puts training examples before each prompt"),
        ("rail", [], "rail answers beside the model"),
        ("moram", [], "moram answers each prompt in another way"),
        ("any_ssr", [], "any_ssr answers each prompt in another way"),
        ("inc_lora", ["--task", "0"], "nothing is learned before the first task"),
        ("inc_lora", ["--task", "moo"], "unknown task 'moo'; did you mean 'mood'?"),
        ("inc_lora", ["--to", "gguf"], "unknown --to 'gguf'"),
        ("inc_lora", ["--out", "."], "--out .: is there already"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(
    tmp_path, capsys, monkeypatch, method, words, said
):
    monkeypatch.chdir(tmp_path)
    run = draw_run(tmp_path / "run", method)
    capsys.readouterr()
    assert main([str(run), "--to", "peft", "--out", "out", *words]) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and said in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_memory_folder_alone(run, tmp_path, capsys):
    words = [str(run / "memory"), "--to", "peft", "--task", "mood", "--out", str(tmp_path / "out")]
    assert main([*words, "--model", "demo"]) == 2
    assert "is fitted to the task's data: give the run directory" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "upto"), [(None, 2), ("topic", 1)])
def test_a_folder_for_the_hub_loads(run, tmp_path, task, upto):
    out = tmp_path / "out"
    words = [] if task is None else ["--task", task]
    assert main([str(run), "--to", "hub", "--out", str(out), *words]) == 0
    model = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32)
    expected = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32)
    found = logits(load_memory(model, out))
    assert torch.equal(found, logits(load_memory(expected, run, upto)))
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "memory"]
    assert len([*(out / "memory").iterdir()]) == 1 + 2 * upto


def front(text):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    data = huggingface_hub.ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    assert data == yaml.safe_load(text.split("---\n")[1])
    return data


def test_the_card(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    scores = {
        "tasks": list(TASKS),
        "metrics": dict.fromkeys(TASKS, "exact_match_normalised"),
        "scores": [[75.0, None], [50.0, 100.0]],
    }
    (copy / "scores.json").write_text(json.dumps(scores))
    source = read_source(copy)
    text = card(source, 2, None, (), "AutoModelForCausalLM")
    assert front(text) == {"library_name": "moram-dist", "tags": ["continual-learning", "moram"]}
    assert "| topic | 75.00 |  |\n| mood | 50.00 | 100.00 |\n" in text
    assert "1. topic\n2. mood\n" in text
    assert source.manifest.base["fingerprint"] in text
    assert "Its folder states no licence" in text
    assert 'LM.from_pretrained("demo")\nload_memory(model, FOLDER)\n' in text

    base = Path(shutil.copytree(DEMO_BASE, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n")
    of_folder = replace(source, model=replace(source.model, model=str(base)))
    text = card(of_folder, 1, None, (), "AutoModelForCausalLM")
    assert front(text)["license"] == "apache-2.0" and "base_model" not in front(text)
    assert "states no licence" not in text and "2. mood" not in text
    of_hub = replace(source, model=replace(source.model, model="somebody/their-model"))
    assert front(card(of_hub, 2, None, (), "AutoModel"))["base_model"] == "somebody/their-model"
