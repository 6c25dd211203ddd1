"""Rows answered by a prefix of the memory: the model of that time, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from moram_dist import answered_by, load_memory
from moram_dist.atoms.memory_files import Manifest, MemoryFiles
from moram_dist.config import MethodConfig
from moram_dist.methods import METHODS
from moram_dist.recognise import RECOGNISERS, TaskStatistics, prompt_features
from moram_dist.registry import InputError
from tests.helpers.tiny import tiny_model, tokens

NUM_TASKS = 3
WITH_PREFIX = [name for name in METHODS if METHODS[name].keeps_prefixes]


def learned(name, folder):
    """A method that has learned three tasks, drawn by hand; its model, and its files."""
    config = MethodConfig(
        method=name,
        atoms_per_task=4,
        alpha=10,
        dropout=0,
        temperature=0.3,
        target_modules="all-linear",
    )
    model = tiny_model()
    method = METHODS[name](config, seed=0, num_tasks=NUM_TASKS)
    method.build(model)
    files = MemoryFiles(folder / "memory")
    manifest = Manifest(
        method=name,
        settings=dataclasses.asdict(config),
        base={"name": "tiny", "fingerprint": "f"},
        modules=list(method.layers),
    )
    for i in range(NUM_TASKS):
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for key, value in method.begin_task(i).items():
                noise = torch.randn(value.shape, generator=generator)
                model.get_parameter(key).copy_(value + 0.1 * noise)
            for key, parameter in model.named_parameters():
                if key.endswith("router"):  # goes on learning
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
        manifest = files.publish(manifest, f"task {i}", method.end_task(i, lambda _: (0, iter(()))))
    return model.eval(), method


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_the_methods_that_keep_their_prefixes():
    assert WITH_PREFIX == [
        *("any_ssr", "gain_lora", "inc_lora", "inf_lora", "moe_lora", "moram", "o_lora"),
        "single_task",
    ]


@pytest.mark.parametrize("name", WITH_PREFIX)
def test_a_prefix_is_the_model_of_its_time(name, tmp_path):
    model, method = learned(name, tmp_path)
    ids = tokens(5, 8)
    then = [
        logits(load_memory(tiny_model(), tmp_path, upto=k, any_base=True), ids)
        for k in range(NUM_TASKS + 1)
    ]
    assert torch.equal(then[0], logits(tiny_model(), ids))
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(then))
    for k in range(NUM_TASKS + 1):
        with method.prefix.of([k] * 5):
            assert torch.equal(logits(model, ids), then[k])
    rows = [2, 0, 3, 1, 2]
    with method.prefix.of(rows):
        mixed = logits(model, ids)
    for b, k in enumerate(rows):
        assert torch.equal(mixed[b], then[k][b])
    assert torch.equal(logits(model, ids), then[NUM_TASKS])


def test_a_layer_that_sees_no_rows_says_so(tmp_path):
    model, method = learned("moram", tmp_path)
    layer = model.get_submodule("model.layers.0.mlp.down_proj")
    x = torch.randn(10, 48)
    with method.prefix.of([2] * 5):
        assert layer(x).shape == (10, 32)
    with method.prefix.of([2, 1, 1, 1, 1]), pytest.raises(InputError, match="one task at a time"):
        layer(x)


def test_what_is_learned_belongs_to_no_prefix(tmp_path):
    model, method = learned("moram", tmp_path)
    ids = tokens(2, 8)
    before = logits(model, ids)
    with torch.no_grad():
        for key, value in method.begin_task(3).items():
            model.get_parameter(key).copy_(value + 0.1)
    assert not torch.equal(logits(model, ids), before)
    with method.prefix.of([3, 3]):
        assert torch.equal(logits(model, ids), before)


def test_a_loaded_memory_answers_by_the_task_that_is_recognised(tmp_path):
    learned("moram", tmp_path)
    model = load_memory(tiny_model(), tmp_path, any_base=True)
    table = model.get_input_embeddings().weight
    # Prompts of a task use words of its own.
    prompts = [tokens(6, 8, seed=i) % 18 + 3 + 20 * i for i in range(NUM_TASKS)]
    known = [TaskStatistics.of(prompt_features(table, of_task[:4])) for of_task in prompts]
    asked = torch.stack([prompts[2][5], prompts[0][5], prompts[1][5]])
    found = RECOGNISERS["ridge"](known).tasks_of(prompt_features(table, asked))
    assert found == [2, 0, 1]
    with answered_by(model, [task + 1 for task in found]):
        answers = logits(model, asked)
    for row, task in enumerate(found):
        then = load_memory(tiny_model(), tmp_path, upto=task + 1, any_base=True)
        assert torch.equal(answers[row], logits(then, asked)[row])


def test_models_and_numbers_that_cannot_be_meant(tmp_path):
    learned("moram", tmp_path)
    model = load_memory(tiny_model(), tmp_path, upto=2, any_base=True)
    with pytest.raises(InputError, match="3 tasks were asked for, and the memory holds 2"):
        answered_by(model, [1, 3]).__enter__()
    with pytest.raises(InputError, match="has no earlier states"):
        answered_by(tiny_model(), [0]).__enter__()
