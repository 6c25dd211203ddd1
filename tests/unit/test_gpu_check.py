"""Steps of the GPU check that fail, hang, die, or cannot run, and their budget."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest

from moram_dist.registry import InputError
from tools import gpu_check
from tools.gpu import steps
from tools.gpu.record import CUT, DONE, FAILED, SKIPPED, How
from tools.gpu.steps import STEPS, WHOLE, Step, Stopped, run_step

ROOT = Path(__file__).resolve().parents[2]


def how(seconds=300.0, device="cpu"):
    now = time.monotonic()
    return How(device, tiny=True, began=now, until=now + seconds)


def content(path):
    return json.loads(path.read_text())


@pytest.fixture
def made_up(monkeypatch):
    """Make a step of a function."""

    def make(run, file="it.json", **fields):
        module = types.ModuleType("tools.gpu.made_up")
        module.run = run
        monkeypatch.setitem(sys.modules, "tools.gpu.made_up", module)
        return Step(name="made_up", file=file, until=WHOLE, **fields)

    return make


def fails(record, how):
    record.put(first=1)
    raise ValueError("wrong")


def has_no_time(record, how):
    record.put(first=1)
    raise Stopped("no time for more")


def dies(record, how):
    record.put(first=1)
    os._exit(5)


def hangs(record, how):
    record.put(first=1)
    time.sleep(600)


def until(path):
    """No time is left as soon as the step has found something."""
    while "first" not in path.read_text():
        time.sleep(0.01)
    return 0


@pytest.mark.parametrize(
    ("run", "status", "why"),
    [
        (lambda record, how: record.put(first=1), DONE, ""),
        (fails, FAILED, "ValueError: wrong"),
        (has_no_time, CUT, "no time for more"),
        (dies, FAILED, "its process ended with code 5"),
        (hangs, FAILED, "killed: made_up did not end in time"),
    ],
)
def test_a_step_keeps_what_it_found(run, status, why, made_up, tmp_path, monkeypatch):
    path = tmp_path / "it.json"
    path.write_text("of an earlier try")
    if run is hangs:
        asked: list[How] = []
        monkeypatch.setattr(steps, "GRACE_S", 0.1)
        left = lambda how: until(path) if asked else asked.append(how) or 300.0  # noqa: E731
        monkeypatch.setattr(How, "left", left)
    assert run_step(made_up(run), how(), tmp_path, has_cuda=False) == (status, why)
    saved = content(tmp_path / "it.json")
    assert (saved["step"], saved["status"], saved["why"]) == ("made_up", status, why)
    assert saved["found"]["first"] == 1
    assert ("traceback" in saved["found"]) == (run is fails)


@pytest.mark.parametrize(
    ("fields", "device", "seconds", "why"),
    [
        ({"on_cpu": False}, "cpu", 300, "needs CUDA"),
        ({}, "cuda", 300, "CUDA is missing"),
        ({"needs": ("json", "no_such", "nor_this")}, "cpu", 300, "missing: no_such, nor_this"),
        ({}, "cpu", 1, "the budget is gone"),
    ],
)
def test_a_step_that_cannot_run_says_why_in_its_file(
    fields, device, seconds, why, made_up, tmp_path
):
    for file in ("it.json", "it.xml", "it.log"):
        step = made_up(fails, file, **fields)
        given = how(seconds, device)
        assert run_step(step, given, tmp_path, has_cuda=False) == (SKIPPED, why)
    saved = content(tmp_path / "it.json")
    assert (saved["status"], saved["why"], saved["found"]) == (SKIPPED, why, {})
    assert f'<skipped message="{why}"/>' in (tmp_path / "it.xml").read_text()
    assert (tmp_path / "it.log").read_text() == f"gpu_check: skipped: {why}\n"


def test_a_step_that_fails_does_not_stop_the_next(made_up, tmp_path, monkeypatch, capsys):
    first = made_up(fails, "first.json")
    monkeypatch.setattr(gpu_check, "STEPS", (first, replace(first, file="second.json")))
    monkeypatch.setattr(gpu_check, "preload", lambda: None)
    words = ["--out", str(tmp_path / "out"), "--device", "cpu", "--tiny", "--steps", "made_up"]
    assert gpu_check.main(words) == 1
    assert content(tmp_path / "out" / "second.json")["why"] == "ValueError: wrong"
    assert capsys.readouterr().out.count("failed: ValueError: wrong") == 2


def test_each_step_has_its_share_of_the_budget(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        gpu_check, "run_step", lambda step, how, *_, **__: given.append(how) or ("", "")
    )
    monkeypatch.setattr(gpu_check, "preload", lambda: None)
    words = ["--out", str(tmp_path), "--device", "cpu", "--tiny"]
    assert gpu_check.main([*words, "--budget", "48"]) == 0
    shares = [each.until - given[-1].until for each in given]
    # A tenth of section 5's table.
    assert shares == pytest.approx([-46, -43.5, -31.5, -28, -16, -10, -4, 0])
    given.clear()
    gpu_check.main([*words, "--steps", "env,layer"])
    assert all(each.left() > WHOLE - 60 for each in given)  # alone, each may take it all


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cpu"], "--device cpu needs --tiny"),
        (["--steps", "env,layers"], "layers"),
        (["--budget", "-1"], "--budget -1.0 must be at least 0"),
        (["--budget", "nan"], "--budget nan must be at least 0"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(words, said, tmp_path):
    with pytest.raises(InputError, match=said):
        gpu_check.main(["--out", str(tmp_path / "out"), *words])
    assert [*tmp_path.iterdir()] == []


def test_a_file_is_no_folder_for_files(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        gpu_check.main(["--out", str(tmp_path / "out")])


def test_the_table_of_steps():
    assert [step.until for step in STEPS] == sorted(step.until for step in STEPS)
    assert STEPS[-1].until == WHOLE and len({step.file for step in STEPS}) == 8
    for step in STEPS:
        assert (ROOT / "tools" / "gpu" / f"{step.name}.py").is_file()
