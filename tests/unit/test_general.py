"""General abilities: the rows' files, what is missing, the changes, and what is refused."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.general import (
    GeneralChange,
    GeneralRow,
    GeneralScore,
    changes,
    general_path,
    missing_tasks,
    read_general,
    write_general,
)
from eval.measure import general
from eval.measure.general import General, check_general, is_measured
from eval.report.write import write_report
from moram_dist import config_io
from moram_dist.config import RecordConfig, RunConfig
from moram_dist.families.causal import Causal
from moram_dist.families.clip import Clip
from moram_dist.registry import InputError
from tests.helpers.configs import config_of
from tests.helpers.context import make_context
from tests.helpers.drawn_runs import demo_benchmark
from tests.helpers.reported_runs import make_run


def score(task, value):
    return GeneralScore(task=task, metric="acc,none", value=value, stderr=None)


def row(**scores):
    return GeneralRow(scores={name: (score(name, value),) for name, value in scores.items()})


def test_rows_and_changes(tmp_path):
    assert read_general(tmp_path, 2) == GeneralRow() and changes(tmp_path, 3) == ()
    write_general(tmp_path, -1, row(piqa=0.75, words=0.5))
    write_general(tmp_path, 2, row(piqa=0.5))
    assert (tmp_path / "general" / "base.json").exists()
    assert general_path(tmp_path, 2).name == "after_002.json"
    assert read_general(tmp_path, 2) == row(piqa=0.5)
    assert read_general(tmp_path, -1).metrics == {"general/piqa": 0.75, "general/words": 0.5}
    assert missing_tasks(tmp_path, 2, ["words", "piqa"]) == ["words"]
    piqa, words = changes(tmp_path, 3)
    after = (None, None, 0.5)
    assert piqa == GeneralChange(task="piqa", metric="acc,none", base=0.75, after=after)
    assert piqa.last == 0.5 and piqa.change == -0.25
    assert words.base == 0.5 and words.last is None and words.change is None


def test_a_broken_row_is_refused(tmp_path):
    write_general(tmp_path, 0, row(piqa=0.5))
    path = general_path(tmp_path, 0)
    path.write_text(path.read_text().replace("0.5", '"half"'))
    with pytest.raises(InputError, match=r"after_000.json: scores.piqa.0.value"):
        read_general(tmp_path, 0)
    path.write_text(path.read_text().replace('"half"', "NaN"))
    with pytest.raises(InputError, match="piqa has a value that is no finite number"):
        read_general(tmp_path, 0)


def test_rows_to_measure():
    assert [is_measured(n, 2, "last") for n in (-1, 0, 1, 2)] == [True, False, False, True]
    assert all(is_measured(n, 2, "all") for n in (-1, 0, 1, 2))


def test_names():
    assert RecordConfig(general="demo,a/b.yaml").general_tasks == ("demo", "a/b.yaml")
    assert RecordConfig().general_tasks == ()
    for wrong in ("demo,demo", "demo,", ","):
        with pytest.raises(InputError, match="--general names "):
            RecordConfig(general=wrong)


def test_the_report_shows_the_change(tmp_path):
    run = make_run(tmp_path / "run")
    assert "General abilities" not in write_report(run).read_text()
    write_general(run, -1, row(piqa=0.75, words=0.5))
    write_general(run, 2, row(piqa=0.5))
    page = write_report(run).read_text()
    cells = "".join(f'<td class="n">{cell}</td>' for cell in ("0.7500", "0.5000", "-0.2500"))
    assert "General abilities" in page and f"<td>piqa</td><td>acc,none</td>{cells}" in page
    numbers = json.loads((run / "report" / "metrics.json").read_text())["general"]
    assert numbers["piqa"]["after"] == [None, None, 0.5] and numbers["words"]["base"] == 0.5


@pytest.fixture
def measures(tmp_path, monkeypatch):
    """Makes the measurement of a run on two tasks; the answers of lm-eval are made up."""
    calls = []

    def measure(model, tokenizer, name):
        assert model(torch.zeros(1, 1)) is not None
        calls.append(name)
        return [score(name.removesuffix(".yaml"), len(calls) / 4)]

    monkeypatch.setattr(general, "measure", measure)

    def make(asked, rows="last"):
        context = make_context(
            config=RunConfig(
                method=config_of(), record=RecordConfig(general=asked, general_rows=rows)
            ),
            benchmark=demo_benchmark(),
            method=None,
            engine=None,
            base=SimpleNamespace(tokenizer=None),
            folder=tmp_path,
        )
        return General(context), calls

    return make


def test_a_row_that_is_there_is_not_measured_again(measures):
    one, calls = measures("piqa,words.yaml")
    assert [one.missing(n) for n in (-1, 0, 1)] == [["piqa", "words.yaml"], [], one.missing(-1)]
    model = torch.nn.Linear(1, 1)
    found = one(1, model, one.missing(1), "after mood")
    assert found.metrics == {"general/piqa": 0.25, "general/words": 0.5}
    assert one.missing(1) == [] and calls == ["piqa", "words.yaml"] and not model._forward_pre_hooks
    more, calls = measures("piqa,words.yaml,demo", "all")
    assert more.missing(1) == ["demo"] and len(more.missing(0)) == 3
    found = more(1, model, ["demo"], "after mood")
    assert found.metrics == {"general/piqa": 0.25, "general/words": 0.5, "general/demo": 0.75}


def refused(said, family=None, **flags):
    config = config_io.build({"general": "demo", **flags})
    with pytest.raises(InputError, match=said):
        check_general(config, family or Causal())


def test_what_lm_eval_cannot_ask_is_refused(monkeypatch):
    refused("this base reads pictures", Clip())
    for method in ("rail", "gain_lora", "any_ssr", "in_context"):
        refused(f"{method} needs to know where a prompt ends", method=method)
    monkeypatch.setattr(general, "find_spec", lambda name: None)
    refused(r"--general needs lm-eval: pip install 'moram-dist\[general\]'")
    check_general(config_io.build({}), Clip())


def test_a_task_that_does_not_exist_is_refused(tmp_path):
    pytest.importorskip("lm_eval")
    refused(r"--general no/such.yaml: no such file", general="demo,no/such.yaml")


def test_numbers_of_the_training_go_on():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    with general._own_random_numbers():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        assert random.getstate() != states[0]
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_the_first_metric_is_the_first_that_the_task_lists():
    found = {
        "results": {
            "words": {"alias": "w", "em,none": 1.0, "acc,none": 0.5, "acc_stderr,none": 0.1}
        },
        "configs": {"words": {"metric_list": [{"metric": "acc"}, {"metric": "em"}]}},
    }
    results = json.loads(json.dumps(general._plain(found)))
    one = general._first("words", results["words"])
    assert one == GeneralScore(task="words", metric="acc,none", value=0.5, stderr=0.1)
    assert general._first("group", {"alias": "g", "sample_len": 3}) is None
