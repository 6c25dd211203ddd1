"""CLIP through the command, on two ranks: it learns, is killed, goes on, and is restored."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from transformers import CLIPModel

from moram_dist import load_memory
from moram_dist.config import ModelConfig
from moram_dist.families import family_of_model
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.tasks.task import Decoding
from tests.helpers.tiny_clip import COLOURS, draw_task, save_tiny_clip
from tests.integration.launching import ROOT, train
from tests.integration.test_encoder_decoder_run import contents, losses

pytestmark = pytest.mark.integration

TASKS = ("colours", "others")
STEPS = 12  # of each task: 24 pictures, 8 a step, four times
FLAGS = ("--benchmark", "images", "--order", ",".join(TASKS), "--epochs", "4")
FLAGS += ("--batch_size", "8", "--log_every", "1", "--dtype", "fp32", "--learning_rate", "0.01")
FLAGS += ("--target_modules", "all-linear", "--temperature", "0.3", "--recall", "prefix,all")
FLAGS += ("--unknown", "base", "--tracking", "none")
FLAGS += ("--ds_config", ROOT / "ds_configs" / "zero3.json")


def class_folders(folder: Path) -> Path:
    """Drawn pictures as a person would keep them: <task>/<split>/<class>/<picture>, and a list."""
    for name in TASKS:
        task = draw_task(folder / "drawn", name)
        for split, examples in (("train", task.train), ("test", task.test)):
            for example in examples:
                place = folder / "sets" / name / split / example.references[0]
                place.mkdir(parents=True, exist_ok=True)
                (task.pictures / example.prompt).rename(place / example.prompt)
    listing = folder / "sets" / "tasks.yaml"
    texts = {name: {label: f"{name[0]} {label}" for label in COLOURS} for name in TASKS}
    listing.write_text(
        "".join(f"- {{name: {t}, folder: {t}, texts: {json.dumps(texts[t])}}}\n" for t in TASKS)
    )
    return folder / "sets"


def test_a_clip_learns_goes_on_and_is_restored(tmp_path):
    model, data_dir = save_tiny_clip(tmp_path / "model"), class_folders(tmp_path)
    flags = (*FLAGS, "--model", model, "--data_dir", data_dir)

    whole = tmp_path / "whole"
    done = train(*flags, "--output_dir", whole)
    assert done.code == 0, done.out + done.err
    found = losses(whole)
    assert len(found) == 2 * STEPS
    scores = json.loads((whole / "scores.json").read_text())
    assert len(scores["scores"]) == 2 and min(scores["scores"][1]) > max(scores["base"])
    assert all(len(row) == 2 and None not in row for row in scores["scores"])  # the whole matrix

    flags_again = (*flags, "--output_dir", tmp_path / "stopped", "--save_every", "2")

    def kill_in_the_second_task(pids: list[int]) -> bool:
        if len(losses(tmp_path / "stopped")) < STEPS + 5:
            return False
        os.kill(pids[1], signal.SIGKILL)
        return True

    done = train(*flags_again, meanwhile=kill_in_the_second_task)
    assert done.code != 0
    done = train(*flags_again)
    assert done.code == 0, done.out + done.err
    assert "task others resumes after step" in done.out
    assert losses(tmp_path / "stopped") == found
    assert contents(tmp_path / "stopped") == contents(whole)

    done = train(*flags, "--output_dir", tmp_path / "alone", ranks=1)
    assert done.code == 0, done.out + done.err
    assert losses(tmp_path / "alone") == pytest.approx(found, rel=1e-4)
    alone = json.loads((tmp_path / "alone" / "scores.json").read_text())
    assert alone["scores"] == scores["scores"]

    tokenizer = load_tokenizer(ModelConfig(model=str(model)))
    tasks = BENCHMARKS["images"](Source(order=",".join(TASKS), data_dir=data_dir)).tasks
    plain = load_memory(CLIPModel.from_pretrained(model), whole)
    for j, task in enumerate(tasks):
        answers = family_of_model(plain).generate(plain, tokenizer, task.test, task, Decoding())
        path = whole / f"predictions/after_001/on_{j:03d}_{task.name}.all.jsonl"
        predicted = [json.loads(line)["prediction"] for line in path.open(encoding="utf-8")]
        assert answers == predicted
