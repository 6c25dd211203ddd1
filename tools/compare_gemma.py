"""Compare methods on a real base of 270 M parameters; a second call resumes.

    python tools/compare_gemma.py --model FOLDER --data_dir FOLDER [--seeds 0,1] [--jobs 2]

It runs Standard CL in its three orders; Long Sequence, whose 15 tasks show how forgetting grows;
and Standard CL under protocol ``bare``, where only the texts show the task. Each method's learning
rate is the one of three with the best AP on a separate order, on examples that training never sees.

Files in --results get one line per run, and tables are made from these files only. A machine with a
GPU can run sizes closer to the published ones, with results in a separate folder:

    --train 200 --batch_size 8 --max_prompt_tokens 96 --results FOLDER
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eval.compare.runs import read_runs  # noqa: E402
from moram_dist.registry import InputError  # noqa: E402
from tools.study import Job, Study, held_out_splits, launch, write_table  # noqa: E402

LORA_RATES = ("3e-4", "1e-3", "3e-3")
ATOM_RATES = ("1e-3", "3e-3", "1e-2")
"""A single atom changes the output less per step than the eight directions of a LoRA."""

HELD_OUT_ORDER = "agnews,yahoo,dbpedia"
"""Three tasks of Standard CL, in an order that no table has. Amazon is left out: with so few
examples it is near chance for every method, so it does not help to choose."""

GRID_TRAIN, HELD_OUT = 64, 60
"""Training and test examples per task to choose the rate. They are few, since a grid has three runs
for each run of a table."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of every run. With the defaults, a run of Standard CL takes about 10 core minutes."""

    train: int = 100
    test: int = 100
    epochs: int = 2
    batch_size: int = 4
    """50 steps per task, as many as 200 examples in steps of 8."""

    max_prompt_tokens: int = 64
    """Half of Standard CL's prompts fit."""

    dtype: str = "bf16"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table: a method and its settings."""

    method: str
    rates: tuple[str, ...] = LORA_RATES
    recall: str = "all"
    flags: Mapping[str, object] = field(default_factory=dict)


BOTH = "all,prefix"
"""Both come from one training; the first one chooses the rate."""


def variants(sizes: Sizes) -> dict[str, Variant]:
    """The variants by name, the most important ones first."""
    learned = 4 * sizes.train
    replay = {f"replay_{n}_percent": {"replay_budget": learned * n // 100} for n in (1, 2)}
    moram = {
        "moram_published": {"temperature": 0.03},
        "moram_recommended": {"temperature": 0.3},
        "moram_quiet": {"temperature": 0.3, "threshold": 0, "quiet_keys": 0.95},
    }
    return {
        "sequential_lora": Variant(method="sequential_lora"),
        "inc_lora": Variant(method="inc_lora", recall=BOTH),
        **{
            name: Variant(method="moram", rates=ATOM_RATES, recall=BOTH, flags=flags)
            for name, flags in moram.items()
        },
        **{name: Variant(method="replay", flags=flags) for name, flags in replay.items()},
        "slao": Variant(method="slao"),
        "any_ssr": Variant(method="any_ssr", recall="prefix"),
        "gain_lora": Variant(method="gain_lora", recall=BOTH),
        "gpm_lora": Variant(method="gpm_lora", recall=BOTH),
        "o_lora": Variant(method="o_lora", recall=BOTH),
        "single_task": Variant(method="single_task"),
        "multitask": Variant(method="multitask"),
        "zero_shot": Variant(method="zero_shot", rates=()),
    }


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The runs of one table."""

    benchmark: str
    orders: tuple[str, ...]
    protocol: str = "default"
    eval_rows: str = "last"
    """The diagonal and the last row are enough for AP and BWT."""

    variants: tuple[str, ...] = ("sequential_lora", "inc_lora", "moram_recommended", "moram_quiet")


EXPERIMENTS = {
    "standard_cl": Experiment(
        benchmark="standard_cl", orders=("1", "2", "3"), variants=tuple(variants(Sizes()))
    ),
    "long_sequence": Experiment(benchmark="long_sequence", orders=("4",), eval_rows="seen"),
    "bare": Experiment(benchmark="standard_cl", orders=("1", "2", "3"), protocol="bare"),
}

SAME = {
    "model.dtype": "dtype",
    "train.epochs": "epochs",
    "train.batch_size": "batch_size",
    "data.limit_train": "train",
    "eval.max_prompt_tokens": "max_prompt_tokens",
}
"""Setting -> field of ``Sizes``; all runs in a file of results must agree in them. Different test
sets are recognised by their digests."""


