"""The comparison on the base of 270 M with a stand-in for training: plan, sizes and recalls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval.compare.runs import read_runs
from moram_dist.methods import METHODS
from moram_dist.registry import InputError
from tests.helpers.made_up_runs import make_run
from tools.compare_gemma import (
    EXPERIMENTS,
    HELD_OUT_ORDER,
    Gemma,
    Sizes,
    variants,
)
from tools.study import NEVER_LEARNED, Study, write_table

RIGHT = {"3e-4": 0.3, "1e-3": 0.6, "3e-3": 0.8, "1e-2": 0.5}
"""By rate, and as many more by prefix as PREFIX says."""

PREFIX = 0.15


class Training:
    """Writes the run directory that launch/train.py would; remembers each command."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def __call__(self, words: list[str]) -> int:
        flags = {k.removeprefix("--"): v for k, v in zip(words[::2], words[1::2], strict=True)}
        self.seen.append(flags)
        tasks = ["agnews", "yahoo", "dbpedia"]
        generator = np.random.default_rng(len(flags["order"]))
        draws = {
            (row, column): generator.random(40) for row in range(3) for column in range(row + 1)
        }
        folder = Path(flags["output_dir"])
        for k, recall in enumerate(flags["recall"].split(",")):
            right = RIGHT[flags.get("learning_rate", "3e-4")] + PREFIX * (recall == "prefix")
            make_run(
                folder,
                {cell: [100.0 * bool(x < right) for x in draws[cell]] for cell in draws},
                tasks=tasks,
                method=flags["method"],
                order=flags["order"],
                seed=int(flags["seed"]),
                answers="labels",
                mark=f".{recall}" if k else "",
            )
        saved = yaml.safe_load((folder / "run.yaml").read_text())
        saved["eval"] |= {"recall": flags["recall"], "max_prompt_tokens": 64}
        saved["train"] |= {"batch_size": int(flags["batch_size"]), "epochs": int(flags["epochs"])}
        saved |= {
            "model": {"dtype": flags["dtype"]},
            "data": {"limit_train": int(flags["limit_train"])},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(saved))
        return 0


@pytest.fixture
def plan(tmp_path):
    """Makes a plan of some sizes with its training, over the same folders."""
    for task in HELD_OUT_ORDER.split(","):
        (tmp_path / "data" / task).mkdir(parents=True)
        content = {"Instances": [{"input": f"{task} {k}", "output": "A"} for k in range(1200)]}
        (tmp_path / "data" / task / "train.json").write_text(json.dumps(content))

    def make(**sizes) -> tuple[Gemma, Training]:
        training = Training()
        made = Gemma(
            model="base",
            data_dir=tmp_path / "data",
            results=tmp_path / "results",
            sizes=Sizes(**sizes),
            study=Study(out=tmp_path / "out", jobs=1, train=training),
        )
        return made, training

    return make


def test_every_method_chooses_among_as_many_rates_on_examples_that_none_learns(plan):
    gemma, training = plan()
    names = list(gemma.variants)
    rates = gemma.choose_rates(names)
    trained = [name for name in names if name != "zero_shot"]
    assert {len(gemma.variants[name].rates) for name in trained} == {3}
    assert rates == {name: "3e-3" for name in trained}
    assert {flags["order"] for flags in training.seen} == {HELD_OUT_ORDER}
    splits = json.loads(training.seen[0]["splits"])
    first = json.loads(Path(splits["yahoo"]["test"]).read_text())["Instances"][0]
    assert first["input"] == f"yahoo {NEVER_LEARNED}" and Sizes().train < NEVER_LEARNED


def test_rows_of_a_table_are_variants_by_recall(plan, tmp_path):
    gemma, training = plan()
    rates = {"sequential_lora": "1e-3", "inc_lora": "1e-3", "moram_recommended": "1e-2"}
    jobs = gemma.run("standard_cl", rates, [0])
    assert [job.name for job in jobs[:4]] == [
        *(f"standard_cl-{name}-order1-seed0" for name in rates),
        "standard_cl-zero_shot-order1-seed0",
    ]
    assert len(training.seen) == 12 and all("splits" not in flags for flags in training.seen)
    found = {(run.method, run.recall) for run in read_runs([gemma.file("standard_cl")])}
    one = {("sequential_lora", "all"), ("zero_shot", "all")}
    assert found == one | {(m, r) for m in ("inc_lora", "moram") for r in ("all", "prefix")}
    text = write_table(gemma.file("standard_cl"), [job.name for job in jobs], tmp_path / "table")
    assert "| inc_lora, recall prefix" in text and "| moram, recall all" in text


def test_a_run_that_lacks_a_recall_is_measured_again_and_recorded_once(plan):
    gemma, training = plan()
    gemma.run("long_sequence", {"inc_lora": "1e-3"}, [0])
    file = gemma.file("long_sequence")
    first, second = file.read_text().splitlines()
    line = json.loads(first)
    del line["recall"]  # as before there were recalls
    file.write_text(json.dumps(line) + "\n")
    gemma.run("long_sequence", {"inc_lora": "1e-3"}, [0])
    kept, added = (json.loads(text) for text in file.read_text().splitlines())
    assert kept == line
    assert added | {"seconds": 0} == json.loads(second) | {"seconds": 0}
    assert len(training.seen) == 2
    gemma.run("long_sequence", {"inc_lora": "1e-3"}, [0])
    assert len(training.seen) == 2


def test_runs_of_other_sizes_are_refused(plan):
    gemma, _ = plan()
    gemma.run("bare", {"inc_lora": "1e-3"}, [0])
    other, training = plan(train=200)
    with pytest.raises(
        InputError, match=r"has data.limit_train 100, not 200: .* another --results"
    ):
        other.run("bare", {"inc_lora": "1e-3"}, [0])
    assert training.seen == []


def test_prefixes_are_recalled_where_a_method_keeps_them():
    for variant in variants(Sizes()).values():
        method = METHODS[variant.method]
        assert variant.recall == "all" or method.keeps_prefixes
    assert set(EXPERIMENTS["long_sequence"].variants) < set(variants(Sizes()))
    replay = variants(Sizes(train=200))["replay_2_percent"]
    assert replay.flags == {"replay_budget": 16}
