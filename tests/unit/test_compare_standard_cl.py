"""The comparison on Standard CL with a stand-in for training: its plan, its choice, its restart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval.compare.comparison import compare
from eval.compare.runs import read_runs
from tests.helpers.made_up_runs import make_run
from tools import compare_standard_cl
from tools.compare_standard_cl import HELD_OUT_ORDER, METHODS, ORDERS, RATES, StandardClPlan
from tools.study import DIVERGED, NEVER_LEARNED, Study

TASKS = ["dbpedia", "amazon", "yahoo", "agnews"]
RIGHT = {"1e-3": 0.4, "3e-3": 0.8, "6e-3": 0.8}


class Training:
    """Writes the run directory that launch/train.py would; remembers each command."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.stop_at = -1

    def __call__(self, words: list[str]) -> int:
        flags = {k.removeprefix("--"): v for k, v in zip(words[::2], words[1::2], strict=True)}
        self.seen.append(flags)
        if len(self.seen) == self.stop_at:
            return 4
        if (flags["method"], flags["learning_rate"]) == ("o_lora", "6e-3"):
            return DIVERGED
        named = {"1": "0123", "2": "0132", "3": "2130"}
        order = [TASKS[int(k)] for k in named.get(flags["order"], "3210")]
        right = RIGHT[flags["learning_rate"]] - (0.3 if flags["method"] == "sequential_lora" else 0)
        generator = np.random.default_rng([int(flags["seed"]), len(flags["order"])])
        cells = {
            (row, column): [
                100.0 * bool(x < right)
                for x in generator.random(20 + 10 * TASKS.index(order[column]))
            ]
            for row in range(4)
            for column in range(row + 1)
        }
        make_run(
            compare_standard_cl.Path(flags["output_dir"]),
            cells,
            tasks=order,
            method=flags["method"],
            order=flags["order"],
            seed=int(flags["seed"]),
            rate=float(flags["learning_rate"]),
            answers=flags["answers"],
        )
        return 0


@pytest.fixture
def training():
    return Training()


@pytest.fixture
def plan(tmp_path, training):
    for task in TASKS:
        (tmp_path / "data" / task).mkdir(parents=True)
        records = [{"input": f"{task} {k}", "output": "A"} for k in range(1200)]
        content = {"Definition": [], "Instances": records}
        (tmp_path / "data" / task / "train.json").write_text(json.dumps(content))
    return StandardClPlan(
        model="base",
        data_dir=tmp_path / "data",
        results=tmp_path / "results",
        study=Study(out=tmp_path / "out", jobs=2, train=training),
    )


def test_the_plan(plan, training):
    rates = plan.choose_rates(METHODS)
    assert len(training.seen) == 7 * len(RATES)  # nothing to choose for zero_shot
    # A tie goes to the lower rate, and a rate at which the loss is infinite is not chosen.
    assert rates == dict.fromkeys(METHODS, "3e-3") | {"zero_shot": RATES[0]}
    assert {(flags["order"], flags["seed"]) for flags in training.seen} == {(HELD_OUT_ORDER, "0")}
    splits = json.loads(training.seen[0]["splits"])
    assert sorted(splits) == sorted(TASKS)
    held_out = json.loads(compare_standard_cl.Path(splits["yahoo"]["test"]).read_text())
    beginning = NEVER_LEARNED
    assert beginning >= compare_standard_cl.TRAIN
    first, *_, last = held_out["Instances"]
    assert first["input"] == f"yahoo {beginning}"
    grid_train = str(compare_standard_cl.GRID_TRAIN)
    assert {flags["limit_train"] for flags in training.seen} == {grid_train}
    assert last["input"] == f"yahoo {beginning + compare_standard_cl.HELD_OUT - 1}"

    training.seen.clear()
    jobs = plan.run(rates, [0])
    assert len(jobs) == len(training.seen) == 8 * len(ORDERS)
    assert all("splits" not in flags for flags in training.seen)
    assert {flags["limit_train"] for flags in training.seen} == {str(compare_standard_cl.TRAIN)}
    plan.run(plan.choose_rates(METHODS), [0])
    assert len(training.seen) == len(jobs)  # all are there

    plan.run(rates, [0, 1])
    assert len(training.seen) == 2 * len(jobs)
    assert {flags["seed"] for flags in training.seen[len(jobs) :]} == {"1"}

    runs = read_runs([plan.file])  # the table needs no run directory
    comparison = compare(runs)
    assert {len(group.runs) for group in comparison.groups} == {6}
    resolved = [one for one in comparison.differences if one.resolved]
    pairs = {frozenset([one.first, one.second]) for one in resolved if one.metric == "AP"}
    assert {"moram", "sequential_lora"} in pairs and {"moram", "replay"} not in pairs


def test_a_failed_run_stops_the_script_and_the_next_one_goes_on(plan, training):
    rates = {"moram": "3e-3", "replay": "3e-3"}
    training.stop_at = 4
    with pytest.raises(RuntimeError, match="ended with code 4"):
        plan.run(rates, [0])
    there = len(plan.file.read_text().splitlines())
    assert 3 <= there <= 5  # what ran beside the failed one is kept
    training.seen.clear()
    training.stop_at = -1
    plan.run(rates, [0])
    assert len(training.seen) == 6 - there
    names = [json.loads(line)["name"] for line in plan.file.read_text().splitlines()]
    assert len(set(names)) == 6
