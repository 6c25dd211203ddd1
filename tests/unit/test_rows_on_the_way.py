"""A run that goes on measures what its earlier rows lack while it loads what was learned."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from moram_dist import config_io
from moram_dist.config import EvalConfig, RunConfig
from moram_dist.train.trainer import Trainer
from tests.helpers.configs import config_of


@pytest.mark.parametrize("recall", ["all", "all,prefix"])
@pytest.mark.parametrize("learned", [0, 1, 3])
def test_each_row_is_asked_for_once_its_memory_is_there(learned, recall):
    """Where a recogniser is asked, statistics that an older version did not take come before."""
    said = []
    trainer = SimpleNamespace(
        config=RunConfig(method=config_of(), eval=EvalConfig(recall=recall)),
        manifest=SimpleNamespace(
            tasks=[SimpleNamespace(number=i, name=f"t{i}", recogniser=None) for i in range(learned)]
        ),
        watchdog=SimpleNamespace(at=lambda label: None),
        benchmark=SimpleNamespace(tasks=list(range(3))),
        run_dir=SimpleNamespace(
            memory=SimpleNamespace(
                read=lambda task: task,
                check=lambda task, shapes: said.append(("check", task.number)),
            )
        ),
        method=SimpleNamespace(
            load_task=lambda i, task: said.append(("load", i)),
            stored_shapes=lambda i, task, layers: {},
            layers={},
        ),
        stop=SimpleNamespace(held=nullcontext),
        evaluate=lambda row: said.append(("evaluate", row)),
        _learn=lambda i: said.append(("learn", i)),
        _publish=lambda i: None,
        _add_recogniser=lambda i: said.append(("statistics", i)),
    )
    Trainer.run(trainer)
    expected = [("evaluate", -1)]
    for i in range(3):
        expected += [("check", i), ("load", i)] if i < learned else [("learn", i)]
        expected += [("statistics", i)] if i < learned and recall != "all" else []
        expected += [("evaluate", i)]
    assert said == expected


def test_other_rows_are_the_same_run():
    saved = RunConfig(method=config_of())
    assert (
        config_io.differences(
            RunConfig(method=config_of(), eval=EvalConfig(eval_rows="all")), saved
        )
        == []
    )
    assert config_io.differences(
        RunConfig(method=config_of(), eval=EvalConfig(answers="labels")), saved
    )
