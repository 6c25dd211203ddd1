"""Each method declares the settings that its results depend on: those that it reads, no others."""

from __future__ import annotations

from dataclasses import fields
from itertools import count

import pytest
import torch

from moram_dist.config import MethodConfig, RunConfig
from moram_dist.config_io import build, differences
from moram_dist.methods import METHODS
from moram_dist.methods.method import ForwardOutput
from tests.helpers.tiny import tiny_model, tokens
from tests.unit.test_data_methods import THREE

NAMES = [field.name for field in fields(MethodConfig) if field.name != "method"]
OTHER = {"target_modules": "all-linear", "atoms_per_task": 3, "top_k": 3, "top_experts": 3}


class Reading:
    """A method's settings that remember which of them were asked for."""

    def __init__(self, config):
        self.config = config
        self.read = set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.config, name)


def read_in_a_run(name):
    """What a method reads in two tasks on a tiny model, and in what is asked."""
    config = Reading(MethodConfig(method=name))
    method = METHODS[name](config, seed=0, num_tasks=3)
    model = tiny_model()
    method.build(model)
    ids = tokens(2, 5)
    for i in range(2):
        method.training_data(THREE, i)
        method.epochs(THREE, i)
        with torch.no_grad():
            for parameter, value in method.begin_task(i).items():
                model.get_parameter(parameter).copy_(value)
        model.train()
        method.token_keys.set([0, 1], (5,), torch.device("cpu"))

        def logits():
            with torch.no_grad():
                return model(ids).logits

        method.penalty(ForwardOutput(model(ids).logits, ids, 1.0, again=logits))
        model.eval()

        def look(limit):
            return 1, (model(ids).logits.log_softmax(-1)[0, 0, 0] for _ in range(1))

        method.end_task(i, look)
    method.asked(THREE, lambda task, prompt: True)
    return config.read


@pytest.mark.parametrize("name", [*METHODS])
def test_a_method_declares_what_it_reads(name):
    assert METHODS[name].settings == read_in_a_run(name)


@pytest.mark.parametrize("name", [*METHODS])
def test_only_what_a_method_uses_refuses(name):
    method, numbers = METHODS[name], count(7)
    then = build({"method": name})
    for field in NAMES:
        value = OTHER.get(field) or (
            0.125 if field in ("dropout", "threshold", "quiet_keys") else next(numbers)
        )
        now = build({"method": name, field: value})
        named = differences(now, then, method.unused_settings())
        expected = field in method.settings
        assert [line.split(":")[0] for line in named] == [field] * expected


@pytest.mark.parametrize("name", [*METHODS])
def test_only_a_method_that_trains_depends_on_how(name):
    now = build({"method": name, "learning_rate": 1, "batch_size": 3})
    named = differences(now, build({"method": name}), METHODS[name].unused_settings())
    assert bool(named) == METHODS[name].trains == (name not in ("zero_shot", "in_context"))
    seed = build({"method": name, "seed": 3})
    assert differences(seed, build({"method": name}), METHODS[name].unused_settings())


def test_another_method_is_another_run():
    now = build({"method": "zero_shot"})
    named = differences(now, RunConfig(), METHODS["zero_shot"].unused_settings())
    assert named == ["method: moram -> zero_shot"]
