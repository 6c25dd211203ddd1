"""``moram import``: a LoRA alone answers as before, several tell what they lose."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from launch.export.command import main as export
from launch.generate import main as generate
from launch.importing.command import main
from launch.inspection import main as inspect
from moram_dist import load_memory
from moram_dist.memory import main as memory
from moram_dist.models.language_model import DEMO_BASE
from tests.helpers.drawn_runs import draw_run, save_tiny_gpt2
from tests.helpers.peft_loras import CAUSAL, IDS, peft, plain, train
from tests.helpers.tiny_t5 import save_tiny_t5

CLOSE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "topic")


@torch.no_grad()
def logits(model, **inputs):
    return model(input_ids=IDS, **inputs).logits


def by_peft(folder, base=DEMO_BASE, kind=CAUSAL, **inputs):
    return logits(peft.PeftModel.from_pretrained(plain(base, kind), folder).eval(), **inputs)


def assert_there_and_back(lora, out, back, base=DEMO_BASE, kind=CAUSAL, **inputs):
    """The memory alone, and the LoRA that it exports, give the logits of the LoRA in PEFT."""
    assert main(["--peft", str(lora), "--out", str(out)]) == 0
    words = [str(out), "--to", "peft", "--task", lora.name, "--out", str(back)]
    assert export(words) == 0
    expected = by_peft(lora, base, kind, **inputs)
    assert (expected - logits(plain(base, kind), **inputs)).abs().max() > 0.1
    found = logits(load_memory(plain(base, kind), out), **inputs)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(by_peft(back, base, kind, **inputs), expected, **CLOSE)


# Alone.


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"1.*.q_proj": 11}},
        {"target_modules": "all-linear", "init_lora_weights": "gaussian"},
        {"target_modules": ["down_proj"], "layers_to_transform": [1], "task_type": "CAUSAL_LM"},
    ],
)
def test_a_lora_of_peft_goes_there_and_back(tmp_path, capsys, settings):
    lora = train(tmp_path / "mine", **settings)
    assert_there_and_back(lora, tmp_path / "out", tmp_path / "back")
    assert "It is alone, so it answers as before" in capsys.readouterr().out
    kept = json.loads((tmp_path / "back" / "adapter_config.json").read_text())["target_modules"]
    ours = set(load_file(lora / "adapter_model.safetensors"))
    assert set(load_file(tmp_path / "back" / "adapter_model.safetensors")) == ours
    assert len(kept) >= 1


def test_a_lora_of_ours_goes_there_and_back(tmp_path):
    run = draw_run(tmp_path / "run", "sequential_lora", alpha=10)
    assert export([str(run), "--to", "peft", "--out", str(tmp_path / "ours")]) == 0
    assert_there_and_back(tmp_path / "ours", tmp_path / "out", tmp_path / "back")
    expected = logits(load_memory(plain(), run))
    torch.testing.assert_close(logits(load_memory(plain(), tmp_path / "out")), expected, **CLOSE)


def test_transposed_linears_of_gpt2(tmp_path):
    base = save_tiny_gpt2(tmp_path / "base")
    lora = train(tmp_path / "mine", base, target_modules=["c_attn"], fan_in_fan_out=True)
    assert_there_and_back(lora, tmp_path / "out", tmp_path / "back", base)


def test_an_encoder_decoder(tmp_path):
    base = save_tiny_t5(tmp_path / "base")
    lora = train(tmp_path / "mine", base, AutoModelForSeq2SeqLM, target_modules=["q", "v"])
    inputs = {"decoder_input_ids": IDS}
    back = tmp_path / "back"
    assert_there_and_back(lora, tmp_path / "out", back, base, AutoModelForSeq2SeqLM, **inputs)


def test_the_commands_take_the_memory(trained, tmp_path, capsys):
    out, hub = tmp_path / "out", tmp_path / "hub"
    assert main(["--peft", str(trained), "--out", str(out)]) == 0
    assert generate([str(out), "--prompt", "Topic:", "--max_new_tokens", "2"]) == 0
    capsys.readouterr()
    assert inspect([str(out), "--prompt", "Topic:"]) == 0
    assert "topic 100.0%" in capsys.readouterr().out
    assert memory(["show", str(out / "memory")]) == 0
    assert "verified, imported: a LoRA of rank 4" in capsys.readouterr().out
    assert export([str(out), "--to", "hub", "--out", str(hub)]) == 0
    assert "was made of LoRAs for 1 tasks" in (hub / "README.md").read_text()
    expected = logits(load_memory(plain(), out))
    assert torch.equal(logits(load_memory(plain(), hub)), expected)
    load_memory(plain(), out).save_pretrained(tmp_path / "saved")
    words = [str(tmp_path / "saved"), "--to", "peft", "--task", "topic", "--out"]
    assert export([*words, str(tmp_path / "back")]) == 0
    torch.testing.assert_close(by_peft(tmp_path / "back"), by_peft(trained), **CLOSE)


# Several.


def write_tasks(folder, names):
    listed = []
    for number, name in enumerate(names):
        listed.append({"name": name, "max_answer_tokens": 4})
        for split, count in (("train", 6), ("test", 2)):
            records = [
                {"prompt": f"{name} {'abc'[number]} {i}:", "answer": ["yes", "no"][i % 2]}
                for i in range(count)
            ]
            path = folder / f"{name}_{split}.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
            listed[-1][split] = path.name
    (folder / "tasks.yaml").write_text(json.dumps(listed))
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Three LoRAs of different rank, linears and scale, and the folder of their memory."""
    folder = tmp_path_factory.mktemp("several")
    loras = [
        train(folder / "one", seed=1),
        train(folder / "two", seed=2, r=2, target_modules=["o_proj", "v_proj"]),
        train(folder / "three", seed=3, r=7, use_rslora=True, layers_to_transform=[0]),
    ]
    (folder / "data").mkdir()
    data = write_tasks(folder / "data", ["three", "two", "one"])
    words = ["--benchmark", "jsonl", "--data_dir", str(data), "--out", str(folder / "out")]
    with redirect_stdout(StringIO()) as said:
        assert main(["--peft", *map(str, loras), *words]) == 0
    return folder, loras, said.getvalue()


