"""Compare methods on Standard CL with a small base; it goes on where it was stopped.

    python tools/compare_standard_cl.py --model FOLDER --data_dir FOLDER [--seeds 0,1,2] [--jobs 2]

Each method's learning rate is the one of RATES that has the best AP on an order that is none of the
three, on examples behind those that training sees. Then orders 1 to 3, on the test sets.

Each run is one process of launch/train.py. When it ends, its scores and a digit an answer are
appended to a file in docs/results; a run that is there is not made again, on whatever machine. The
table is made from these files alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eval.compare import compare  # noqa: E402
from eval.compare_command import write_comparison  # noqa: E402
from eval.compare_runs import read_run_directory, read_runs  # noqa: E402
from eval.compare_tables import markdown  # noqa: E402
from eval.continual import sequence_metrics  # noqa: E402
from eval.references import read_references  # noqa: E402
from moram_dist.files import write_atomically  # noqa: E402
from moram_dist.reading import read_json  # noqa: E402
from moram_dist.tasks.readers import read_records  # noqa: E402

METHODS = (
    *("moram", "sequential_lora", "inc_lora", "o_lora", "replay", "moe_lora", "multitask"),
    "zero_shot",
)
RATES = ("1e-3", "3e-3", "6e-3")
ORDERS = ("1", "2", "3")
HELD_OUT_ORDER = "agnews,yahoo,amazon,dbpedia"
TRAIN, GRID_TRAIN, EPOCHS, BATCH = 500, 400, 3, 8
"""Examples of a task that are learned, for the table and for the choice of rates; passes over them;
and examples in a step. Small batches, because this base needs about 60 steps to find a task."""

TEST, HELD_OUT = 200, 100
"""Examples of a task that are tested, and that choose the rate."""

NEVER_LEARNED = 1000
"""Examples of a train.json from this one on choose the rate; no run trains on them."""

SETTINGS = {
    "target_modules": "all-linear",
    "answers": "labels",
    "dropout": 0,  # an eighth of the time; with so few passes nothing is learned by heart
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "micro_batch_size": BATCH,
    "schedule": "linear",  # at a constant rate single tasks end up to 30 points lower
    "warmup_ratio": 0.05,
    "max_prompt_tokens": 128,  # half of the prompts are cut, a quarter of the time is saved
    "tracking": "none",
    "ds_config": ROOT / "ds_configs" / "zero2.json",  # one process holds the base anyway
}
"""Of every run, whatever its method."""

DIVERGED = 3
"""Exit code of a run whose loss became NaN or infinite."""

Train = Callable[[list[str]], int]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a cell of the grid, or of the table."""

    method: str
    rate: str
    order: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder, and what it is known by in the files of results."""
        order = "held_out" if self.chooses else f"order{self.order}"
        return f"{self.method}-lr{self.rate}-{order}-seed{self.seed}"

    @property
    def chooses(self) -> bool:
        """Whether it is a cell of the grid."""
        return self.order == HELD_OUT_ORDER


class Study:
    """All runs, those that are done, and what they say."""

    def __init__(
        self, *, model: str, data_dir: Path, out: Path, results: Path, jobs: int, train: Train
    ) -> None:
        self.model, self.data_dir, self.out, self.jobs = model, data_dir, out, jobs
        self.grid_file = results / "standard_cl_grid.jsonl"
        self.file = results / "standard_cl.jsonl"
        self.train = train

    def choose_rates(self, methods: Sequence[str]) -> dict[str, str]:
        """Each method's learning rate; a tie goes to the lower one. Untrained, it has none."""
        trained = [method for method in methods if method != "zero_shot"]
        grid = [
            Job(method=method, rate=rate, order=HELD_OUT_ORDER, seed=0)
            for method, rate in itertools.product(trained, RATES)
        ]
        self._do(grid, self.grid_file, self._held_out())
        found = {record["name"]: record for record in _lines(self.grid_file)}
        best = {"zero_shot": RATES[0]}
        for method, jobs in itertools.groupby(grid, lambda job: job.method):
            aps = {job.rate: _ap(found[job.name]) for job in jobs}
            best[method] = max(aps, key=lambda rate: aps[rate])
            shown = ", ".join(f"{rate} {ap:.1f}" for rate, ap in aps.items())
            print(f"{method}: AP by learning rate: {shown}", flush=True)
        return {method: best[method] for method in methods}

    def run(self, rates: dict[str, str], seeds: Sequence[int]) -> list[Job]:
        """Orders 1 to 3 of each method at its rate, a seed after the other."""
        jobs = [
            Job(method=method, rate=rate, order=order, seed=seed)
            for seed, order, (method, rate) in itertools.product(seeds, ORDERS, rates.items())
        ]
        self._do(jobs, self.file, {})
        return jobs

    def _do(self, jobs: Sequence[Job], file: Path, splits: dict[str, dict[str, str]]) -> None:
        done = {record["name"] for record in _lines(file)}
        missing = [job for job in jobs if job.name not in done]
        print(f"{file.name}: {len(jobs) - len(missing)} of {len(jobs)} runs are there", flush=True)
        start, stopping = time.monotonic(), threading.Event()

        def one(job: Job) -> dict[str, Any] | None:
            return None if stopping.is_set() else self._one(job, splits)

        failed: BaseException | None = None
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                running = [pool.submit(one, job) for job in missing]
                for count, future in enumerate(as_completed(running), start=1):
                    failed = failed or future.exception()
                    if failed:
                        stopping.set()  # but what runs beside it is recorded when it ends
                    line = None if future.exception() else future.result()
                    if line is None:
                        continue
                    _append(file, line)
                    left = (time.monotonic() - start) / count * (len(missing) - count)
                    print(
                        f"[{count}/{len(missing)}] {line['name']}: AP {_ap(line):.1f}, "
                        f"{line['seconds']:.0f} s; about {left / 60:.0f} min left",
                        flush=True,
                    )
            finally:
                stopping.set()
        if failed:
            raise failed

    def _one(self, job: Job, splits: dict[str, dict[str, str]]) -> dict[str, Any]:
        folder = self.out / job.name
        flags = {
            "output_dir": folder,
            **SETTINGS,
            "model": self.model,
            "benchmark": "standard_cl",
            "data_dir": self.data_dir,
            "order": job.order,
            "method": job.method,
            "limit_train": GRID_TRAIN if job.chooses else TRAIN,
            "limit_eval": HELD_OUT if job.chooses else TEST,
            "eval_rows": "last" if job.chooses else "seen",
            "learning_rate": job.rate,
            "seed": job.seed,
        }
        if splits:
            flags["splits"] = json.dumps(splits)
        start = time.monotonic()
        code = self.train([word for k, v in flags.items() for word in (f"--{k}", str(v))])
        seconds = round(time.monotonic() - start, 1)
        if code == DIVERGED and splits:  # a rate that is too high is an answer too
            return {"name": job.name, "diverged": True, "seconds": seconds}
        if code:
            raise RuntimeError(f"{job.name} ended with code {code}; see {folder}.log")
        return json.loads(read_run_directory(folder).to_json()) | {"seconds": seconds}

    def _held_out(self) -> dict[str, dict[str, str]]:
        """Test splits for the grid: of each train.json, examples that no run trains on."""
        splits = {}
        for task in HELD_OUT_ORDER.split(","):
            content = read_json(self.data_dir / task / "train.json")
            content["Instances"] = content["Instances"][NEVER_LEARNED:][:HELD_OUT]
            path = self.out / "held_out" / f"{task}.json"
            write_atomically(path, json.dumps(content, ensure_ascii=False))
            splits[task] = {"test": str(path)}
        return splits


