"""Every method trains and answers on CLIP, or refuses it in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moram_dist.config import EvalConfig
from moram_dist.families import family_of_model
from moram_dist.methods import METHODS
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Decoding
from tests.helpers.configs import config_of
from tests.helpers.in_memory import run_in_memory
from tests.helpers.tiny_clip import draw_task, reader, tiny_clip

pytestmark = pytest.mark.slow  # every method learns two tasks

REFUSED = {"gain_lora": "no texts, which gates read"}
SETTINGS = {
    "replay": {"replay_budget": 6},
    "rail": {"hidden": 64},
    "moram": {"temperature": 0.3, "quiet_keys": 0.9},
}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    tasks = tuple(draw_task(folder, name, 4, steps=6) for name in ("colours", "others"))
    return Benchmark(name="drawn", order="o", protocol="p", tasks=tasks, batch_size=8)


def run(method, benchmark, folder):
    own = SETTINGS.get(method, {})
    fields = METHODS[method].Config.__dataclass_fields__
    if "target_modules" in fields:
        own = {"target_modules": "all-linear", **own}
    recall = "all,prefix" if METHODS[method].keeps_prefixes else "all"
    return run_in_memory(
        folder,
        tiny_clip(),
        reader(),
        benchmark,
        config_of(method, **own),
        learning_rate=1e-2,
        asking=EvalConfig(eval_rows=METHODS[method].eval_rows or "all", recall=recall),
    )


@pytest.mark.parametrize("method", [*METHODS])
def test_on_pictures(method, benchmark, tmp_path):
    if method in REFUSED:
        with pytest.raises(InputError, match=REFUSED[method]) as caught:
            run(method, benchmark, tmp_path)
        assert "\n" not in str(caught.value)
        return
    torch.manual_seed(0)
    scores = run(method, benchmark, tmp_path)
    learned = [scores["scores"][i][i] for i in range(2)]
    if METHODS[method].trains:
        assert min(learned) > 50, scores  # the base: 42 and 67


def test_all_classes_are_never_easier_than_own(benchmark):
    """Where classes of all tasks compete, only pictures that are right among their own can be."""
    model, read, (first, second) = tiny_clip(), reader(), benchmark.tasks
    labels = (*(f"1/{label}" for label in first.labels), *(f"2/{one}" for one in second.labels))
    both = replace(first, labels=labels, texts=(*first.texts, *second.texts))
    family = family_of_model(model)
    own = family.generate(model, read, first.test, first, Decoding())
    among_all = family.generate(model, read, first.test, both, Decoding())
    assert any(found.startswith("2/") for found in among_all)
    for alone, found in zip(own, among_all, strict=True):
        assert found.startswith("2/") or found == f"1/{alone}"
