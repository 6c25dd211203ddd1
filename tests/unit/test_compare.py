"""The comparison of made-up runs: numbers by hand, what is refused, and the files it writes."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from eval.compare.command import compare_runs
from eval.compare.comparison import compare, forgetting_curve
from eval.compare.contributions import contributions
from eval.compare.groups import group_runs
from eval.compare.runs import read_run_directory, read_runs
from eval.continual import sequence_metrics
from eval.run import main
from moram_dist.registry import InputError
from tests.helpers.made_up_runs import TASKS, make_run, noisy_run, random_scores

CELLS = {(0, 0): [100, 100, 100, 0], (1, 0): [100, 0, 0, 0], (1, 1): [100, 100]}


def test_a_run_is_read_whole(tmp_path):
    run = read_run_directory(make_run(tmp_path / "a", CELLS, tasks=TASKS, seed=3))
    assert (run.method, run.order, run.seed, run.answers) == ("moram", "1", 3, "generate")
    assert run.base == {"name": "small", "fingerprint": "f00d"}
    assert run.last == ("1000", "11") and run.learned == ("1110", "11")
    assert run.scores == ((75.0, None), (25.0, 100.0))
    assert run.settings["train.learning_rate"] == 1e-3
    assert run.settings["method.top_k"] == 8  # a default that run.yaml did not have
    assert "data.order" not in run.settings and "record.output_dir" not in run.settings


def test_settings_of_other_methods_are_no_difference(tmp_path):
    folders = [make_run(tmp_path / f"{k}", CELLS, tasks=TASKS, seed=k) for k in range(2)]
    path = folders[1] / "run.yaml"
    path.write_text(path.read_text() + "future: {}\n")
    path.write_text(path.read_text().replace("method: moram", "method: moram\n  ewc_weight: 3"))
    runs = read_runs(folders)
    lines = tmp_path / "runs.jsonl"
    older = json.loads(runs[1].to_json())
    older["settings"]["method.ewc_weight"] = 3  # as lines of older versions have it
    lines.write_text(runs[0].to_json() + "\n" + json.dumps(older))
    assert read_runs([lines]) == runs
    (group,) = group_runs(runs)
    assert group.label == "moram" and "method.ewc_weight" not in runs[1].settings


def test_a_base_is_the_one_that_the_last_start_found(tmp_path):
    """An older run's memory keeps its older fingerprint; inputs.json has the one of today."""
    folder = make_run(tmp_path / "a", CELLS, tasks=TASKS)
    identity = {"name": "small", "fingerprint": "newer", "files": {}}
    (folder / "inputs.json").write_text(json.dumps({"base": identity}))
    assert read_run_directory(folder).base == {"name": "small", "fingerprint": "newer"}


def test_contributions_add_up_to_the_metrics(tmp_path):
    cells = {**CELLS, (0, 0): [99.5, 10.0, 37.25, 0.0]}  # scores that are no 0 or 100
    run = read_run_directory(make_run(tmp_path / "a", cells, tasks=TASKS))
    expected = sequence_metrics(run.scores)
    for metric, name in {"AP": "ap", "BWT": "bwt_gem", "learned": "mean_diagonal"}.items():
        parts = contributions(run, metric)
        assert sum(items.mean() for items in parts.values()) == pytest.approx(expected[name])
    assert expected["bwt_gem"] == pytest.approx(25 - 146.75 / 4)  # by hand


def test_lines_hold_all_that_directories_do(tmp_path):
    runs = read_runs([noisy_run(tmp_path / f"r{seed}", 0.7, seed=seed) for seed in range(2)])
    lines = tmp_path / "runs.jsonl"
    lines.write_text("".join(run.to_json() + "\n" for run in runs))
    assert read_runs([lines]) == runs
    with pytest.raises(InputError, match=r"r0 holds answers by 'generate', not by 'labels'"):
        read_runs([lines], "labels")
    lines.write_text(lines.read_text().replace('"protocol"', '"protocoll"'))
    with pytest.raises(InputError, match="line 1: protocol: field required"):
        read_runs([lines])


