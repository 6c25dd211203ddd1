"""Compare methods on Standard CL with a small base; a second call resumes.

    python tools/compare_standard_cl.py --model FOLDER --data_dir FOLDER [--seeds 0,1,2] [--jobs 2]

Each method's learning rate is the one of RATES with the best AP on a fourth order, on examples that
training never sees. Then orders 1 to 3 run, on the test sets.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.study import Job, Study, held_out_splits, launch, write_table  # noqa: E402

METHODS = (
    *("moram", "sequential_lora", "inc_lora", "o_lora", "replay", "moe_lora", "multitask"),
    "zero_shot",
)
RATES = ("1e-3", "3e-3", "6e-3")
ORDERS = ("1", "2", "3")
HELD_OUT_ORDER = "agnews,yahoo,amazon,dbpedia"
TRAIN, GRID_TRAIN, EPOCHS, BATCH = 500, 400, 3, 8
"""Training examples per task, for the table and for the choice of rates; epochs; and examples per
step. Batches are small, because this base needs about 60 steps to learn a task."""

TEST, HELD_OUT = 200, 100
"""Test examples per task, for the table and for the choice of rates."""

SETTINGS = {
    "target_modules": "all-linear",
    "answers": "labels",
    "dropout": 0,  # saves an eighth of the time; with so few epochs, nothing is memorised
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "micro_batch_size": BATCH,
    "schedule": "linear",  # with a constant rate, some tasks end up to 30 points lower
    "warmup_ratio": 0.05,
    "max_prompt_tokens": 128,  # cuts half of the prompts and saves a quarter of the time
    "tracking": "none",
    "ds_config": ROOT / "ds_configs" / "zero2.json",  # one process has nothing to shard
}
"""Flags of every run, of any method."""


class StandardClPlan:
    """The plan: runs and their flags."""

    def __init__(self, *, model: str, data_dir: Path, results: Path, study: Study) -> None:
        self.model, self.data_dir, self.study = model, data_dir, study
        self.grid_file = results / "standard_cl_grid.jsonl"
        self.file = results / "standard_cl.jsonl"

    def choose_rates(self, methods: Sequence[str]) -> dict[str, str]:
        """Each method's learning rate, the lower one in a tie; untrained methods have none."""
        held_out = {
            "limit_train": GRID_TRAIN,
            "limit_eval": HELD_OUT,
            "eval_rows": "last",
            "splits": held_out_splits(
                self.data_dir, HELD_OUT_ORDER, count=HELD_OUT, folder=self.study.out / "held_out"
            ),
        }
        grid = {
            method: {
                rate: [
                    Job(
                        name=f"{method}-lr{rate}-held_out-seed0",
                        flags=self._flags(method, rate, HELD_OUT_ORDER, seed=0) | held_out,
                        chooses=True,
                    )
                ]
                for rate in RATES
            }
            for method in methods
            if method != "zero_shot"
        }
        best = {"zero_shot": RATES[0]} | self.study.best(grid, self.grid_file)
        return {method: best[method] for method in methods}

    def run(self, rates: dict[str, str], seeds: Sequence[int]) -> list[Job]:
        """Run orders 1 to 3 of each method at its rate, seed by seed."""
        tested = {"limit_train": TRAIN, "limit_eval": TEST, "eval_rows": "seen"}
        jobs = [
            Job(
                name=f"{method}-lr{rate}-order{order}-seed{seed}",
                flags=self._flags(method, rate, order, seed) | tested,
            )
            for seed in seeds
            for order in ORDERS
            for method, rate in rates.items()
        ]
        self.study.do(jobs, self.file)
        return jobs

    def _flags(self, method: str, rate: str, order: str, seed: int) -> dict[str, object]:
        return {
            **SETTINGS,
            "model": self.model,
            "benchmark": "standard_cl",
            "data_dir": self.data_dir,
            "order": order,
            "method": method,
            "learning_rate": rate,
            "seed": seed,
        }


def main() -> None:
    """Make the missing runs and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="the base: a folder")
    parser.add_argument("--data_dir", type=Path, required=True, help="the folder of Long Sequence")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_standard_cl"))
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    plan = StandardClPlan(
        model=args.model,
        data_dir=args.data_dir,
        results=args.results,
        study=Study(out=args.out, jobs=args.jobs, train=launch),
    )
    rates = plan.choose_rates(args.methods.split(","))
    jobs = plan.run(rates, [int(seed) for seed in args.seeds.split(",")])
    print(write_table(plan.file, [job.name for job in jobs], args.results / "standard_cl"))


if __name__ == "__main__":
    main()