def test_the_first_is_exact_and_each_comes_back(several, tmp_path):
    folder, loras, _ = several
    found = logits(load_memory(plain(), folder / "out", upto=1))
    torch.testing.assert_close(found, by_peft(loras[0]), **CLOSE)
    together = logits(load_memory(plain(), folder / "out"))
    for lora in loras:
        back = tmp_path / lora.name
        words = [str(folder / "out"), "--to", "peft", "--task", lora.name, "--out", str(back)]
        assert export(words) == 0
        torch.testing.assert_close(by_peft(back), by_peft(lora), **CLOSE)
        assert set(load_file(back / "adapter_model.safetensors")) == set(
            load_file(lora / "adapter_model.safetensors")
        )
        assert (together - by_peft(lora)).abs().max() > 0.01


@torch.no_grad()
def answer_logits(model, prompt, answer):
    """By hand: log-probabilities of each answer token and of EOS, and these tokens."""
    from moram_dist.config import ModelConfig
    from moram_dist.models.language_model import load_tokenizer

    tokenizer = load_tokenizer(ModelConfig())
    said = tokenizer(f"{prompt} {answer}", add_special_tokens=False).input_ids
    asked = tokenizer(prompt, add_special_tokens=False).input_ids
    ids = torch.tensor([[tokenizer.bos_token_id, *said, tokenizer.eos_token_id]])
    given = 1 + len(asked)
    return model(input_ids=ids).logits[0, given - 1 : -1].log_softmax(-1), ids[0, given:]


def test_the_figures_are_those_of_the_models(several):
    """Loss and divergence by hand, with the LoRA in PEFT and the memory in transformers."""
    folder, loras, _ = several
    made = json.loads((folder / "out" / "imported.json").read_text())
    assert [one["task"] for one in made["measured"]] == ["one", "two", "three"]
    for number, (lora, one) in enumerate(zip(loras, made["measured"], strict=True), start=1):
        lines = (folder / "data" / f"{lora.name}_test.jsonl").read_text().splitlines()
        examples = [(r["prompt"], r["answer"]) for r in map(json.loads, lines)]
        alone = peft.PeftModel.from_pretrained(plain(), lora).eval()
        models = {
            "base": plain(),
            "alone": alone,
            "together": load_memory(plain(), folder / "out"),
            "recognised": load_memory(plain(), folder / "out", upto=number),
        }
        reference = [answer_logits(alone, *example)[0] for example in examples]
        for column, model in models.items():
            seen = [answer_logits(model, *example) for example in examples]
            count = sum(len(targets) for _, targets in seen)
            loss = -sum(float(p[range(len(t)), t].sum()) for p, t in seen) / count
            kl = sum(
                float((q.exp() * (q - p)).sum()) for q, (p, _) in zip(reference, seen, strict=True)
            )
            assert one[column]["loss"] == pytest.approx(loss, abs=1e-4), column
            assert one[column]["divergence"] == pytest.approx(kl / count, abs=1e-4), column
        assert one["together"]["divergence"] > 1e-3 and one["examples"] == 2


def test_what_is_told_is_what_is_kept(several):
    folder, _, said = several
    assert "one                  4        6" in said and "three                7        2" in said
    for one in json.loads((folder / "out" / "imported.json").read_text())["measured"]:
        columns = ("base", "alone", "together", "recognised")
        row = "".join(f"{one[column]['divergence']:12.4f}" for column in columns)
        assert f"KL from the LoRA alone  {row}" in said


def test_generate_recalls_by_prefix(several, capsys):
    folder, *_ = several
    assert generate([str(folder / "out"), "--prompt", "two b 1:"]) == 0
    assert "recognised: two" in capsys.readouterr().err


def test_a_damaged_record_is_refused(several, tmp_path, capsys):
    copy = shutil.copytree(several[0] / "out", tmp_path / "out")
    record = json.loads((copy / "imported.json").read_text())
    (copy / "imported.json").write_text(json.dumps(record | {"version": 9}))
    assert generate([str(copy), "--prompt", "Topic:"]) == 2
    assert "has version 9; this program: 1" in capsys.readouterr().err
