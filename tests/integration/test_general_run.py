"""``--general``: what a run measures by lm-eval is what lm-eval's own command prints."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from eval.general import general_path
from eval.measure.general import BATCH_SIZE
from launch.export.command import main as export
from moram_dist.models.language_model import DEMO_BASE
from moram_dist.tasks.demo_text import make_sentence
from tests.integration.launching import ROOT, run, train

pytest.importorskip("lm_eval")

pytestmark = pytest.mark.integration

LISTED = {
    "words": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "sentences": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{start}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
}
METRICS = {"words": "acc,none", "sentences": "bits_per_byte,none"}


def write_tasks(folder: Path) -> list[str]:
    """Local task files, with a data file beside them; JSON is YAML."""
    numbers = random.Random(5)
    records = []
    for _ in range(20):
        sentence = make_sentence(numbers)
        start, _, _ = sentence.text.partition(f" {sentence.words['look']}")
        choices = [sentence.words["look"], "moved", "of"]
        numbers.shuffle(choices)
        answer = choices.index(sentence.words["look"])
        records.append({"start": start, "choices": choices, "answer": answer})
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, settings in LISTED.items():
        whole = {"task": name, "dataset_path": "json", "test_split": "test", **settings}
        whole["dataset_kwargs"] = {"data_files": {"test": str(data)}}
        (folder / f"{name}.yaml").write_text(json.dumps(whole))
    return [str(folder / f"{name}.yaml") for name in LISTED]


def by_command(files: list[str], folder: Path, **model: object) -> dict[str, float]:
    """The first metric of each task, as lm-eval's command writes it."""
    arguments = ",".join(f"{key}={value}" for key, value in model.items())
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments]
    command += ["--tasks", ",".join(files), "--device", "cpu", "--batch_size", str(BATCH_SIZE)]
    done = run(*command, "--output_path", folder, cwd=ROOT)
    assert done.code == 0, done.err
    (path,) = folder.rglob("results*.json")
    results = json.loads(path.read_text())["results"]
    return {name: results[name][METRICS[name]] for name in LISTED}


def by_run(folder: Path, row: int) -> dict[str, float]:
    scores = json.loads(general_path(folder, row).read_text())["scores"]
    found = {one["task"]: one for listed in scores.values() for one in listed}
    assert {name: found[name]["metric"] for name in METRICS} == METRICS
    return {name: found[name]["value"] for name in LISTED}


def test_a_run_measures_what_lm_eval_prints(tmp_path):
    files = write_tasks(tmp_path)
    out = tmp_path / "run"
    flags = [
        "--ds_config",
        str(ROOT / "ds_configs" / "zero3.json"),
        "--method",
        "sequential_lora",
        "--dtype",
        "fp32",
    ]
    flags += ["--order", "topic,mood", "--limit_train", "32", "--limit_eval", "2"]
    flags += ["--tracking", "none", "--output_dir", str(out), "--learning_rate", "3e-3"]
    asked = ["--general", ",".join(["demo", *files])]
    done = train(*flags, *asked)
    assert done.code == 0, done.out + done.err
    assert "before training: words acc " in done.out
    assert sorted(path.name for path in (out / "general").iterdir()) == [
        "after_001.json",
        "base.json",
    ]

    base = by_run(out, -1)
    assert base == by_command(files, tmp_path / "of_base", pretrained=DEMO_BASE, dtype="float32")
    last = by_run(out, 1)
    assert export([str(out), "--to", "peft", "--out", str(tmp_path / "lora")]) == 0
    settings = {"pretrained": DEMO_BASE, "dtype": "float32", "peft": tmp_path / "lora"}
    assert last == pytest.approx(by_command(files, tmp_path / "of_last", **settings), rel=1e-5)
    assert abs(last["sentences"] - base["sentences"]) > 1e-3

    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    logged = {line["tasks_learned"]: line for line in lines if "general/words" in line}
    assert [*logged] == [0, 2]
    assert logged[0]["general/sentences"] == base["sentences"]
    assert logged[2]["general/sentences"] == last["sentences"]
    assert "general/demo_sentences" in logged[2] and "score/mood" in logged[2]
    page = (out / "report" / "index.html").read_text()
    change = last["sentences"] - base["sentences"]
    assert "General abilities" in page and f'<td class="n">{change:.4f}</td>' in page

    assert_only_what_is_missing_is_measured(flags, asked, out)


def assert_only_what_is_missing_is_measured(flags, asked, out):
    """Also after the run is complete, and for rows or tasks that are asked for later."""
    done = train(*flags, *asked)
    assert done.code == 0 and "all 2 tasks are done" in done.out
    before = general_path(out, -1).read_bytes(), general_path(out, -1).stat().st_mtime_ns
    kept = general_path(out, 1).read_bytes()
    general_path(out, 1).unlink()
    done = train(*flags, *asked, "--general_rows", "all")
    assert done.code == 0, done.out + done.err
    assert "after mood: words" in done.out and "after topic: words" in done.out
    assert "before training: words" not in done.out and "exact_match" not in done.out
    assert general_path(out, 1).read_bytes() == kept
    path = general_path(out, -1)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
