"""RAIL against its formulas, written out."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from launch.base import check_fit
from launch.settings import resolve
from moram_dist.config import EvalConfig
from moram_dist.config_io import build
from moram_dist.decode import classes as classes_module
from moram_dist.families.causal import Causal
from moram_dist.methods import METHODS
from moram_dist.methods.rail import RailConfig
from moram_dist.methods.restore import load_memory
from moram_dist.recognise import PromptFeatures
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark
from tests.helpers.in_memory import run_in_memory
from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_clip import draw_task, reader, tiny_clip


def rail(**settings):
    method = METHODS["rail"](RailConfig(method="rail", **settings), seed=5)
    method.build(tiny_clip())
    return method


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [draw_task(folder, name, 4) for name in ("colours", "others")]


def features(task, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(task.train), 24, generator=generator, dtype=torch.float64)
    return PromptFeatures(F.normalize(drawn, dim=1), torch.ones(len(drawn), dtype=torch.float64))


def learned(method, tasks, order):
    for i, k in enumerate(order):
        method.read_features(i, tasks[k], features(tasks[k], k))
        method.end_task(i, None)
    return method


@pytest.mark.parametrize("hidden", [8, 100])  # fewer and more than the 24 pictures
@pytest.mark.parametrize("at_once", [7, 24])
def test_weights_are_those_of_all_tasks_at_once(tasks, hidden, at_once, monkeypatch):
    monkeypatch.setattr("moram_dist.methods.rail.AT_ONCE", at_once)
    method = learned(rail(hidden=hidden), tasks, (0, 1))
    h = torch.cat(
        [method._hidden(features(task, k).mean_ND.float()) for k, task in enumerate(tasks)]
    )
    texts = [text for task in tasks for (text,) in task.texts]
    y = torch.zeros(len(h), 6, dtype=torch.float64)
    row = 0
    for task in tasks:
        for example in task.train:
            (text,) = task.texts[task.labels.index(example.references[0])]
            y[row, texts.index(text)] = 1
            row += 1
    expected = torch.linalg.inv(h.T @ h + 0.1 * torch.eye(hidden, dtype=torch.float64)) @ h.T @ y
    assert torch.allclose(method._weights(), expected, atol=1e-8)


def test_any_order_gives_the_same_scores(tasks):
    classes = [*tasks[0].texts, *tasks[1].texts]
    images, logits = torch.randn(9, 24), torch.randn(9, 6)
    scores = [
        learned(rail(hidden=50), tasks, order).fused(images, logits, classes)
        for order in ((0, 1), (1, 0))
    ]
    assert torch.allclose(*scores, atol=1e-8)


def test_the_base_answers_what_it_puts_elsewhere(tasks):
    method = learned(rail(hidden=50), tasks, (0,))
    classes = [*tasks[0].texts, *tasks[1].texts]
    images = torch.randn(40, 24)
    logits = torch.randn(40, 6)
    found = method.fused(images, logits, classes)
    zero_shot = logits.double().softmax(1)
    regression = method._hidden(images) @ method._weights()
    for b in range(40):
        if zero_shot[b].argmax() < 3:
            ours = torch.cat([regression[b], torch.zeros(3, dtype=torch.float64)])
            assert torch.allclose(found[b], 0.1 * zero_shot[b] + 0.9 * ours)
        else:
            assert torch.equal(found[b], zero_shot[b])


def test_a_run(tasks, tmp_path):
    benchmark = Benchmark(name="drawn", order="o", protocol="p", tasks=tuple(tasks))
    model = tiny_clip()
    scores = run_in_memory(
        tmp_path,
        model,
        reader(),
        benchmark,
        RailConfig(method="rail", hidden=200),
        learning_rate=1e-2,
        asking=EvalConfig(eval_rows="all"),
    )
    assert scores["scores"][0][1] == scores["base"][1]  # what is not learned is the base's
    assert min(scores["scores"][1]) > 90 > max(scores["base"])
    assert json.loads((tmp_path / "memory" / "memory.json").read_text())["method"] == "rail"
    again = rail(hidden=200)
    from moram_dist.atoms.memory_files import MemoryFiles

    files = MemoryFiles(tmp_path / "memory")
    for i, task in enumerate(files.manifest().tasks):
        files.check(task, again.shapes(i, {}))
        again.load_task(i, files.read(task))
    task = tasks[0]
    pixels = torch.stack([torch.from_numpy(reader().read(task, e.prompt)) for e in task.test])
    plain = tiny_clip()
    images = classes_module.image_features(plain, pixels)
    texts = classes_module.class_features(plain, reader(), task.texts)
    logits = classes_module.similarity(images, texts, plain.logit_scale.detach())
    found = again.fused(images, logits, task.texts).argmax(1)
    right = [task.labels[c] == e.references[0] for c, e in zip(found, task.test, strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(scores["scores"][1][0])
    with pytest.raises(InputError, match="beside the model"):
        load_memory(tiny_clip(), tmp_path, any_base=True)


def test_a_language_model_is_refused():
    method = METHODS["rail"](RailConfig(method="rail"), seed=0)
    with pytest.raises(InputError, match="CLIP"):
        method.build(tiny_model())


def test_a_language_model_is_refused_before_a_run():
    config, benchmark = resolve(build({"method": "rail"}))
    with pytest.raises(InputError, match="--method rail answers pictures by classes, and --model"):
        check_fit(config, benchmark, Causal())
