"""The eval command: what it prints, and one line and exit code 2 for what it cannot use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import eval.run
from eval.run import main

SCRIPT = Path(eval.run.__file__)
LINES = [
    {"id": "test-0", "prompt": "p", "references": ["A"], "prediction": "A.", "score": 0.0},
    {"id": "test-1", "prompt": "p", "references": ["B", "C"], "prediction": "c", "score": None},
    {"id": "test-2", "prompt": "p", "references": ["B"], "prediction": "A"},
    {"id": "test-3", "prompt": "p", "references": ["B"], "prediction": ""},
]
FOMC = ["--benchmark", "trace", "--task", "FOMC"]


@pytest.fixture
def predictions(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(path)


@pytest.mark.parametrize("rules", [FOMC, ["--metric", "choice", "--labels", "A,B,C"]])
def test_rescore(predictions, capsys, rules):
    assert main(["rescore", "--predictions", predictions, *rules]) == 0
    assert json.loads(capsys.readouterr().out) == {"metric": "choice", "score": 50.0, "n": 4}


def test_metrics(tmp_path, capsys):
    path = tmp_path / "scores.json"
    scores = [[50], [40, 60]]
    content = {"tasks": ["a", "b"], "metrics": {"a": "sari", "b": "sari"}, "scores": scores}
    path.write_text(json.dumps(content))
    assert main(["metrics", f"--scores={path}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ap"], found["bwt_gem"], found["transfer"]) == (50, -10, None)


def test_metrics_of_a_published_run(tmp_path, capsys):
    """O-LoRA's log of the standard benchmark, order 1: each convention to four decimals."""
    tasks = ["dbpedia", "amazon", "yahoo", "agnews"]
    scores = [
        [98.7105],
        [98.5526, 57.7632],
        [97.4079, 57.4079, 71.9079],
        [97.7368, 56.0658, 71.0395, 88.6184],
    ]
    metrics = dict.fromkeys(tasks, "exact_match_normalised")
    content = {"tasks": tasks, "metrics": metrics, "scores": scores}
    (tmp_path / "scores.json").write_text(json.dumps(content))
    assert main(["metrics", "--scores", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = {
        "ap": 78.3651,
        "last": 78.3651,
        "all_average": 79.5211,
        "mean_diagonal": 79.2500,
        "bwt_gem": -1.1798,
        "bwt_sapt": -0.8849,
        "bwt_clipped": -0.8849,
        "forgetting_max": 1.1798,
    }
    assert {k: v if v is None else round(v, 4) for k, v in found.items()} == {
        **dict.fromkeys(found),
        **expected,
    }


def test_metrics_beside_reference_runs(tmp_path, capsys):
    runs = {"run": [[50], [40, 60]], "alone": [[52], [None, 64]], "joint": [[None], [55, 65]]}
    for name, scores in runs.items():
        (tmp_path / name).mkdir()
        content = {"tasks": ["a", "b"], "metrics": {"a": "sari", "b": "sari"}, "scores": scores}
        (tmp_path / name / "scores.json").write_text(json.dumps(content))
    run, alone, joint = (str(tmp_path / name) for name in runs)
    assert main(["metrics", "--scores", run, "--single_task", alone, "--multitask", joint]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fwt_single"] == -3
    assert found["intransigence_single"] == 3
    assert found["intransigence_joint"] == 5


def test_report(tmp_path, capsys, monkeypatch):
    module = type(sys)("eval.report.write")
    module.write_report = lambda run: run / "report" / "index.html"
    monkeypatch.setitem(sys.modules, "eval.report.write", module)
    assert main(["report", "--run", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report" / "index.html")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["--help"], "eval/run.py"),
        (["--help"], "moram rescore"),
        (["rescore", "--help"], "moram rescore"),
    ],
)
def test_help(capsys, command, named):
    try:
        assert main(command) == 0
    except SystemExit as stop:
        assert stop.code == 0
    assert named in capsys.readouterr().out


RESCORE = ["rescore", "--predictions", "FILE"]

BAD_COMMANDS = [
    (["rescor"], "unknown command 'rescor'; did you mean 'rescore'?"),
    (["--scores", "x"], "unknown command '--scores'"),
    (["rescore", *FOMC], "the following arguments are required: --predictions"),
    ([*RESCORE, *FOMC, "--lables", "A"], "unknown flag '--lables'; did you mean '--labels'?"),
    ([*RESCORE, *FOMC, "--pred=x"], "unknown flag '--pred'"),
    ([*RESCORE, *FOMC, "more"], "unrecognized arguments: more"),
    ([*RESCORE, "--task"], "argument --task: expected one argument"),
    (RESCORE, "rescore needs --benchmark with --task, or --metric"),
    ([*RESCORE, "--benchmark", "trace"], "rescore needs --benchmark with --task, or --metric"),
    ([*RESCORE, "--task", "FOMC"], "rescore needs --benchmark with --task, or --metric"),
    ([*RESCORE, *FOMC, "--metric", "sari"], "not both"),
    ([*RESCORE, *FOMC, "--labels", "A"], "--labels goes with --metric"),
    ([*RESCORE, "--metric", "sarri"], "unknown metric 'sarri'; did you mean 'sari'?"),
    ([*RESCORE, "--metric", "choice"], "metric 'choice' needs labels of one character each"),
    ([*RESCORE, "--benchmark", "tarce", "--task", "FOMC"], "did you mean 'trace'?"),
    ([*RESCORE, "--benchmark", "jsonl", "--task", "FOMC"], "no fixed rules; give --metric"),
    ([*RESCORE, "--benchmark", "trace", "--task", "FOMCC"], "did you mean 'FOMC'?"),
    (["rescore", "--predictions", "none.jsonl", *FOMC], "none.jsonl: no such file"),
    (["metrics", "--scores", "none.json"], "none.json: no such file"),
    (["metrics", "--scores", "SCORES", "--multitask", "none"], "none: no such file"),
    (["metrics", "--run", "x"], "unknown flag '--run'"),
    (["report", "--run", "none"], "--run: no such folder: none"),
    (["audit"], "the following arguments are required: --benchmark"),
    (["audit", "--benchmark", "demo", "--out", "a.txt"], "--out a.txt: expected a name that ends"),
    (["audit", "--benchmark", "tarce"], "unknown benchmark 'tarce'; did you mean 'trace'?"),
    (["audit", "--benchmark", "jsonl"], "jsonl needs --data_dir"),
    (["audit", "--benchmark", "demo", "--strickt"], "unknown flag '--strickt'; did you mean"),
]


def complaint_of(command, capsys):
    """The one line that a bad command prints; checks that it is all."""
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(("command", "complaint"), BAD_COMMANDS)
def test_bad_commands(predictions, capsys, command, complaint):
    scores = Path(predictions).with_name("scores.json")
    scores.write_text('{"tasks": ["a"], "metrics": {"a": "sari"}, "scores": [[1]]}')
    files = {"FILE": predictions, "SCORES": str(scores)}
    command = [files.get(word, word) for word in command]
    assert complaint in complaint_of(command, capsys)


BAD_FILES = [
    ("", "holds no predictions"),
    ("\n\n", "holds no predictions"),
    ('{"id": "a",\n', "line 1, column 12: malformed JSON"),
    (json.dumps(LINES[0]) + "\n{", "line 2, column 2: malformed JSON"),
    ("5", "line 1: expected an object, got a number"),
    ('{"id": "a", "prompt": "p", "references": ["A"]}', "line 1: no field 'prediction'"),
    ('{"id": "a", "prompt": "p", "prediction": "A"}', "line 1: no field 'references'"),
    (json.dumps({**LINES[0], "references": []}), "'references' is an empty list"),
    (json.dumps({**LINES[0], "prediction": None}), "'prediction' must be a text, got null"),
    (json.dumps({**LINES[0], "prompt": ""}), "'prompt' is empty"),
]


@pytest.mark.parametrize(("content", "complaint"), BAD_FILES)
def test_bad_files(tmp_path, capsys, content, complaint):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    message = complaint_of(["rescore", "--predictions", str(path), *FOMC], capsys)
    assert "bad.jsonl" in message
    assert complaint in message


def test_nothing_to_do(capsys):
    assert main([]) == 2
    assert "rescore" in capsys.readouterr().out


def test_as_a_script_from_anywhere(tmp_path, predictions):
    command = [sys.executable, str(SCRIPT), "rescore", "--predictions", predictions, *FOMC]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["score"] == 50.0
    bad = subprocess.run([*command[:-1], "FOMK"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr.count("\n") == 1


def test_needs_no_torch():
    code = "import sys, eval.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parents[1]).returncode == 0
