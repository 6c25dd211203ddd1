"""Files of tracking that a crash has damaged: what is no entry is left out, and nothing stops."""

from __future__ import annotations

import json
import re

import pytest

from moram_dist.registry import InputError
from moram_dist.tracking import MetricsFile, read_ids, write_ids
from moram_dist.tracking.__main__ import main
from moram_dist.tracking.replay import MlflowReplay, _batches
from moram_dist.tracking.spool import Spool, operations
from moram_dist.tracking.tracker import RunDescription, read_metrics

JUNK = {
    "cut in a character": "名".encode()[:1],
    "nulls": b"\0" * 70,
    "half a line": b'{"step": 4, "ta',
    "an array": b"[]",
    "a number": b"4",
    "null": b"null",
    "binary": bytes(range(11, 256)),
    "deep": b"[" * 100_000,
    "a long number": b"9" * 5000,
}
junk = pytest.mark.parametrize("line", JUNK.values(), ids=JUNK)


def log(folder, step):
    lines = MetricsFile()
    run = RunDescription(name="r", experiment="e", run_dir=folder)
    lines.open(run, from_step=step)
    lines.begin_task(0, "名前")
    lines.log({"train/loss": float(step), "x": float("nan")}, step)
    lines.log_sequence({"ap": 1.0}, step)
    lines.close("finished")


def entries(step):
    loss = {"step": step, "task": "名前", "train/loss": float(step), "x": "nan"}
    return [loss, {"tasks_learned": step, "ap": 1.0}]


OF_METRICS = JUNK | {
    "a step that is text": b'{"step": "4", "task": "a", "train/loss": 1.0}',
    "a value that is none": b'{"step": 4, "task": "a", "train/loss": {}}',
    "no step": b'{"task": "a"}',
    "a task that is none": b'{"step": 4, "task": 7}',
}


@pytest.mark.parametrize("newline", [b"\n", b""], ids=["line", "rest"])
@pytest.mark.parametrize("line", OF_METRICS.values(), ids=OF_METRICS)
def test_a_damaged_line_of_the_metrics_is_taken_out(tmp_path, line, newline, caplog):
    path = tmp_path / "metrics.jsonl"
    log(tmp_path, 1)
    if newline:  # in the middle
        path.write_bytes(path.read_bytes().replace(b"\n", b"\n" + line + b"\n", 1))
    else:
        path.write_bytes(path.read_bytes() + line)
    log(tmp_path, 2)
    assert caplog.messages == [f"{path}: 1 damaged lines are skipped"]
    assert read_metrics(path) == entries(1) + entries(2)
    assert len(caplog.messages) == 1  # it is mended


def test_metrics_that_are_a_link_or_a_folder_are_one_line(tmp_path):
    (tmp_path / "victim").write_text("precious\n")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be opened .*: it is a link"):
        log(tmp_path, 1)
    assert (tmp_path / "victim").read_text() == "precious\n"
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be opened .*: Is a directory"):
        log(tmp_path, 1)


def operation(do, **rest):
    return {"do": do, "time": 1, "task": None, **rest}


LOGGED = operation("log", step=0, metrics={"ap": 1.0})
ENDED = operation("end", status="finished", whole=True)


def spooled(path, *lines):
    spool = Spool(path)
    for line in lines:
        spool.append(line)
    spool.close()


@pytest.mark.parametrize(
    "line",
    [
        *JUNK.values(),
        b'{"do": "log"}',
        b'{"do": []}',
        b'{"do": "new", "time": 1}',
        json.dumps(LOGGED | {"metrics": 5}).encode(),
        json.dumps(LOGGED | {"metrics": {"ap": "high"}}).encode(),
        json.dumps(LOGGED | {"step": "3"}).encode(),
        json.dumps(LOGGED | {"task": {}}).encode(),
        json.dumps(ENDED | {"status": "well"}).encode(),
    ],
)
def test_a_damaged_line_of_a_spool_is_left_out(tmp_path, line, caplog):
    path = tmp_path / "tracking" / "run.jsonl"
    spooled(path, LOGGED)
    with path.open("ab") as file:
        file.write(line + b"\n")
    spooled(path, ENDED)
    assert [found for found, _ in operations(path)] == [LOGGED, ENDED]
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith("is damaged and skipped")


