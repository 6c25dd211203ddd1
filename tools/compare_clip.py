"""Compare methods on seven small sets of pictures; a second call resumes.

    python tools/compare_clip.py --model FOLDER --data_dir FOLDER [--seeds 0,1,2] [--jobs 2]

16 pictures of each class are learned, and the classes of all sets compete, as in X-TAIL. Each seed
draws other shots and has an order of its own. Each method's setting is the one of three with the
best mean over the whole matrix, on validation pictures in a separate order; MNIST has none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.study import Job, Study, average_of, launch, write_table  # noqa: E402

RATES = {"learning_rate": ("1e-4", "3e-4", "1e-3")}
ATOM_RATES = {"learning_rate": ("1e-3", "3e-3", "1e-2")}
"""A single atom changes the output less per step than the directions of a LoRA."""

ORDERS = (
    "gtsrb,cifar10,dtd,eurosat,mnist,shapes,sign_digits",
    "shapes,mnist,dtd,sign_digits,cifar10,gtsrb,eurosat",
    "eurosat,sign_digits,gtsrb,shapes,dtd,mnist,cifar10",
)
"""One for each seed."""

HELD_OUT_ORDER = "cifar10,shapes,eurosat,gtsrb,sign_digits,dtd"
HELD_OUT_SEED = 7

BOTH = "all,prefix"
"""Both come from one training; the first one chooses the setting."""

PICTURES_ONLY = r"vision_model\..*(_proj|fc1|fc2)"
"""Leaves the tower of texts as it is."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table: a method, its settings, and the choices of one of them."""

    method: str
    choices: Mapping[str, Sequence[str]] = field(default_factory=lambda: RATES)
    recall: str = "all"
    flags: Mapping[str, object] = field(default_factory=dict)


PREFIX = "prefix,all"
"""The same, with the setting that is best for recall ``prefix``; for ``moram`` it is the same."""

RECOMMENDED = {"temperature": 0.3, "top_k": 16}
VARIANTS = {
    "zero_shot": Variant(method="zero_shot", choices={}),
    "rail": Variant(method="rail", choices={"ridge": ("0.01", "0.1", "1")}),
    "sequential_lora": Variant(method="sequential_lora"),
    "sequential_lora_pictures": Variant(
        method="sequential_lora", flags={"target_modules": PICTURES_ONLY}
    ),
    "inc_lora": Variant(method="inc_lora", recall=BOTH),
    "inc_lora_prefix": Variant(method="inc_lora", recall=PREFIX),
    "o_lora": Variant(method="o_lora", recall=BOTH),
    "lwf": Variant(method="lwf"),
    "replay": Variant(method="replay"),
    "moram_published": Variant(
        method="moram",
        choices=ATOM_RATES,
        recall=BOTH,
        flags={"temperature": 0.01, "top_k": 16, "threshold": 0.2},
    ),
    "moram_recommended": Variant(
        method="moram", choices=ATOM_RATES, recall=BOTH, flags=RECOMMENDED
    ),
    "moram_quiet": Variant(
        method="moram",
        choices=ATOM_RATES,
        recall=BOTH,
        flags=RECOMMENDED | {"threshold": 0, "quiet_keys": 0.95},
    ),
    "moram_pictures": Variant(
        method="moram",
        choices=ATOM_RATES,
        recall=BOTH,
        flags=RECOMMENDED | {"target_modules": PICTURES_ONLY},
    ),
}


class Clip:
    """The plan: runs and their flags."""

    def __init__(self, *, model: str, data_dir: Path, results: Path, study: Study) -> None:
        self.results, self.study = results, study
        self.base = {
            "model": model,
            "benchmark": "images",
            "data_dir": data_dir,
            "protocol": "all",
            "shots": 16,
            "limit_eval": 150,
            "epochs": 10,
            "batch_size": 32,
            "target_modules": "all-linear",
            "atoms_per_task": 16,
            "alpha": 16,
            "dropout": 0,
            "unknown": "base",
            "tracking": "none",
            "ds_config": ROOT / "ds_configs" / "zero2.json",  # one process has nothing to shard
        }

    def choose(self, names: Sequence[str]) -> dict[str, str]:
        """Each variant's choice; variants without any have none."""
        splits = json.dumps({name: {"test": "val"} for name in HELD_OUT_ORDER.split(",")})
        grid = {
            name: {
                value: [
                    Job(
                        name=f"{name}-{flag}{value}-held_out",
                        flags=self._flags(name, value, HELD_OUT_SEED)
                        | {
                            "order": HELD_OUT_ORDER,
                            "splits": splits,
                            "limit_eval": 300,  # all validation pictures
                            "recall": VARIANTS[name].recall.partition(",")[0],
                        },
                        chooses=True,
                    )
                ]
                for value in values
            }
            for name in names
            for flag, values in VARIANTS[name].choices.items()
        }
        return self.study.best(grid, self.results / "clip_grid.jsonl", by=average_of)

    def run(self, chosen: Mapping[str, str], names: Sequence[str], seeds: Sequence[int]) -> None:
        """Make the runs of the table, seed by seed, and print it."""
        jobs = [
            Job(
                name=f"{name}-seed{seed}",
                flags=self._flags(name, chosen.get(name), seed) | {"order": ORDERS[seed]},
            )
            for seed in seeds
            for name in names
        ]
        file = self.results / "clip_seven_sets.jsonl"
        self.study.do(jobs, file)
        print(write_table(file, [job.name for job in jobs], self.results / "clip_seven_sets"))

    def _flags(self, name: str, value: str | None, seed: int) -> dict[str, object]:
        variant = VARIANTS[name]
        chosen = {} if value is None else dict.fromkeys(variant.choices, value)
        return {
            **self.base,
            "method": variant.method,
            "recall": variant.recall,
            "seed": seed,
            **variant.flags,
            **chosen,
        }


def main() -> None:
    """Make the missing runs and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="the base: a folder")
    add("--data_dir", type=Path, required=True, help="the folder of the seven sets")
    add("--variants", default=",".join(VARIANTS))
    add("--seeds", default="0,1,2")
    add("--jobs", type=int, default=2, help="runs at a time")
    add("--out", type=Path, default=Path("runs/compare_clip"))
    add("--results", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    study = Study(out=args.out, jobs=args.jobs, train=launch)
    plan = Clip(model=args.model, data_dir=args.data_dir, results=args.results, study=study)
    names = args.variants.split(",")
    plan.run(plan.choose(names), names, [int(seed) for seed in args.seeds.split(",")])


if __name__ == "__main__":
    main()
