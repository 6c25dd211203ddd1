"""A short form of tools/fuzz.py; and that it would notice what it looks for."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import pytest

from moram_dist.terminal import say
from tests.integration.launching import run
from tools import fuzz, mutations

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("of_an_area", [3, pytest.param(10, marks=pytest.mark.nightly)])
def test_inputs_are_refused_in_a_line_or_work(tmp_path, of_an_area):
    inputs = of_an_area * len(fuzz.AREAS)
    command = (sys.executable, ROOT / "tools" / "fuzz.py", "--seed", "1", "--inputs", f"{inputs}")
    done = run(*command, cwd=tmp_path, timeout_s=600)
    assert done.code == 0, done.out + done.err
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines()}
    assert [rows[area][0] for area in fuzz.AREAS] == [f"{of_an_area}"] * len(fuzz.AREAS)
    assert sum(int(rows[area][2]) for area in fuzz.AREAS) > 2 * of_an_area  # refused
    assert not list(tmp_path.iterdir())


def spin():
    while True:
        pass


def refuse_and_write():
    Path("left").write_text("x")
    say("error: no", error=True)
    return 2


def die():
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {
    "trace-back": lambda: {}["x"],
    "code": lambda: 1,
    "no line": lambda: 2,
    "written": refuse_and_write,
    "signal": die,
    "hang": spin,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_noticed(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(fuzz.AREAS, kind, lambda rng, folder, run: FAULTS[kind])
    assert fuzz.one(kind, 0, 0, tmp_path).state == "fault"


def test_waiting_is_told_from_computing(tmp_path):
    code = fuzz.in_a_child(lambda: time.sleep(300), tmp_path, tmp_path, wall_s=1)
    assert fuzz.judge(code, "", written=False) == ("fault", f"not done after {fuzz.WALL_S} s")


def test_inputs_depend_on_seed_and_index_alone(tmp_path):
    value = {"a": [1, 2, {"b": "c"}], "d": None}
    spoilt = [repr(mutations.spoil_value(Random(f"0:x:{n}"), value)) for n in range(200)]
    assert spoilt == [repr(mutations.spoil_value(Random(f"0:x:{n}"), value)) for n in range(200)]
    assert len(set(spoilt)) > 60
    assert value == {"a": [1, 2, {"b": "c"}], "d": None}
