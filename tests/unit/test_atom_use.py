"""How much atoms answer, by the formula over the inputs of one linear."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from moram_dist.families import family_of_model
from moram_dist.models import language_model
from moram_dist.models.language_model import DEMO_BASE
from moram_dist.use import atom_use as module
from moram_dist.use.atom_use import atom_use
from moram_dist.use.source import read_source
from tests.helpers.drawn_runs import demo_benchmark, draw_run

LINEAR = "model.layers.0.mlp.down_proj"
"""The only linear that is adapted, so its inputs are those in the bare base."""

TOP_K, TEMPERATURE, THRESHOLD = 3, 0.2, 0.3


def spread(task, most=module.EXAMPLES):
    return task.train[:: 1 + (len(task.train) - 1) // most]


def expected(run, prefix):
    """Lengths of what atoms add to the inputs that the bare base gives to the linear."""
    source = read_source(run)
    model = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32).eval()
    tokenizer = language_model.load_tokenizer(source.model)
    family = family_of_model(model)
    files = [source.files.read(task) for task in source.manifest.tasks]
    keys = torch.cat([tensors[f"{LINEAR}.keys"] for tensors in files])
    values = torch.cat([tensors[f"{LINEAR}.values"] for tensors in files])
    total = torch.zeros(len(keys), dtype=torch.float64)
    seen = []
    model.get_submodule(LINEAR).register_forward_pre_hook(lambda _, x: seen.append(x[0][0]))
    for i, task in enumerate(demo_benchmark().tasks):
        for example in spread(task):
            with torch.no_grad():
                family.read(model, tokenizer, example, task)
            for x in seen.pop():
                score = keys[: 4 * (i + 1) if prefix else None] @ x
                relevance = score / score.norm()
                best, index = relevance.topk(min(TOP_K, len(relevance)))
                weight = torch.softmax(best / TEMPERATURE, 0)
                for k, one in enumerate(index.tolist()):
                    if best[k] >= THRESHOLD:
                        total[one] += (weight[k] * score[one] * values[one]).norm()
    return total


@pytest.mark.parametrize("recall", ["all", "prefix"])
def test_lengths_of_what_atoms_add(tmp_path, recall):
    run = draw_run(
        tmp_path / "run",
        target_modules=r"model\.layers\.0\.mlp\.down_proj",
        top_k=TOP_K,
        temperature=TEMPERATURE,
        threshold=THRESHOLD,
        recall=recall,
    )
    (found,) = atom_use(read_source(run), demo_benchmark()).values()
    sums = expected(run, prefix=recall == "prefix")
    assert found.dtype == torch.float64 and len(found) == 8
    torch.testing.assert_close(found, sums, atol=1e-3, rtol=1e-4)
    assert len({round(number, 1) for number in sums.tolist()}) > 4