def test_a_damaged_last_line_is_dealt_with_once(tmp_path):
    path = tmp_path / "run.jsonl"
    spooled(path, LOGGED)
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"null\n")
    size = path.stat().st_size
    assert [*_batches(path, 0)] == [([LOGGED], size)]
    assert [*_batches(path, whole)] == [([], size)]
    assert [*_batches(path, size)] == []


def test_texts_that_are_no_utf8_and_what_a_newer_version_says(tmp_path):
    path = tmp_path / "tracking" / "run.jsonl"
    odd = operation("attach", paths=["a\udcff", "é\\"], folder="x", further=[1])
    spooled(path, odd)
    assert [found for found, _ in operations(path)] == [odd | {"paths": ["a\\udcff", "é\\"]}]


def test_a_spool_is_for_its_owner_and_no_link(tmp_path):
    folder = tmp_path / "tracking"
    spooled(folder / "run.jsonl")
    assert (folder / "run.jsonl").stat().st_mode & 0o777 == 0o600
    (folder / "node_000.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=r"node_000\.jsonl cannot be opened .*: it is a link"):
        Spool(folder / "node_000.jsonl")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("content", [*JUNK.values(), b"", b'{"store": 1}'])
def test_ids_that_are_damaged_are_made_anew(tmp_path, content, caplog):
    (tmp_path / "tracking.json").write_bytes(content)
    assert read_ids(tmp_path) is None
    (said,) = caplog.messages
    assert str(tmp_path / "tracking.json") in said and said.endswith("recreated")
    ids = {"store": "s", "parent": "p", "tasks": {"0": "t"}, "sent": {"run.jsonl": 4}, "tags": {}}
    write_ids(tmp_path, ids)
    assert read_ids(tmp_path) == ids


def test_what_is_left_of_a_damaged_spool_is_sent(tmp_path):
    """The lines that open the run and a task are damaged, and the ids tell of more than there is.

    The run was started a second time, so it is opened once more.
    """
    from mlflow.tracking import MlflowClient

    opened = operation("open", sequence="s", name="run", experiment="demo", parameters={}, tags={})
    opened |= {"run_directory": str(tmp_path), "datasets": []}
    curve = operation("log", step=0, metrics={"train/loss": 1.0}) | {"task": 0}
    path = tmp_path / "run" / "tracking" / "run.jsonl"
    spooled(path, opened, LOGGED, opened, operation("begin_task", name="A") | {"task": 0})
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (0, 3):
        lines[damaged] = b"\0" * (len(lines[damaged]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    spooled(path, curve, LOGGED, ENDED)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    ids = {"store": uri, "parent": None, "tasks": {}, "sent": {"run.jsonl": 10**6}}
    write_ids(tmp_path / "run", ids)
    replay = MlflowReplay(uri, tmp_path / "run")
    replay.send()
    assert replay.complete()
    parent = json.loads((tmp_path / "run" / "tracking.json").read_text())["parent"]
    client = MlflowClient(uri)
    assert client.get_run(parent).info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(parent, "ap")] == [1.0]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda run: None, "holds no tracked run"),
        (lambda run: run.write_text("a file"), "holds no tracked run|cannot be read"),
        (lambda run: (run / "tracking" / "run.jsonl").mkdir(parents=True), "cannot be read"),
        (lambda run: spooled(run / "tracking" / "run.jsonl"), "whose run it is"),
        (lambda run: spooled(run / "tracking" / "run.jsonl", LOGGED, ENDED), "whose run it is"),
    ],
)
def test_a_folder_that_cannot_be_sent_is_one_line(tmp_path, capsys, make, complaint):
    make(tmp_path / "run")
    assert main(["send", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert re.search(complaint, said) and said.count("\n") == 1 and said.startswith("error: ")
    assert not (tmp_path / "mlflow.db").exists()
