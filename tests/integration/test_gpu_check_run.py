"""The check for a borrowed GPU, on a CPU with small sizes, and without MLflow."""

from __future__ import annotations

import json
import os
import sys
import time
from xml.etree import ElementTree

import pytest
import torch

from tests.integration.launching import ROOT, run
from tools.gpu import kernel_tests
from tools.gpu.record import How, Record
from tools.gpu.steps import STEPS, Stopped

OURS = ("ours", "ours, dropout 0.1")


@pytest.mark.integration
def test_every_step_on_a_cpu(tmp_path, monkeypatch):
    (tmp_path / "mlflow.py").write_text("raise ModuleNotFoundError('mlflow', name='mlflow')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    out = tmp_path / "out"
    words = ["--out", out, "--budget", "1500", "--device", "cpu", "--tiny"]
    done = run(sys.executable, ROOT / "tools" / "gpu_check.py", *words, cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    assert {path.name for path in out.iterdir()} == {step.file for step in STEPS}
    assert len(STEPS) == 8  # no more files come back from the machine
    found = {}
    for path in out.glob("*.json"):
        record = json.loads(path.read_text())
        assert record["status"] == "done", record
        found[path.stem] = record["found"]
    assert found["env"]["packages"]["torch"] and found["env"]["device"] is None
    assert found["calibration"]["bf16 product"]["FLOPs a second"] > 0
    assert found["calibration"]["split_error"] < 1e-4
    assert found["launches"]["steps"]["ours"]["operations"] > 0
    for case in found["bench"]["cases"]:
        assert all(way["passed"] and way["least"] > 0 for way in case["ways"].values())
        assert {"bare linear", "published", "ours"} <= case["ways"].keys()
    assert found["decode"]["error_of_two_layers"] < 1e-4
    assert found["decode"]["16 rows, prompts of 16 tokens"].keys() >= {"bare", "ours"}
    assert all(found["train"]["steps"][name]["over bare"] > 0 for name in OURS)
    skipped = ElementTree.parse(out / "junit.xml").find(".//skipped")
    assert skipped is not None and skipped.get("message") == "needs CUDA"
    log = (out / "demo.log").read_text()
    assert "score on each task" in log and log.endswith("gpu_check: done\n")


@pytest.mark.integration
@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run all steps")
def test_without_a_gpu_all_but_the_environment_is_skipped(tmp_path):
    out = tmp_path / "out"
    done = run(sys.executable, ROOT / "tools" / "gpu_check.py", "--out", out, cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    assert [line.split()[3] for line in done.out.splitlines()] == ["done"] + ["skipped:"] * 7
    for step in STEPS[1:]:
        assert "CUDA is missing" in (out / step.file).read_text()
    assert json.loads((out / "env.json").read_text())["found"]["device"] is None


TESTS = """
import time

def test_right():
    pass

def test_wrong():
    assert 1 == {number}

def test_slow():
    time.sleep({seconds})
"""


@pytest.mark.integration
@pytest.mark.parametrize(("number", "failures"), [(1, 0), (2, 1)])
def test_pytest_writes_its_own_file(number, failures, tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS.format(number=number, seconds=0))
    record = Record(tmp_path / "junit.xml", "kernel_tests", time.monotonic())
    how = How("cpu", tiny=True, began=record.began, until=record.began + 500)
    words = [str(tmp_path / "test_it.py"), "--rootdir", str(tmp_path)]
    if failures:
        with pytest.raises(RuntimeError, match="pytest ended with code 1"):
            kernel_tests.run_tests(record, how, words)
        record.end("failed", "pytest ended with code 1")
    else:
        kernel_tests.run_tests(record, how, words)
        record.end("done")
    suite = ElementTree.parse(record.path).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("3", str(failures))


@pytest.mark.integration
def test_pytest_that_takes_too_long_is_interrupted(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS.format(number=1, seconds=600))
    record = Record(tmp_path / "junit.xml", "kernel_tests", time.monotonic())
    how = How("cpu", tiny=True, began=record.began, until=record.began + 15)
    with pytest.raises(Stopped, match="no time for all tests"):
        kernel_tests.run_tests(record, how, [str(tmp_path / "test_it.py")])
    record.end("cut short", "no time for all tests")
    assert record.path.exists()
    assert time.monotonic() - record.began < 300
