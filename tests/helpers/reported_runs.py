"""Run directories with all that a report shows, as training leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from eval.predictions import predictions_path

TASKS = ["C-STANCE", "FOMC", "<b>$Py150$</b>"]
SCORES = [[61.25, 12.5, 3.0], [55.0, 71.5, 4.0], [48.5, 73.25, 59.0]]
BASE = [10.0, 11.0, 2.0]
SCRIPT = "<script>alert('x')</script>"
LONG = "question " * 100 + "the end of the prompt"


def make_run(
    folder: Path, tasks=TASKS, scores=SCORES, base=BASE, *, steps_per_task: int = 20
) -> Path:
    """A run directory as training leaves it."""
    config = {
        "method": {"method": "moram", "top_k": 8},
        "data": {"benchmark": "trace", "order": None},
        "train": {"seed": 7},
        "record": {"tracking_uri": "https://me:secret@tracking.example/path"},
    }
    environment = {"python": "3.11", "packages": {"torch": "2.13.0"}, "command": ["train.py", "&"]}
    benchmark = {
        "name": "trace",
        "order": "published",
        "protocol": "official",
        "notes": ["scores < 100 even for a perfect answer"],
        "tasks": [{"name": t, "metric": "accuracy", "train": 5000, "test": 500} for t in tasks],
    }
    matrix = {"tasks": tasks, "metrics": dict.fromkeys(tasks, "accuracy"), "scores": scores}
    memory = [
        {"name": t, "file": f"{i:03d}.safetensors", "sha256": f"{i:064x}"}
        for i, t in enumerate(tasks[: len(scores)])
    ]
    (folder / "memory").mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    for name, value in {
        "environment.json": environment,
        "benchmark.json": benchmark,
        "scores.json": matrix if base is None else {**matrix, "base": base},
        "memory/memory.json": {"tasks": memory},
    }.items():
        (folder / name).write_text(json.dumps(value))
    with (folder / "metrics.jsonl").open("w") as file:
        for i in range(len(scores)):
            for step in range(steps_per_task):
                line = {
                    "step": i * steps_per_task + step,
                    "task": tasks[i],
                    "train/loss": 2 / (step + 1),
                }
                file.write(json.dumps(line) + "\n")
                file.write(
                    json.dumps({"step": line["step"], "train/tokens_per_second": 9.0}) + "\n"
                )
    last = folder / "predictions" / f"after_{len(scores) - 1:03d}"
    last.mkdir(parents=True)
    for j, name in enumerate(tasks[: len(scores)]):
        with predictions_path(folder, len(scores) - 1, j, name).open("w") as file:
            for k in range(12):
                line = {
                    "id": f"{j}-{k}",
                    "prompt": LONG,
                    "references": ["A", "B"],
                    "prediction": SCRIPT if k == 0 else f"answer {j}-{k}",
                    "score": 100.0 * (k % 2),
                }
                file.write(json.dumps(line) + "\n")
    return folder
