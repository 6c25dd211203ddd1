"""What ``make demo`` ends with."""

from __future__ import annotations

import yaml

from tests.helpers.made_up_runs import make_run
from tools.demo_scores import table

LEARNED = {(0, 0): [100.0, 100.0], (1, 1): [100.0, 0.0]}


def test_a_line_for_each_recall_of_each_run(tmp_path):
    tasks = ["topic", "mood"]
    for mark, last in (("", 100.0), (".all", 0.0)):
        make_run(tmp_path / "demo", LEARNED | {(1, 0): [last, 0.0]}, tasks=tasks, mark=mark)
    saved = yaml.safe_load((tmp_path / "demo" / "run.yaml").read_text())
    saved["eval"] = {"recall": "prefix,all"}
    (tmp_path / "demo" / "run.yaml").write_text(yaml.safe_dump(saved))
    make_run(tmp_path / "other", LEARNED | {(1, 0): [100.0, 100.0]}, tasks=tasks)
    text = table([tmp_path / "demo", tmp_path / "other"])
    assert [line.split() for line in text.split("\n")] == [
        ["learned", "at", "the", "end", "BWT"],
        ["demo,", "recall", "prefix", "75.00", "50.00", "-50.00"],
        ["demo,", "recall", "all", "75.00", "25.00", "-100.00"],
        ["other,", "recall", "all", "75.00", "75.00", "0.00"],
    ]
    assert len({len(line) for line in text.split("\n")}) == 1
