"""Whole runs on chats: which turns are learned is kept over resumes, and by older runs too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from moram_dist.models.language_model import DEMO_BASE
from tests.helpers.chats import CHATML
from tests.integration.launching import ROOT, train

pytestmark = pytest.mark.integration

DONE = "all 2 tasks are done"


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    """Flags of a run on two tasks of chats, and a base with a chat template."""
    folder = tmp_path_factory.mktemp("chats")
    shutil.copytree(DEMO_BASE, folder / "base")
    (folder / "base" / "chat_template.jinja").write_text(CHATML)
    for task, answers in (("kind", ("pet", "tool")), ("size", ("big", "small"))):
        (folder / "data" / task).mkdir(parents=True)
        for split in ("train", "test"):
            lines = [json.dumps(chat(answers, number)) + "\n" for number in range(4)]
            (folder / "data" / task / f"{split}.jsonl").write_text("".join(lines))
    return [
        *("--ds_config", str(ROOT / "ds_configs" / "zero3.json"), "--tracking", "none"),
        *("--model", str(folder / "base"), "--benchmark", "jsonl"),
        *("--data_dir", str(folder / "data"), "--batch_size", "4", "--max_answer_tokens", "8"),
        *("--recall", "prefix", "--log_every", "1"),
    ]


def chat(answers: tuple[str, str], number: int) -> dict[str, list[dict[str, str]]]:
    turns = [("user", f"A thing {number}?"), ("assistant", answers[number % 2])] * (1 + number % 2)
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [found["train/loss"] for found in map(json.loads, lines) if "train/loss" in found]


def test_turns_of_chats(given, tmp_path):
    for name, *flags in (("all",), ("last", "--loss_turns", "last")):
        done = train(*given, *flags, "--output_dir", tmp_path / name)
        assert done.code == 0, done.out + done.err
    settings = yaml.safe_load((tmp_path / "all" / "run.yaml").read_text())
    assert settings["data"]["loss_turns"] == "all"
    assert losses(tmp_path / "all")[0] != pytest.approx(losses(tmp_path / "last")[0], rel=1e-3)

    done = train(*given, "--output_dir", tmp_path / "all")
    assert done.code == 0 and DONE in done.out
    record = tmp_path / "last" / "run.yaml"
    settings = yaml.safe_load(record.read_text())
    del settings["data"]["loss_turns"]  # as older versions wrote it
    record.write_text(yaml.safe_dump(settings))
    done = train(*given, "--output_dir", tmp_path / "last")
    assert done.code == 0 and DONE in done.out
    done = train(*given, "--loss_turns", "all", "--output_dir", tmp_path / "last")
    assert done.code == 2 and "loss_turns: None -> all" in done.err
