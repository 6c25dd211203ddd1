"""Sequence metrics on a published run and on matrices small enough to do by hand."""

from __future__ import annotations

import json

import pytest

from eval.continual import Scores, average_so_far, sequence_metrics
from moram_dist.registry import InputError

PUBLISHED = [  # O-LoRA, standard benchmark, order 1: dbpedia, amazon, yahoo, agnews
    [98.7105],
    [98.5526, 57.7632],
    [97.4079, 57.4079, 71.9079],
    [97.7368, 56.0658, 71.0395, 88.6184],
]
FULL = [[50.0, 10.0, 20.0], [60.0, 70.0, 40.0], [30.0, 80.0, 90.0]]


def test_a_published_run():
    found = sequence_metrics(PUBLISHED)
    expected = {
        "ap": 78.3651,
        "last": 78.3651,
        "all_average": 79.5211,
        "mean_diagonal": 79.2500,
        "bwt_gem": -1.17983,
        "bwt_sapt": -0.88487,
        "bwt_clipped": -0.88487,
        "forgetting_max": 1.17983,
    }
    for name, value in expected.items():
        assert found.pop(name) == pytest.approx(value, abs=6e-5), name  # four printed digits
    needs_more = ["fwt_gem", "fwt_single", "transfer", "average"]
    needs_more += ["intransigence_single", "intransigence_joint"]
    assert found == dict.fromkeys(needs_more)


def test_a_full_matrix_by_hand():
    base, single_task, multitask = [5.0, 8.0, 10.0], [60.0, 60.0, 93.0], [55.0, 70.0, 95.5]
    found = sequence_metrics(FULL, base, single_task, multitask)
    assert found == pytest.approx(
        {
            "ap": 200 / 3,
            "all_average": 380 / 6,
            "mean_diagonal": 70,
            "bwt_gem": (-20 + 10) / 2,
            "bwt_sapt": (-20 + 10) / 3,
            "bwt_clipped": -20 / 3,
            "forgetting_max": (30 - 10) / 2,  # task 0 was best after task 1
            "fwt_gem": (2 + 30) / 2,
            "fwt_single": 70 - 71,
            "intransigence_single": 71 - 70,
            "intransigence_joint": 73.5 - 70,
            "transfer": (10 + 30) / 2,
            "average": 450 / 9,
            "last": 200 / 3,
        }
    )


def test_forgetting_does_not_depend_on_what_was_measured_before_a_task():
    lucky = [[50.0, 99.0], [50.0, 40.0]]
    assert sequence_metrics(lucky)["forgetting_max"] == 0
    taller = [[50.0, 99.0, 0.0], [50.0, 40.0, 0.0], [50.0, 40.0, 0.0]]
    assert sequence_metrics(taller)["forgetting_max"] == 0


def test_last_row_and_diagonal_are_enough_for_ap_and_bwt():
    found = sequence_metrics([[50.0], [None, 70.0], [30.0, 80.0, 90.0]])
    known = {"ap", "last", "mean_diagonal", "bwt_gem", "bwt_sapt", "bwt_clipped"}
    assert {name for name, value in found.items() if value is not None} == known


@pytest.mark.parametrize("missing", [(2, 1), (1, 1), (2, 2), (1, 0), (0, 2)])
def test_a_missing_cell_is_none_and_never_0(missing):
    row, column = missing
    a = [list(cells) for cells in FULL]
    a[row][column] = None
    reference = [60.0, 60.0, 90.0]
    found = sequence_metrics(a, [5.0, 8.0, 10.0], single_task=reference, multitask=reference)
    needs = {
        "ap": row == 2,
        "last": row == 2,
        "average": True,
        "all_average": column <= row,
        "mean_diagonal": row == column,
        "fwt_single": row == column,
        "intransigence_single": row == column,
        "intransigence_joint": row == column,
        "bwt_gem": missing in {(2, 1), (1, 1)},
        "bwt_sapt": row in (2, column),
        "bwt_clipped": row in (2, column),
        "forgetting_max": missing in {(2, 1), (1, 1), (1, 0)},
        "transfer": column > row,
        "fwt_gem": False,  # looks at (0, 1) and (1, 2) only
    }
    assert {name: value is None for name, value in found.items()} == needs


def test_a_run_that_is_going_on():
    unfinished = [[50.0, None, None], [60.0, 70.0, None]]
    assert set(sequence_metrics(unfinished).values()) == {None}
    assert sequence_metrics(unfinished, base=[1.0, 2.0, 3.0])["fwt_gem"] is None
    full_rows = [[50.0, 10.0, 20.0], [60.0, 70.0, 40.0]]
    assert sequence_metrics(full_rows, base=[5.0, 8.0, 10.0])["fwt_gem"] == 16
    assert sequence_metrics([], base=[5.0])["ap"] is None


def test_one_task():
    found = sequence_metrics([[40.0]], base=[10.0], single_task=[30.0], multitask=[35.0])
    one = ["ap", "all_average", "mean_diagonal", "average", "last"]
    nothing = ["bwt_gem", "forgetting_max", "fwt_gem", "transfer"]
    assert found == {
        **dict.fromkeys(one, 40.0),
        **dict.fromkeys(nothing),
        "bwt_sapt": 0.0,
        "bwt_clipped": 0.0,
        "fwt_single": 10.0,
        "intransigence_single": -10.0,
        "intransigence_joint": -5.0,
    }


def run_of(*tasks, scores):
    return Scores(tasks=tasks, metrics=dict.fromkeys(tasks, "sari"), scores=scores)


