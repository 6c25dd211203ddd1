"""Each method declares the settings that it reads, and no others; each is declared once."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

import pytest
import torch

from moram_dist.config_io import build, differences, fields
from moram_dist.methods import METHODS
from moram_dist.methods.method import ForwardOutput
from moram_dist.recognise import PromptFeatures
from moram_dist.registry import InputError
from moram_dist.tasks.task import Example, Task
from tests.helpers.configs import config_of
from tests.helpers.tiny import tiny_model, tokens
from tests.helpers.tiny_clip import tiny_clip
from tests.unit.test_data_methods import THREE

NAMES = [name for name, (section, _) in fields().items() if section == "method"]
NAMES.remove("method")
OTHERS = (7, 0.125, "all-linear")


def declared(name):
    return {field.name for field in dataclasses.fields(METHODS[name].Config)} - {"method"}


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
    config = Reading(config_of(name))
    method = METHODS[name](config, seed=0, num_tasks=3)
    if method.reads_features:
        return read_in_closed_form(config, method)
    model = tiny_model()
    method.build(model)
    ids = tokens(2, 5)
    for i in range(2):
        method.training_data(THREE, i)
        method.epochs(THREE, i, 4)
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


def read_in_closed_form(config, method):
    """What a method reads that learns from features of pictures."""
    method.build(tiny_clip())
    task = Task(
        name="t",
        metric="exact_match",
        labels=("a",),
        texts=(("a",),),
        train=(Example("0", "0.png", ("a",)),),
        test=(),
    )
    features = torch.ones(1, method.num_features)
    method.read_features(0, task, PromptFeatures(features.double(), torch.ones(1)))
    method.end_task(0, None)
    method.fused(features, torch.ones(1, 1), task.texts)
    return config.read


@pytest.mark.parametrize("name", [*METHODS])
def test_a_method_declares_what_it_reads(name):
    assert declared(name) == read_in_a_run(name)


def test_each_setting_is_declared_once():
    """So no two methods give one flag two types, defaults or texts."""
    kinds = {kind for name in METHODS for kind in METHODS[name].Config.__mro__}
    found = [setting for kind in kinds for setting in vars(kind).get("__annotations__", ())]
    assert sorted(found) == sorted([*NAMES, "method"])


def another(field):
    """A value that the setting takes and that is no method's default."""
    for value in OTHERS:
        with suppress(InputError):
            build({field: value})
            return value
    raise AssertionError(f"--{field} takes none of {OTHERS}: add one that it takes")


@pytest.mark.parametrize("name", [*METHODS])
def test_only_what_a_method_uses_refuses(name):
    then = build({"method": name})
    for field in NAMES:
        now = build({"method": name, field: another(field)})
        named = differences(now, then)
        expected = field in declared(name)
        assert [line.split(":")[0] for line in named] == [field] * expected


@pytest.mark.parametrize("name", [*METHODS])
def test_only_a_method_that_trains_depends_on_how(name):
    now = build({"method": name, "learning_rate": 1, "batch_size": 3})
    named = differences(now, build({"method": name}))
    assert bool(named) == METHODS[name].trains == (name not in ("zero_shot", "in_context", "rail"))
    seed = build({"method": name, "seed": 3})
    assert differences(seed, build({"method": name}))


def test_another_method_is_another_run():
    now = build({"method": "zero_shot"})
    named = differences(now, build({}))
    assert named == ["method: moram -> zero_shot"]