def test_other_ways_of_answering(tmp_path):
    folder = make_run(tmp_path / "a", CELLS, tasks=TASKS, answers="generate,labels")
    better = {cell: [100.0] * len(items) for cell, items in CELLS.items()}
    make_run(folder, better, tasks=TASKS, answers="generate,labels", mark=".labels")
    assert read_run_directory(folder).last == ("1000", "11")
    assert read_run_directory(folder, "labels").last == ("1111", "11")
    with pytest.raises(InputError, match="holds answers by generate, labels, not by 'constrained'"):
        read_run_directory(folder, "constrained")


def test_a_difference_by_hand(tmp_path):
    """Two methods, one run each: the interval over items is that of the paired differences."""
    a = [100.0] * 60 + [0.0] * 40
    b = [100.0] * 40 + [0.0] * 60  # right where a is, and 20 fewer
    one = {(0, 0): [100.0] * 100}
    runs = read_runs(
        [
            make_run(tmp_path / "a", {(0, 0): a}, tasks=["topic"]),
            make_run(tmp_path / "b", {(0, 0): b}, tasks=["topic"], method="replay"),
            make_run(tmp_path / "c", one, tasks=["topic"], method="ewc"),
        ]
    )
    comparison = compare(runs)
    difference, *_ = comparison.differences
    assert (difference.metric, difference.first, difference.second) == ("AP", "moram", "replay")
    found = difference.estimate
    assert (found.value, found.runs, found.spread) == (pytest.approx(20.0), 1, None)
    assert found.error == pytest.approx(100 * (0.2 * 0.8 / 99) ** 0.5)  # 20 of 100 differ by 100
    assert found.items == found.both == (pytest.approx(12.0, abs=1.01), pytest.approx(28, abs=1.01))
    assert difference.resolved and difference.detectable == pytest.approx(
        2.80159 * found.error, rel=1e-5
    )
    assert comparison.one_run_error[0] == 0.0  # ewc is always right
    assert comparison.one_run_error[1] == pytest.approx(100 * (0.24 / 99) ** 0.5)
    assert not [one for one in comparison.differences if one.metric == "BWT"]  # of a single task


def test_equal_methods_are_not_resolved_and_others_are(tmp_path):
    rights = {"moram": 0.8, "replay": 0.8, "lora": 0.4}
    runs = [
        noisy_run(tmp_path / f"{method}{seed}{order}", right, method=method, seed=seed, order=order)
        for method, right in rights.items()
        for seed in range(3)
        for order in "12"
    ]
    comparison = compare(read_runs(runs))
    resolved = {
        (one.first, one.second): one.resolved
        for one in comparison.differences
        if one.metric == "AP"
    }
    assert resolved == {
        ("moram", "replay"): False,
        ("moram", "lora"): True,
        ("replay", "lora"): True,
    }
    estimate = comparison.estimates["moram", "AP"]
    assert estimate.runs == 6 and estimate.both[0] < 80 < estimate.both[1]
    assert comparison.by_order["lora", "2"].runs == 3


def test_noise_of_seeds_is_covered(tmp_path):
    """The same items, and seeds that differ by far more than items can."""
    first, second = (0.3, 0.9, 0.6), (0.2, 0.85, 0.4)
    runs = [
        noisy_run(tmp_path / f"{method}{seed}", right, method=method, seed=seed, n=2000)
        for method, rights in {"moram": first, "lora": second}.items()
        for seed, right in enumerate(rights)
    ]
    (difference,) = [x for x in compare(read_runs(runs)).differences if x.metric == "AP"]
    assert difference.estimate.items[0] > 0  # of these runs there is no doubt
    assert difference.estimate.both[0] < 0 and not difference.resolved


