"""What the steps of the GPU check measure: in turns, checked, and on one device."""

from __future__ import annotations

import importlib.util
import json
import time
import warnings
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from bench import stack, variants
from bench.measure import one_pass
from bench.models import draw_atoms
from bench.variants import CaseInputs
from launch.planning.meter import AsOnDevice, Meter
from tools.gpu import calibration, launches, layer, models, timing, training
from tools.gpu.record import How, Record
from tools.gpu.steps import Stopped


def how(seconds=300.0, device="cpu"):
    now = time.monotonic()
    return How(device, tiny=True, began=now, until=now + seconds)


def content(path):
    return json.loads(path.read_text())


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


def test_all_tensors_are_on_one_device():
    """On the meta device, where an operation that mixes devices raises an error as on CUDA."""
    here = How("meta", tiny=True, began=0, until=0)
    base = models.base_of(models.SMALL, here)
    atoms = models.atoms_of(base)
    batch = training.micro_batch(2, 32, models.SMALL)
    ours = models.copy_of(base)
    models.put_learned(ours, atoms)
    with Meter(), AsOnDevice():
        training.bare_step(models.copy_of(base), batch, here)()
        training.our_step(models.copy_of(base), atoms, batch, here, dropout=0.1)()
        ours(input_ids=torch.zeros(2, 8, dtype=torch.long, device="meta"))

    def meta(*shape):
        return torch.empty(shape, device="meta")

    inputs = CaseInputs(
        case=layer.TINY[1],
        x_TD=meta(16, 64).requires_grad_(),
        weight_DD=meta(64, 64),
        frozen=(meta(112, 64), meta(112, 64)),
        active=(meta(16, 64).requires_grad_(), meta(16, 64).requires_grad_()),
        upstream_TD=meta(16, 64),
    )
    found = layer.references(inputs)
    assert {tensor.device.type for of in found.values() for tensor in of.values()} == {"meta"}
    for name in ("bare linear", "published", "ours"):
        one_pass(layer.ways_of(inputs.case)[name](inputs), inputs.upstream_TD)
    block = stack.decoder(64).to("meta")
    rows = draw_atoms(block, stack.METHOD, 224, 16)
    x = meta(1, 16, 64).requires_grad_()
    with Meter(), AsOnDevice():
        one_pass(stack.ours(deepcopy(block), rows, x, 8), meta(1, 16, 64))
        stack.answers(stack.published(block, rows, x, 8, double=True), meta(1, 16, 64))


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
    assert place.startswith(__file__) and times == 1
    assert modes == ["default", "error", "default", "warn", "default"]
    assert launches.waits(lambda: None, how(device="cuda")) == {"waits": False}