class Gemma:
    """The plan: runs and their flags."""

    def __init__(
        self, *, model: str, data_dir: Path, results: Path, sizes: Sizes, study: Study
    ) -> None:
        self.data_dir, self.results, self.sizes, self.study = data_dir, results, sizes, study
        self.variants = variants(sizes)
        self.base = {
            "model": model,
            "data_dir": data_dir,
            "target_modules": "all-linear",
            "answers": "labels",
            "dropout": 0,  # with so few epochs, nothing is memorised
            "dtype": sizes.dtype,
            "epochs": sizes.epochs,
            "batch_size": sizes.batch_size,
            "micro_batch_size": sizes.batch_size,
            "schedule": "linear",
            "max_prompt_tokens": sizes.max_prompt_tokens,
            "tracking": "none",
            "ds_config": ROOT / "ds_configs" / "zero2.json",  # one process has nothing to shard
        }

    def choose_rates(self, names: Sequence[str]) -> dict[str, str]:
        """Each variant's learning rate; variants that are not trained have none."""
        splits = held_out_splits(
            self.data_dir, HELD_OUT_ORDER, count=HELD_OUT, folder=self.study.out / "held_out"
        )
        grid = {
            name: {
                rate: [
                    Job(
                        name=f"{name}-lr{rate}-held_out-seed0",
                        flags=self.base
                        | self._flags(self.variants[name], rate, seed=0)
                        | {
                            "benchmark": "standard_cl",
                            "order": HELD_OUT_ORDER,
                            "eval_rows": "last",
                            "splits": splits,
                            "limit_train": GRID_TRAIN,
                            "limit_eval": HELD_OUT,
                            "recall": self.variants[name].recall.partition(",")[0],
                        },
                        chooses=True,
                    )
                ]
                for rate in self.variants[name].rates
            }
            for name in names
            if self.variants[name].rates
        }
        return self.study.best(grid, self.results / "gemma_grid.jsonl")

    def run(self, name: str, rates: Mapping[str, str], seeds: Sequence[int]) -> list[Job]:
        """Run an experiment's variants that have a rate or need none, seed by seed."""
        experiment = EXPERIMENTS[name]
        rows = [row for row in experiment.variants if row in rates or row == "zero_shot"]
        jobs = [
            Job(
                name=f"{name}-{row}-order{order}-seed{seed}",
                flags=self.base
                | self._flags(self.variants[row], rates.get(row), seed=seed)
                | {
                    "benchmark": experiment.benchmark,
                    "protocol": experiment.protocol,
                    "eval_rows": experiment.eval_rows,
                    "order": order,
                    "limit_train": self.sizes.train,
                    "limit_eval": self.sizes.test,
                },
            )
            for seed in seeds
            for order in experiment.orders
            for row in rows
        ]
        self._check(self.file(name))
        self.study.do(jobs, self.file(name))
        return jobs

    def file(self, experiment: str) -> Path:
        """The file of results of an experiment."""
        return self.results / f"gemma_{experiment}.jsonl"

    def _check(self, file: Path) -> None:
        """Raise InputError if a file of results has runs of other sizes."""
        for run in read_runs([file]) if file.exists() else []:
            for setting, size in SAME.items():
                there, wanted = run.settings[setting], getattr(self.sizes, size)
                if there != wanted:
                    raise InputError(
                        f"{file}: {run.name} has {setting} {there}, not {wanted}: runs of other "
                        "sizes need another --results"
                    )

    def _flags(self, variant: Variant, rate: str | None, seed: int) -> dict[str, object]:
        given = {} if rate is None else {"learning_rate": rate}
        return {
            "method": variant.method,
            "recall": variant.recall,
            "seed": seed,
            **given,
            **variant.flags,
        }


def main() -> None:
    """Make the missing runs and the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="the base: a folder")
    add("--data_dir", type=Path, required=True, help="the folder of Long Sequence")
    add("--experiments", default=",".join(EXPERIMENTS))
    add("--variants", default=",".join(variants(Sizes())))
    add("--seeds", default="0")
    add("--jobs", type=int, default=2, help="runs at a time")
    add("--out", type=Path, default=Path("runs/compare_gemma"))
    add("--results", type=Path, default=ROOT / "docs" / "results")
    for name in ("train", "test", "epochs", "batch_size", "max_prompt_tokens"):
        add(f"--{name}", type=int, default=getattr(Sizes(), name))
    add("--dtype", default=Sizes().dtype, choices=("fp32", "bf16"))
    args = parser.parse_args()
    plan = Gemma(
        model=args.model,
        data_dir=args.data_dir,
        results=args.results,
        sizes=Sizes(**{name: getattr(args, name) for name in Sizes.__dataclass_fields__}),
        study=Study(out=args.out, jobs=args.jobs, train=launch),
    )
    names = args.variants.split(",")
    rates = plan.choose_rates(names)
    for experiment in args.experiments.split(","):
        jobs = plan.run(experiment, rates, [int(seed) for seed in args.seeds.split(",")])
        table = plan.results / f"gemma_{experiment}"
        print(write_table(plan.file(experiment), [job.name for job in jobs], table))


if __name__ == "__main__":
    main()
