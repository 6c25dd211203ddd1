"""Rows answered by a prefix of the memory: the model of that time, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

from moram_dist import answered_by, load_memory
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.methods import METHODS
from moram_dist.recognise import RECOGNISERS, TaskStatistics, prompt_features
from moram_dist.registry import InputError
from tests.helpers.configs import config_of
from tests.helpers.tiny import tiny_model, tokens

NUM_TASKS = 3
WITH_PREFIX = [name for name in METHODS if METHODS[name].keeps_prefixes]


def learned(name, folder):
    """A method that has learned three tasks, drawn by hand; its model, and its files."""
    config = config_of(
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
        prompts = prompt_features(model.get_input_embeddings().weight, prompts_of(i)[:4])
        manifest = files.publish(
            manifest,
            f"task {i}",
            method.end_task(i, lambda _: (0, iter(()))),
            TaskStatistics.of(prompts).tensors(),
        )
    return model.eval(), method


def prompts_of(i):
    """Six prompts of task i, which uses words of its own."""
    return tokens(6, 8, seed=i) % 18 + 3 + 20 * i


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_the_methods_that_keep_their_prefixes():
    assert WITH_PREFIX == [
        *(
            "any_ssr",
            "gain_lora",
            "gpm_lora",
            "inc_lora",
            "inf_lora",
            "moe_lora",
            "moram",
            "o_lora",
        ),
        "single_task",
    ]


@pytest.mark.parametrize("name", WITH_PREFIX)
def test_a_prefix_is_the_model_of_its_time(name, tmp_path):
    model, method = learned(name, tmp_path)
    ids = tokens(5, 8)
    then = [
        logits(load_memory(tiny_model(), tmp_path, upto=k, any_base=True, recall="all"), ids)
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


def test_any_ssr_recalls_by_prefix_unless_told_otherwise(tmp_path):
    learned("any_ssr", tmp_path)
    ids = torch.cat([prompts_of(0), prompts_of(1)])
    settings = {"recall": "prefix", "recogniser": "ridge"}
    found, expected, newest = (
        logits(load_memory(tiny_model(), tmp_path, any_base=True, **some), ids)
        for some in ({}, settings, {"recall": "all"})
    )
    assert torch.equal(found, expected) and not torch.equal(found, newest)


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


def then(folder, upto):
    return load_memory(tiny_model(), folder, upto=upto, any_base=True)


@pytest.mark.parametrize("recogniser", [*RECOGNISERS])
def test_a_loaded_memory_answers_by_the_task_that_it_recognises(recogniser, tmp_path):
    learned("moram", tmp_path)
    model = load_memory(
        tiny_model(), tmp_path, any_base=True, recall="prefix", recogniser=recogniser
    )
    order = [2, 0, 1]
    asked = torch.stack([prompts_of(task)[5] for task in order])
    answers = logits(model, asked)
    for row, task in enumerate(order):
        assert torch.equal(answers[row], logits(then(tmp_path, task + 1), asked)[row])
    with answered_by(model, [1]):  # who says it has the last word
        assert torch.equal(logits(model, asked), logits(then(tmp_path, 1), asked))
    assert torch.equal(logits(model, asked), answers)
    # Padding is not recognised: the row is that of its own tokens.
    mask = torch.ones_like(asked)
    mask[0, :3] = 0
    seen = asked * mask
    with torch.no_grad():
        padded = model(input_ids=seen, attention_mask=mask).logits[0]
        alone = then(tmp_path, 3)(input_ids=seen, attention_mask=mask).logits[0]
    assert torch.equal(padded[3:], alone[3:])


def test_generation_goes_on_with_the_tasks_of_its_prompt(tmp_path):
    learned("inc_lora", tmp_path)
    model = load_memory(tiny_model(), tmp_path, any_base=True, recall="prefix")
    asked = torch.stack([prompts_of(task)[5] for task in (1, 0)])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    found = model.generate(input_ids=asked, attention_mask=torch.ones_like(asked), **settings)
    for row, upto in enumerate((2, 1)):
        alone = then(tmp_path, upto).generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), **settings
        )
        assert torch.equal(found[row], alone[row])
    beams = model.generate(
        input_ids=asked, attention_mask=torch.ones_like(asked), num_beams=3, **settings
    )
    assert beams.shape == found.shape
    with pytest.raises(InputError, match="by its input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(asked))


@pytest.mark.parametrize(("unknown", "upto"), [("base", 0), ("all", NUM_TASKS)])
def test_a_prompt_that_is_like_none_is_answered_by(unknown, upto, tmp_path):
    learned("moram", tmp_path)
    model = load_memory(tiny_model(), tmp_path, any_base=True, recall="prefix", unknown=unknown)
    foreign = torch.full((1, 8), 2)
    assert torch.equal(logits(model, foreign), logits(then(tmp_path, upto), foreign))


@pytest.mark.parametrize(("unknown", "own"), [("all", False), ("likeliest", False), ("base", True)])
def test_one_lora_of_several_answers_a_prompt_that_is_like_none(unknown, own, tmp_path):
    """The likeliest task's: all cannot, and the newest would be any."""
    learned("any_ssr", tmp_path)
    model = load_memory(tiny_model(), tmp_path, any_base=True, unknown=unknown)
    files = MemoryFiles(tmp_path / "memory")
    statistics = [files.statistics(task) for task in files.manifest().tasks]
    chosen = set()
    for token in range(2, 40):
        foreign = torch.full((1, 8), token)
        prompts = prompt_features(tiny_model().get_input_embeddings().weight, foreign)
        (found,) = RECOGNISERS["ridge"](statistics).recognise(prompts)
        if found.known:
            continue
        upto = 0 if own else found.task + 1
        expected = load_memory(tiny_model(), tmp_path, any_base=True, upto=upto, recall="all")
        assert torch.equal(logits(model, foreign), logits(expected, foreign))
        chosen.add(found.task)
    assert len(chosen) > 1


def test_recalls_that_cannot_be_meant(tmp_path):
    learned("moram", tmp_path)
    for wrong in ({"recall": "oracle"}, {"unknown": "none"}, {"recogniser": "x"}):
        with pytest.raises(InputError, match=r"oracle|none|x"):
            load_memory(tiny_model(), tmp_path, any_base=True, **wrong)
    path = tmp_path / "memory" / "memory.json"
    manifest = json.loads(path.read_text())
    manifest["tasks"][1]["recogniser"] = None
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="no statistics of the prompts of task task 1"):
        load_memory(tiny_model(), tmp_path, any_base=True, recall="prefix")
    assert load_memory(tiny_model(), tmp_path, upto=1, any_base=True, recall="prefix")
    manifest["method"] = "sequential_lora"
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="does not keep its earlier states"):
        load_memory(tiny_model(), tmp_path, any_base=True, recall="prefix")


def test_models_and_numbers_that_cannot_be_meant(tmp_path):
    learned("moram", tmp_path)
    model = load_memory(tiny_model(), tmp_path, upto=2, any_base=True)
    with pytest.raises(InputError, match="3 tasks were asked for, and the memory holds 2"):
        answered_by(model, [1, 3]).__enter__()
    with pytest.raises(InputError, match="has no earlier states"):
        answered_by(tiny_model(), [0]).__enter__()
