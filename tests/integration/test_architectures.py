"""Every architecture that is promised: trained, evaluated, stopped, resumed, restored.

Of the nightly tests, and by itself ``make test-architectures``. It prints a line for each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from moram_dist import load_memory
from moram_dist.config import ModelConfig
from moram_dist.families import answer_batch
from moram_dist.models.language_model import DEMO_BASE, load_tokenizer
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.architectures import CONFIGS, tiny
from tests.integration.launching import ROOT, train

pytestmark = [pytest.mark.architectures, pytest.mark.nightly]

TASKS = ("topic", "mood")
LIMITS = {"limit_train": 8, "limit_eval": 4}
FLAGS = {
    "ds_config": ROOT / "ds_configs" / "zero3.json",
    "tracking": "none",
    "order": ",".join(TASKS),
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 0.02,
    "dtype": "fp32",
    "answers": "generate,labels",
    "recall": "all",  # as load_memory answers without being asked otherwise
    **LIMITS,
}
WAYS = ("generate", "labels")
WITHOUT_ATTENTION = ("Mamba2",)


@pytest.fixture(scope="module")
def table(request):
    """Architecture -> what became of it; printed at the end."""
    found: dict[str, str] = {}
    yield found
    plugins = request.config.pluginmanager
    with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
        print()
        for name, line in found.items():
            print(f"{name:18} {line}")


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def save(name: str, folder: Path) -> Path:
    """A base with the demo's tokenizer, which for T5 adds what T5's adds."""
    settings = json.loads((DEMO_BASE / "tokenizer_config.json").read_text())
    if name == "T5":
        settings |= {"add_bos_token": False, "add_eos_token": True, "pad_token": "<unk>"}
    rows = 1024
    tiny(name, rows).save_pretrained(folder)
    shutil.copy(DEMO_BASE / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_architecture(name, tmp_path, table):
    table[name] = "FAILED"
    base, run = save(name, tmp_path / "base"), tmp_path / "run"
    target = "all-linear" if name in WITHOUT_ATTENTION else "attention"
    flags = FLAGS | {"model": base, "output_dir": run, "target_modules": target}
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]

    def stop_after_the_first_task(pids: list[int]) -> bool:
        if not (run / "memory" / "memory.json").exists():
            return False
        os.kill(pids[0], signal.SIGTERM)
        return True

    first = train(*words, ranks=1, meanwhile=stop_after_the_first_task)
    assert first.code == 75, first.out + first.err
    second = train(*words, ranks=1)
    assert second.code == 0, second.out + second.err
    manifest = json.loads((run / "memory" / "memory.json").read_text())
    assert [task["name"] for task in manifest["tasks"]] == [*TASKS]
    assert None not in json.loads((run / "scores.json").read_text())["scores"][-1]

    kind = AutoModelForSeq2SeqLM if name == "T5" else AutoModelForCausalLM
    plain = kind.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(ModelConfig(model=str(base)))
    demo = BENCHMARKS["demo"](Source(order=flags["order"], **LIMITS))

    def answers() -> tuple[list[str], list[float]]:
        """What is generated, and the log-likelihoods of all labels."""
        texts, scores = [], []
        for task in demo.tasks:
            found = answer_batch(WAYS, plain, tokenizer, task.test, task, demo.decoding)
            texts += [one.text for one in found["generate"]]
            scores += [s for one in found["labels"] for s in (one.log_likelihoods or {}).values()]
        return texts, scores

    plain_scores = torch.tensor(answers()[1])
    load_memory(plain, run)
    texts, scores = answers()
    files = [run / f"predictions/after_001/on_{j:03d}_{task}" for j, task in enumerate(TASKS)]
    assert texts == [line["prediction"] for file in files for line in lines(f"{file}.jsonl")]
    saved = [line["log_likelihoods"] for file in files for line in lines(f"{file}.labels.jsonl")]
    published = torch.tensor([score for one in saved for score in one.values()])
    torch.testing.assert_close(torch.tensor(scores), published, rtol=1e-4, atol=1e-4)
    assert (published - plain_scores).abs().max() > 0.1  # it has learned something
    said = [line for line in second.out.splitlines() if line.startswith(("adapted:", "not adapt"))]
    table[name] = "ok  " + "; ".join(said)