def test_methods_are_compared_where_both_have_runs(tmp_path):
    runs = [noisy_run(tmp_path / f"a{seed}", 0.8, seed=seed) for seed in range(3)]
    runs.append(noisy_run(tmp_path / "b1", 0.5, seed=1, method="replay"))
    comparison = compare(read_runs(runs))
    difference = comparison.differences[0]
    assert difference.estimate.runs == 1
    _, a1, _, b1 = (sequence_metrics(run.scores)["ap"] for run in read_runs(runs))
    assert difference.estimate.value == pytest.approx(a1 - b1)
    assert "do not cover" in compare_runs(runs)[0]
    apart = [runs[0], runs[3]]  # no order and seed in common: nothing is paired
    assert compare(read_runs(apart)).differences == ()


def test_cells_that_were_not_measured(tmp_path):
    only_end = {(1, 0): [100.0, 0.0], (1, 1): [100.0, 100.0]}  # no score right after learning
    only_diagonal = {(0, 0): [100.0, 0.0], (1, 1): [100.0, 0.0]}
    runs = [
        make_run(tmp_path / "m", only_end, tasks=TASKS, method="multitask"),
        make_run(tmp_path / "s", only_diagonal, tasks=TASKS, method="single_task"),
    ]
    comparison = compare(read_runs(runs))
    known = {(label, metric): one.value for (label, metric), one in comparison.estimates.items()}
    assert known == {("multitask", "AP"): 75.0, ("single_task", "learned"): 50.0}
    assert comparison.differences == ()
    assert "| multitask | 1 | – | 75.0 (" in compare_runs(runs)[0]


def test_groups_are_named_by_what_differs(tmp_path):
    runs = [
        noisy_run(tmp_path / "a", 0.5, rate=1e-3),
        noisy_run(tmp_path / "b", 0.5, rate=3e-3),
        noisy_run(tmp_path / "c", 0.5, rate=1e-3, method="ewc"),
    ]
    groups = group_runs(read_runs(runs))
    assert [group.label for group in groups] == [
        "moram, learning_rate 0.001",
        "moram, learning_rate 0.003",
        "ewc",
    ]
    assert groups[2].settings == "learning_rate 0.001"


def test_forgetting_curve(tmp_path):
    generator = np.random.default_rng(0)
    tasks = ["a", "b", "c"]
    cells = {(i, j): random_scores(generator, 10, 0.5) for i in range(3) for j in range(i + 1)}
    (run,) = read_runs([make_run(tmp_path / "a", cells, tasks=tasks)])
    a = run.scores
    lost_b = a[0][0] - a[1][0]
    lost_c = (a[0][0] - a[2][0] + a[1][1] - a[2][1]) / 2
    (group,) = group_runs([run])
    assert forgetting_curve(group) == [0.0, pytest.approx(lost_b), pytest.approx(lost_c)]
    holes = replace(run, scores=((a[0][0], None, None), (None, a[1][1], None), a[2]))
    (group,) = group_runs([holes])
    assert forgetting_curve(group) == [0.0, None, pytest.approx(lost_c)]


REFUSED = [
    ({"base": "beef"}, "other base models"),
    ({"protocol": "sapt"}, "other protocols"),
    ({"answers": "labels"}, "other ways of answering"),
    ({"n": 150}, "other sizes of test sets"),
    ({"questions": "?"}, "other test sets"),
    ({"method": "moram"}, "are the same run: moram, order 1, seed 0"),
]