def test_reference_runs_are_matched_by_task():
    run = run_of("a", "b", scores=((50.0, None), (40.0, 60.0)))
    alone = run_of(
        "b", "c", "a", scores=((66.0, None, None), (None, 1.0, None), (None, None, 54.0))
    )
    joint = run_of("b", "a", scores=((2.0, None), (70.0, 58.0)))
    found = run.sequence_metrics(single_task=alone, multitask=joint)
    assert found["fwt_single"] == 55 - 60
    assert found["intransigence_single"] == 60 - 55
    assert found["intransigence_joint"] == 64 - 55
    half = run_of("b", "a", scores=((66.0, None),))  # a and the end are still to come
    found = run.sequence_metrics(single_task=half, multitask=half)
    blocked = ("fwt_single", "intransigence_single", "intransigence_joint")
    assert [found[name] for name in blocked] == [None] * 3
    assert found["ap"] == 50


def test_a_reference_run_that_does_not_fit():
    run = run_of("a", "b", scores=((50.0, None), (40.0, 60.0)))
    with pytest.raises(
        InputError, match="--single_task: task 'b' is scored by sari here, not at all"
    ):
        run.sequence_metrics(single_task=run_of("a", scores=((1.0,),)))
    other = Scores(tasks=("a", "b"), metrics={"a": "sari", "b": "choice"}, scores=())
    with pytest.raises(InputError, match="--multitask: task 'b' is scored by sari here, by choice"):
        run.sequence_metrics(multitask=other)


@pytest.mark.parametrize(
    ("scores", "base"), [([], None), ([[]], None), ([[1.0], [2.0]], None), ([[1.0, 2.0]], [1.0])]
)
def test_what_is_no_matrix(scores, base):
    with pytest.raises(ValueError, match="no score matrix"):
        sequence_metrics(scores, base)
    with pytest.raises(ValueError, match="no score matrix"):
        sequence_metrics(scores, multitask=base)


def test_average_so_far():
    assert average_so_far(PUBLISHED) == pytest.approx(
        [98.7105, 78.1579, 75.5746, 78.3651], abs=1e-4
    )
    assert average_so_far([[50.0, None], [None, 60.0]]) == [50.0, None]
    assert average_so_far([[None], [50.0]]) == [None, None]
    assert average_so_far([]) == []


GOOD = {"tasks": ["a", "b"], "metrics": {"a": "sari", "b": "choice"}, "scores": [[50], [40, None]]}


def load(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Scores.load(path)


def test_load(tmp_path):
    found = load(tmp_path, {**GOOD, "base": [1, None], "counts": [[3]]})
    assert found.tasks == ("a", "b")
    assert found.metrics == {"a": "sari", "b": "choice"}
    assert found.scores == ((50, None), (40, None))
    assert found.base == (1, None)
    assert found.sequence_metrics()["ap"] is None
    assert load(tmp_path, GOOD).base is None


def test_load_an_unfinished_run(tmp_path):
    found = load(tmp_path, {**GOOD, "scores": [[50]]})
    assert found.scores == ((50, None),)
    assert set(found.sequence_metrics().values()) == {None}  # T is 2, not 1
    assert set(load(tmp_path, {**GOOD, "scores": []}).sequence_metrics().values()) == {None}


BAD = [
    ("{\n", "line 2, column 1: malformed JSON"),
    ("[]", "expected an object, got a list"),
    ({"tasks": ["a"], "metrics": {}}, "scores is missing"),
    ({**GOOD, "tasks": "a"}, "tasks must be a list of names"),
    ({**GOOD, "tasks": []}, "tasks must be a list of names"),
    ({**GOOD, "tasks": ["a", 1]}, "tasks must be a list of names"),
    ({**GOOD, "tasks": ["a", "a"]}, "tasks holds 'a' twice"),
    ({**GOOD, "metrics": []}, "metrics must be an object, got a list"),
    ({**GOOD, "metrics": {"a": "sari"}}, "metrics has no metric name for task 'b'"),
    ({**GOOD, "scores": {}}, "scores must be a list of at most 2 rows, got an object"),
    ({**GOOD, "scores": [[1], [1, 2], [1, 2]]}, "at most 2 rows, got 3"),
    ({**GOOD, "scores": [[1], 5]}, "scores[1] must be a list of 2 scores, got a number"),
    ({**GOOD, "scores": [[1], [1]]}, "scores[1] must be a list of 2 scores, got 1"),
    ({**GOOD, "scores": [[]]}, "scores[0] must be a list of 1 to 2 scores, got 0"),
    ({**GOOD, "scores": [[1, 2, 3]]}, "scores[0] must be a list of 1 to 2 scores, got 3"),
    ({**GOOD, "scores": [[1], [1, "x"]]}, "scores[1][1] must be null or a number"),
    ({**GOOD, "scores": [[True]]}, "scores[0][0] must be null or a number"),
    ({**GOOD, "scores": [[float("nan")]]}, "from 0 to 100, got nan"),
    ({**GOOD, "scores": [[-1]]}, "from 0 to 100, got -1"),
    ({**GOOD, "base": [1]}, "base must be a list of 2 scores, got 1"),
    ({**GOOD, "base": 5}, "base must be a list of 2 scores, got a number"),
]


@pytest.mark.parametrize(("content", "complaint"), BAD)
def test_bad_files(tmp_path, content, complaint):
    with pytest.raises(InputError) as caught:
        load(tmp_path, content)
    assert "scores.json" in str(caught.value)
    assert complaint in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Scores.load(tmp_path / "none.json")
