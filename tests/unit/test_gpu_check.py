"""Steps of the GPU check that fail, hang, die, or cannot run; its clock, checks and wheels."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import types
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench import variants
from launch.versions import pins
from moram_dist.registry import InputError
from tools import gpu_check, gpu_wheels
from tools.gpu import calibration, launches, layer, models, steps, timing
from tools.gpu.record import CUT, DONE, FAILED, SKIPPED, How, Record
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
    shares = [round(each.until - given[-1].until) for each in given]
    assert shares == [-46, -44, -32, -28, -16, -10, -4, 0]  # a tenth of section 5's table
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


class Event:
    """A CUDA event on a clock that each call advances."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.now

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1000 * (other.at - self.at)


def test_events_time_calls_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    seen = []

    def call(name, seconds):
        def run():
            seen.append(name)
            Event.now += seconds

        return run

    calls = {"long": call("long", 0.5), "short": call("short", 0.0005)}
    found = timing.seconds(calls, "cuda", repeats=20)
    assert {name: each["repeats"] for name, each in found.items()} == {"long": 20, "short": 20}
    assert found["long"]["median"] == pytest.approx(0.5)
    assert found["short"]["least"] == pytest.approx(0.0005)
    assert seen.count("long") == 22 and seen.count("short") == 2 + 20 * 4  # at least 2 ms at once
    left = iter([2.0, 1.0, 0.1])
    found = timing.seconds(calls, "cuda", repeats=20, left=lambda: next(left))
    assert {each["repeats"] for each in found.values()} == {3}


def test_two_bf16_products_keep_what_one_loses():
    one, other = (calibration.normal(64, size, how()) for size in (64, 32))
    b = other.to(torch.bfloat16)
    exact = one.double() @ b.double()
    once = (one.bfloat16().double() @ b.double() - exact).abs().max()
    assert (calibration.split(one, b).double() - exact).abs().max() < once / 50
    assert calibration.split_error(one, other) < 1e-4


def test_an_implementation_that_is_wrong_is_not_timed(tmp_path, monkeypatch):
    right = variants.ours

    def wrong(inputs):
        return right(replace(inputs, case=replace(inputs.case, temperature=0.031)))

    monkeypatch.setattr(variants, "ours", wrong)
    monkeypatch.setattr(layer, "TINY", layer.TINY[:1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    record = Record(tmp_path / "bench.json", "layer", 0.0)
    with pytest.raises(RuntimeError, match="ours at 16 tokens, 40 atoms"):
        layer.run(record, how())
    found = content(record.path)["found"]
    assert found["left_out"] == "PEFT LoRA: peft is not installed"
    (case,) = found["cases"]
    assert case["ways"].keys() == {"bare linear", "published", "ours"}
    assert "least" not in case["ways"]["ours"] and not case["ways"]["ours"]["passed"]
    assert case["ways"]["published"]["least"] > 0


def test_cases_that_do_not_fit_are_left_out(tmp_path):
    record = Record(tmp_path / "bench.json", "layer", 0.0)
    with pytest.raises(Stopped, match="0 of 2 cases"):
        layer.run(record, how(0.5))


def test_a_case_that_fails_does_not_stop_the_next(tmp_path, monkeypatch):
    def one_case(case, dtype, how):
        if case.num_atoms == 40:
            raise torch.OutOfMemoryError("too large")
        return {"ours": {"passed": True}}

    monkeypatch.setattr(layer, "one_case", one_case)
    record = Record(tmp_path / "bench.json", "layer", 0.0)
    with pytest.raises(RuntimeError, match="all at 16 tokens, 40 atoms"):
        layer.run(record, how())
    first, second = content(record.path)["found"]["cases"]
    assert first["ways"]["all"]["error"] == "OutOfMemoryError: too large"
    assert second["ways"] == {"ours": {"passed": True}}


def test_the_check_of_a_model_notices_another_temperature(monkeypatch):
    assert models.check(how()) < 1e-4
    put = models.put_published
    monkeypatch.setattr(
        models,
        "put_published",
        lambda model, atoms, config: put(model, atoms, replace(config, temperature=0.033)),
    )
    assert models.check(how()) > 1e-2


def test_copies_share_weights_and_are_adapted_apart():
    base = models.base_of(models.SMALL, how())
    ways = models.answering(base, models.atoms_of(base))
    pointers = {p.data_ptr() for p in base.parameters()}
    for way in ways.values():
        assert pointers <= {p.data_ptr() for p in way.parameters()}
    ids = models.tokens(1, 8, models.SMALL, how())
    with torch.no_grad():
        bare, ours = (ways[name](input_ids=ids).logits for name in (models.BARE, "ours"))
    torch.testing.assert_close(bare, base(input_ids=ids).logits)
    assert not torch.allclose(bare, ours, atol=1e-3)


def test_a_step_that_waits_is_told_with_its_places(monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def waits():
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    found = launches.waits(waits, how(device="cuda"))
    assert found["waits"] and found["first"][-1] == "called a synchronizing CUDA operation"
    ((place, times),) = found["places"].items()
    assert "test_gpu_check.py:" in place and times == 1
    assert modes == ["default", "error", "default", "warn", "default"]
    assert launches.waits(lambda: None, how(device="cuda")) == {"waits": False}


def test_wheels_are_the_pinned_ones_and_bring_what_they_need():
    wheels, sources = gpu_wheels.requirements()
    named = {canonicalize_name(r.name): r for r in map(Requirement, [*wheels, *sources])}
    pinned = {canonicalize_name(k): v for k, v in pins(ROOT / "requirements.txt").items()}
    for name in (*gpu_wheels.PINNED, *gpu_wheels.SOURCES):
        assert str(named[name].specifier) == f"=={pinned[name]}"
    for name in gpu_wheels.BEHIND:
        assert name not in pinned
    for name in named:
        for each in map(Requirement, metadata.requires(name) or ()):
            other = named.get(canonicalize_name(each.name))
            if other and not (each.marker and "extra" in str(each.marker)):
                assert each.specifier.contains(str(other.specifier)[2:]), (name, each)


def test_too_many_wheels_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_wheels, "LIMIT", 3 * 2**20)

    def pip(words):
        place = Path(words[words.index("--dest" if "--dest" in words else "--wheel-dir") + 1])
        (place / f"{words[0]}.whl").write_bytes(b"." * size)

    monkeypatch.setattr(gpu_wheels, "pip", pip)
    size = 2**20
    assert gpu_wheels.main(["--out", str(tmp_path / "few")]) == 0
    assert f"2.0 MiB in {tmp_path / 'few'}" in capsys.readouterr().out
    size = 2**21
    with pytest.raises(InputError, match=r"4.0 MiB of wheels, but only 3 MiB may be carried"):
        gpu_wheels.main(["--out", str(tmp_path / "many")])
    with pytest.raises(InputError, match="exists; choose another folder"):
        gpu_wheels.main(["--out", str(tmp_path / "few")])
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_what_pip_says_is_told(monkeypatch):
    with pytest.raises(InputError, match="pip download failed: ERROR"):
        gpu_wheels.pip(["download", "--no-index", "--find-links", "/nowhere", "no-such-package"])


def test_the_table_of_steps():
    assert [step.until for step in STEPS] == sorted(step.until for step in STEPS)
    assert STEPS[-1].until == WHOLE and len({step.file for step in STEPS}) == 8
    for step in STEPS:
        assert (ROOT / "tools" / "gpu" / f"{step.name}.py").is_file()
