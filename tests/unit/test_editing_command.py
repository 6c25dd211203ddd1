"""``moram memory drop|prune|merge|branch``: the folders that they write, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from eval.edited import read_edit
from eval.predictions import predictions_path
from launch.editing import run_folder
from launch.editing.command import main
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.files import sha256
from moram_dist.reading import read_mapping
from moram_dist.train.inputs import read_inputs
from tests.helpers.drawn_runs import draw_run

THREE = ("topic", "mood", "place")
FEW = {"target_modules": r"model\.layers\.0\.self_attn\.q_proj", "recall": "prefix,all"}
SCORES = [[90.0, None, None], [80.0, 70.0, None], [60.0, 50.0, 40.0]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "run"
    draw_run(folder, tasks=THREE, **FEW)
    metrics = dict.fromkeys(THREE, "exact_match_normalised")
    for suffix, scores in ((None, SCORES), ("all", [[1.0, None, None]])):
        content = {"tasks": THREE, "metrics": metrics, "scores": scores}
        name = f"scores.{suffix}.json" if suffix else "scores.json"
        (folder / name).write_text(json.dumps(content))
        for row, cells in enumerate(scores):
            for column, cell in enumerate(cells):
                if cell is not None:
                    path = predictions_path(folder, row, column, THREE[column], suffix)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(f"{row} {column} {suffix}")
    (folder / "observe").mkdir()
    for row in range(3):
        (folder / "observe" / f"after_{row:03d}.json").write_text(f"{row}")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {str(path): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def run(drawn):
    """The run, which no command may change."""
    before = hashes(drawn)
    yield drawn
    assert hashes(drawn) == before


def edit(*words):
    return main([str(word) for word in words])


def refused(capsys, *words):
    assert edit(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def scores(folder, name="scores.json"):
    return json.loads((folder / name).read_text())["scores"]


def test_a_dropped_task_is_in_no_file_of_the_new_run(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert edit("drop", run, "--task", "mood", "--out", out, "--write_only") == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"Made from {run}: mood dropped.",
        "It is not a memory that never learned mood: place was trained beside what it added.",
        f"measure it by: moram train --recipe {out}/run.yaml --output_dir {out}",
    ]
    config = read_mapping(out / "run.yaml")
    assert config["data"]["order"] == "topic,place"
    assert config["record"]["output_dir"] == str(out)
    assert [task.name for task in read_inputs(out / "inputs.json").tasks] == ["topic", "place"]
    names = [task.name for task in MemoryFiles(out / "memory").manifest().tasks]
    assert names == ["topic", "place"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_rows_before_the_first_change_are_taken_over(run, tmp_path):
    out = tmp_path / "out"
    assert edit("drop", run, "--task", "mood", "--out", out, "--write_only") == 0
    assert scores(out) == [[90.0, None]] and scores(out, "scores.all.json") == [[1.0, None]]
    files = sorted(str(path.relative_to(out)) for path in (out / "predictions").rglob("*.jsonl"))
    assert files == [
        "predictions/after_000/on_000_topic.all.jsonl",
        "predictions/after_000/on_000_topic.jsonl",
    ]
    assert (out / files[0]).read_text() == "0 0 all"
    assert [path.name for path in (out / "observe").iterdir()] == ["after_000.json"]


def test_the_scores_before_are_those_of_the_same_tasks(run, tmp_path):
    out = tmp_path / "out"
    assert edit("drop", run, "--task", "mood", "--out", out, "--write_only") == 0
    found = read_edit(out)
    assert found.before[""]["scores"] == [[90.0, None], [60.0, 40.0]]
    assert found.before["all"]["scores"] == [[1.0, None]]
    assert found.left_out is None  # nothing was measured


def test_a_prune_changes_every_row(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert edit("prune", run, "--keep", 2, "--out", out, "--write_only") == 0
    assert not (out / "scores.json").exists() and not (out / "observe").exists()
    assert read_mapping(out / "run.yaml")["data"]["order"] == ",".join(THREE)
    assert read_edit(out).before[""]["scores"] == SCORES
    assert [task.atoms for task in MemoryFiles(out / "memory").manifest().tasks] == [2, 2, 2]


def test_a_branch_says_how_to_go_on(run, tmp_path, capsys):
    out = tmp_path / "a name"
    assert edit("branch", run, "--upto", "mood", "--order", "job, time", "--out", out) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"go on learning by: moram train --recipe '{out}/run.yaml' --output_dir '{out}'"
    assert read_mapping(out / "run.yaml")["data"]["order"] == "topic,mood,job,time"
    assert scores(out) == [[90.0, None, None, None], [80.0, 70.0, None, None]]
    inputs = [task.name for task in read_inputs(out / "inputs.json").tasks]
    assert inputs == ["topic", "mood", "job", "time"]
    assert read_edit(out).before[""]["scores"] == scores(out)


def test_a_branch_with_the_same_tasks_has_the_same_order(run, tmp_path):
    changed = tmp_path / "named"
    shutil.copytree(run, changed)
    config = read_mapping(changed / "run.yaml")
    config["data"]["order"] = "topic,mood,place"
    (changed / "run.yaml").write_text(yaml.safe_dump(config))
    assert (
        edit("branch", changed, "--upto", "topic", "--order", "mood,place", "--out", tmp_path / "b")
        == 0
    )
    assert read_mapping(tmp_path / "b" / "run.yaml") == {
        **config,
        "record": {**config["record"], "output_dir": str(tmp_path / "b")},
    }


def test_two_runs_are_one(run, tmp_path):
    second = draw_run(tmp_path / "second", tasks=["job", "time"], **FEW)
    content = {
        "tasks": ["job", "time"],
        "metrics": dict.fromkeys(["job", "time"], "m"),
        "scores": [[30.0, None], [20.0, 10.0]],
    }
    (second / "scores.json").write_text(json.dumps(content))
    before = hashes(second)
    out = tmp_path / "out"
    assert edit("merge", run, second, "--out", out, "--write_only") == 0
    assert hashes(second) == before
    assert [row[:3] for row in scores(out)] == SCORES
    assert read_edit(out).before[""]["scores"][3:] == [
        [None, None, None, 30.0, None],
        [None, None, None, 20.0, 10.0],
    ]


def test_two_runs_of_other_data_are_merged_and_not_measured(run, tmp_path, capsys):
    second = draw_run(tmp_path / "second", tasks=["job", "time"], **(FEW | {"seed": 1}))
    path = second / "inputs.json"
    content = json.loads(path.read_text())
    content["tasks"][0]["test"]["digest"] = "a" * 64
    path.write_text(json.dumps(content))
    out = tmp_path / "out"
    assert edit("merge", run, second, "--out", out) == 0
    said = capsys.readouterr().out
    assert "topic, mood, place merged with job, time." in said
    assert "not measured, as one run cannot measure all of its tasks: " in said
    assert "second was started with other input (task job, test split: 6 examples" in said
    assert [path.name for path in out.iterdir()] == ["memory"]
    assert main(["verify", str(out / "memory")]) == 0
    assert capsys.readouterr().out == "5 tasks verified\n"


def test_show_tells_edits(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert edit("drop", run, "--task", "place", "--out", out, "--write_only") == 0
    capsys.readouterr()
    assert main(["show", str(out / "memory")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    digest = sha256(run / "memory" / "memory.json")[:12]
    assert last == (
        "Edited by drop: place dropped. It is the memory before place: no task was learned after "
        f"it. Made from manifest {digest}."
    )


def test_out_must_be_new_and_outside(run, tmp_path, capsys):
    drop = ("drop", run, "--task", "mood", "--write_only", "--out")
    (tmp_path / "full").mkdir()
    assert "full: is there already; give another name" in refused(capsys, *drop, tmp_path / "full")
    assert "run/in is inside " in refused(capsys, *drop, run / "in")
    assert "run: is there already" in refused(capsys, *drop, run)
    out = tmp_path / "out"
    assert edit(*drop, out) == 0
    capsys.readouterr()
    finish = f"is there already; moram train --recipe {out}/run.yaml --output_dir {out} finishes it"
    assert finish in refused(capsys, *drop, out)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["drop", "{run}", "--task", "moo"], "unknown task 'moo'"),
        (["prune", "{run}", "--keep", "9"], "--keep 9: no task of "),
        (["prune", "{run}", "--keep", "few"], "argument --keep: invalid int value: 'few'"),
        (["drop", "{run}", "--task", "mood", "--ranks", "0"], "--ranks must be from 1 to 1,024"),
        (["drop", "{run}/memory", "--task", "mood"], "is no run directory: it has no run.yaml"),
        (["branch", "{run}", "--upto", "mood", "--order", "jab"], "unknown task 'jab'"),
        (["branch", "{run}", "--upto", "mood", "--order", "topic"], "names task 'topic' twice"),
        (["branch", "{run}", "--upto", "0", "--order", "job"], "nothing is learned before the"),
        (["merge", "{run}", "{run}"], "learned task topic"),
        (["drp", "{run}"], "unknown command 'drp'; did you mean 'drop'"),
    ],
)
def test_refusals(run, tmp_path, capsys, words, match):
    out = tmp_path / "out"
    more = [] if words[0] == "drp" else ["--out", out]
    assert match in refused(capsys, *(word.format(run=run) for word in words), *more)
    assert not [*tmp_path.iterdir()]


def test_without_words_the_usage_is_told(capsys):
    assert "usage: moram memory show|verify|drop|prune|merge|branch" in refused(capsys)
    assert main(["--help"]) == 0
    assert "moram memory branch RUN --upto TASK" in capsys.readouterr().out


def test_data_that_changed_is_refused(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / "inputs.json"
    content = json.loads(path.read_text())
    content["tasks"][2]["train"]["examples"] = 41
    path.write_text(json.dumps(content))
    words = ("drop", copy, "--task", "mood", "--out", tmp_path / "out")
    assert "task place, train split: 41 examples then, 40 now" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()
    (copy / "memory" / "002_place.safetensors").write_bytes(b"")
    words = ("drop", copy, "--task", "place", "--out", tmp_path / "out", "--write_only")
    content["tasks"][2]["train"]["examples"] = 40
    path.write_text(json.dumps(content))
    assert edit(*words) == 0  # what is dropped need not be whole
    capsys.readouterr()
    words = ("drop", copy, "--task", "mood", "--out", tmp_path / "more", "--write_only")
    assert "002_place.safetensors has 0 bytes" in refused(capsys, *words)
    assert not (tmp_path / "more").exists()


def test_a_stop_while_it_is_written_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "routing_path", lambda *_: 1 / 0)
    words = ["drop", str(run), "--task", "mood", "--out", str(tmp_path / "out"), "--write_only"]
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("crash_")]
    monkeypatch.undo()
    (tmp_path / ".out.partial").mkdir()  # left by a kill
    (tmp_path / ".out.partial" / "run.yaml").write_text("half")
    assert main(words) == 0
    assert not (tmp_path / ".out.partial").exists()


def test_of_a_run_that_is_not_finished_the_learned_tasks_are_kept(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / "memory" / "memory.json"
    content = json.loads(path.read_text())
    content["tasks"].pop()
    path.write_text(json.dumps(content))
    out = tmp_path / "out"
    assert edit("prune", copy, "--keep", 1, "--out", out, "--write_only") == 0
    assert read_mapping(out / "run.yaml")["data"]["order"] == "topic,mood"
    assert [task.name for task in read_inputs(out / "inputs.json").tasks] == ["topic", "mood"]
    path.write_text(json.dumps(content | {"tasks": []}))
    words = ["drop", str(copy), "--task", "mood", "--out", str(tmp_path / "more")]
    assert main(words) == 2