def launch(flags: list[str]) -> int:
    """Run launch/train.py on one core, its output beside the run's folder; the exit code."""
    log = Path(flags[flags.index("--output_dir") + 1] + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        return subprocess.run(
            [sys.executable, str(ROOT / "launch" / "train.py"), *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ).returncode


def _lines(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_records(path)] if path.exists() else []


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _ap(record: dict[str, Any]) -> float:
    """AP of a line; -1 of a run that diverged, so that it is never chosen."""
    if record.get("diverged"):
        return -1.0
    ap = sequence_metrics(record["scores"])["ap"]
    assert ap is not None, record["name"]
    return ap


def main() -> None:
    """Do what is missing, and make the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="the base: a folder")
    parser.add_argument("--data_dir", type=Path, required=True, help="the folder of Long Sequence")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_standard_cl"))
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    study = Study(
        model=args.model,
        data_dir=args.data_dir,
        out=args.out,
        results=args.results,
        jobs=args.jobs,
        train=launch,
    )
    rates = study.choose_rates(args.methods.split(","))
    jobs = study.run(rates, [int(seed) for seed in args.seeds.split(",")])
    runs = {run.name: run for run in read_runs([study.file])}
    comparison = compare([runs[job.name] for job in jobs])  # rows in the order of the plan
    text = markdown(comparison, read_references())
    write_comparison(args.results / "standard_cl", text, comparison)
    print(text)


if __name__ == "__main__":
    main()
