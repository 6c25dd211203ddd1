"""Compare MoRAM's presets and LoRAs on the demo; a second call resumes.

    python tools/compare_demo.py [--out runs/compare_demo] [--jobs 2]

It first chooses rates, and the temperature of the recommended preset, by the best mean AP over the
seeds CHOOSING, which are not in the table; each seed has its own data. The choice uses recall
``all``, since with ``prefix`` little is forgotten at any rate. Then it runs the seeds of the table,
with both recalls.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.study import Job, Study, launch, write_table  # noqa: E402

SEEDS, CHOOSING = (0, 1, 2), (3, 4, 5)
RATES = ("1e-3", "3e-3", "1e-2")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table."""

    flags: Mapping[str, str]
    recall: str
    choices: Mapping[str, Mapping[str, str]]
    """Name -> flags of each choice."""


VARIANTS = {
    "moram_recommended": Variant(
        flags={"method": "moram", "target_modules": "all-linear"},
        recall="prefix,all",
        choices={
            f"t{temperature}-lr{rate}": {"temperature": temperature, "learning_rate": rate}
            for temperature, rate in (*(("0.3", rate) for rate in RATES), ("1", "3e-3"))
        },
    ),
    "sequential_lora": Variant(
        flags={"method": "sequential_lora", "target_modules": "all-linear"},
        recall="all",
        choices={f"lr{rate}": {"learning_rate": rate} for rate in RATES},
    ),
    "inc_lora": Variant(
        flags={"method": "inc_lora", "target_modules": "all-linear"},
        recall="prefix,all",
        choices={f"lr{rate}": {"learning_rate": rate} for rate in RATES},
    ),
    "moram_published": Variant(
        flags={"method": "moram"},
        recall="all,prefix",
        choices={"lr3e-3": {"learning_rate": "3e-3"}},
    ),
}


def job(name: str, choice: str, seed: int) -> Job:
    """One run of a variant."""
    variant = VARIANTS[name]
    return Job(
        name=f"{name}-{choice}-seed{seed}",
        flags={
            **variant.flags,
            **variant.choices[choice],
            "preset": "published",
            "recall": "all" if seed in CHOOSING else variant.recall,
            "seed": seed,
            "tracking": "none",
            "log_every": 100,
        },
        chooses=seed in CHOOSING,
    )


def main() -> None:
    """Make the missing runs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/compare_demo"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    args = parser.parse_args()
    study = Study(out=args.out, jobs=args.jobs, train=launch)
    grid = {
        name: {choice: [job(name, choice, seed) for seed in CHOOSING] for choice in variant.choices}
        for name, variant in VARIANTS.items()
        if len(variant.choices) > 1
    }
    chosen = study.best(grid, args.out / "grid.jsonl")
    jobs = [
        job(name, chosen.get(name, next(iter(variant.choices))), seed)
        for name, variant in VARIANTS.items()
        for seed in SEEDS
    ]
    study.do(jobs, args.out / "results.jsonl")
    print(write_table(args.out / "results.jsonl", [job.name for job in jobs], args.out / "table"))


if __name__ == "__main__":
    main()