@pytest.mark.parametrize(("change", "complaint"), REFUSED)
def test_what_does_not_fit_together_is_refused(tmp_path, capsys, change, complaint):
    one = noisy_run(tmp_path / "a", 0.5)
    other = noisy_run(tmp_path / "b", 0.5, **{"method": "replay"} | change)
    assert main(["compare", str(one), str(other)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and complaint in err and err.count("\n") == 1


def test_another_seed_may_have_its_own_questions(tmp_path):
    runs = [noisy_run(tmp_path / f"a{s}", 0.5, seed=s, questions=f" of {s}") for s in range(2)]
    assert "Test sets differ between seeds" in compare_runs(runs)[0]


def test_many_tasks_are_counted_and_not_listed(tmp_path):
    tasks = [f"task{i:03d}" for i in range(120)]
    cells = {(t, i): [100.0, 0.0] for t in (0, 119) for i in range(120)}
    cells |= {(i, i): [100.0, 0.0] for i in range(120)}
    run = make_run(tmp_path / "a", cells, tasks=tasks)
    text, comparison = compare_runs([run], resamples="1000")
    assert "Test items: 2 to 2 in each of 120 tasks." in text
    assert max(map(len, text.split("\n"))) < 500
    curve = forgetting_curve(comparison.groups[0])
    assert (len(curve), curve[0], curve[1], curve[-1]) == (120, 0, None, 0)


def test_unfinished_and_broken_runs(tmp_path):
    folder = noisy_run(tmp_path / "a", 0.5)
    line = folder / "predictions/after_001/on_000_topic.jsonl"
    content = line.read_text()
    line.write_text(re.sub(r'"score": [0-9.]+', '"score": null', content, count=1))
    with pytest.raises(InputError, match="line 1: no score"):
        read_runs([folder])
    line.write_text("\n".join(content.splitlines()[1:]))
    with pytest.raises(InputError, match="do not have the mean"):
        read_runs([folder])
    scores = json.loads((folder / "scores.json").read_text())
    scores["scores"].pop()
    (folder / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(InputError, match="not finished: 1 of 2 tasks"):
        read_runs([folder])
    (folder / "benchmark.json").write_text("{}")
    with pytest.raises(InputError, match=r"benchmark.json: name is missing"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ([], "compare needs run directories, or --experiment"),
        (["nowhere"], "nowhere: no such run directory or .jsonl file"),
        (
            ["RUN", "--resamples", "10"],
            "--resamples 10 is too few: no difference among 1 groups could be significant",
        ),
        (["RUN", "--tracking_uri", "sqlite:///x.db"], "--tracking_uri goes with --experiment"),
        (["--experiment", "demo", "--tracking_uri", "sqlite:///no.db"], "no such file"),
        (["RUN", "--answer", "labels"], "unknown flag '--answer'; did you mean '--answers'?"),
    ],
)
def test_bad_commands(tmp_path, capsys, command, complaint):
    run = noisy_run(tmp_path / "a", 0.5)
    assert main(["compare", *[str(run) if word == "RUN" else word for word in command]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and complaint in err and err.count("\n") == 1


def test_files(tmp_path, capsys):
    runs = [
        noisy_run(tmp_path / f"{method}{order}", right, method=method, order=order)
        for method, right in {"moram": 0.8, "sequential_lora": 0.4}.items()
        for order in "123"
    ]
    out = tmp_path / "out"
    command = ["compare", *map(str, runs), "--out", str(out), "--resamples", "2000"]
    assert main(command) == 0
    text = (out / "compare.md").read_text()
    assert capsys.readouterr().out == text
    assert "| moram \N{MINUS SIGN} sequential_lora | 3 |" in text
    assert "arXiv:2310.14152" in text and "other base model" in text  # published, and marked
    rows = list(csv.DictReader((out / "compare.csv").open()))
    (row,) = [r for r in rows if (r["metric"], r["less"]) == ("AP", "sequential_lora")]
    assert row["resolved"] == "yes" and float(row["low_both"]) > 20
    assert len([r for r in rows if r["order"] == "2"]) == 2
    tex = (out / "compare.tex").read_text()
    assert r"sequential\_lora" in tex and tex.count(r"\begin{tabular}") == 3
    for name in ("ap", "forgetting"):
        figure = (out / f"{name}.svg").read_text()
        assert figure.startswith("<svg") and "sequential_lora" in figure
    assert main(command) == 0
    assert (out / "compare.md").read_text() == text  # the same runs give the same bytes
