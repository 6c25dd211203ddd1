"""Compare training and evaluation times of a sequence between two commits of this project.

    git worktree add ../before COMMIT
    python tools/bench_loop.py --before ../before --limit_train 128 --data_dir /DIR --model /FOLDER

Both run the same command with the same flags in turn, each in its own checkout, so paths must be
absolute. Times are read from the files of a run: a task's training ends with its memory file, its
evaluation with the last predictions of its row.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from moram_dist.reading import read_json  # noqa: E402

PORT = 29650


@dataclass(frozen=True)
class Times:
    """Seconds of one run, one number per task."""

    training: list[float]
    evaluation: list[float]
    scores: list[list[float | None]]


def run(state: Path, folder: Path, ranks: int, flags: Sequence[str]) -> Times:
    """Run one sequence from its beginning, with the checkout ``state``."""
    shutil.rmtree(folder, ignore_errors=True)
    command = ["deepspeed", "--master_port", str(PORT), "--num_gpus", str(ranks)]
    command += [str(state / "launch" / "train.py"), "--ds_config"]
    command += [str(state / "ds_configs" / "zero3.json"), "--tracking", "none"]
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        subprocess.run(
            [*command, "--output_dir", str(folder), *flags],
            cwd=state,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return read(folder)


def read(folder: Path) -> Times:
    """Read the times of a run from its files."""
    begun = (folder / "ds_config.json").stat().st_mtime
    training, evaluation = [], []
    for i, entry in enumerate(read_json(folder / "memory" / "memory.json")["tasks"]):
        learned = (folder / "memory" / entry["file"]).stat().st_mtime
        row = (folder / "predictions" / f"after_{i:03d}").glob("*.jsonl")
        answered = max(path.stat().st_mtime for path in row)
        training.append(learned - begun)
        evaluation.append(answered - learned)
        begun = answered
    scores: Any = read_json(folder / "scores.json")
    return Times(training, evaluation, scores["scores"])


def table(tasks: Sequence[str], found: Mapping[str, list[Times]]) -> str:
    """Seconds of each checkout, the minimum over its runs, and the ratio of the two."""
    names = list(found)
    head = ["task"] + [f"{kind}, {name}" for kind in ("training", "evaluation") for name in names]
    lines = [[*head, "ratio of training", "of evaluation"]]
    lines.append(["---"] * len(lines[0]))
    least = {
        name: [
            [min(getattr(times, kind)[i] for times in runs) for i in range(len(tasks))]
            for kind in ("training", "evaluation")
        ]
        for name, runs in found.items()
    }
    for i, task in enumerate([*tasks, "all"]):
        cells = [
            [sum(least[name][kind]) if i == len(tasks) else least[name][kind][i] for name in names]
            for kind in (0, 1)
        ]
        line = [task] + [f"{seconds:.1f}" for kind in cells for seconds in kind]
        lines.append(line + [f"{before / now:.2f}" for before, now in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run both checkouts in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout of another state")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_loop"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2)
    args, flags = parser.parse_known_args()
    states = {"before": args.before.resolve(), "now": ROOT}
    found: dict[str, list[Times]] = {name: [] for name in states}
    for repeat in range(args.repeats):
        for name, state in states.items():
            begun = time.monotonic()
            folder = args.out.resolve() / f"{name}-{repeat}"
            found[name].append(run(state, folder, args.ranks, flags))
            print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    tasks = [e["name"] for e in read_json(folder / "memory" / "memory.json")["tasks"]]
    print(table(tasks, found))
    before, now = (found[name][0].scores for name in states)
    unlike = sum(
        a != b for x, y in zip(before, now, strict=True) for a, b in zip(x, y, strict=True)
    )
    print(f"{unlike} of {sum(a is not None for x in now for a in x)} cells have another score")


if __name__ == "__main__":
    main()
