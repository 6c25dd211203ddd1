"""Baselines with parameters or losses of their own, as whole runs: files, restart, restoring.

The long form of the restart is ``tools/kill_test.py --method NAME``. The tests of every change run
the methods that keep most besides a LoRA; gradients and restoring of all are in
``tests/distributed/test_baselines.py``.
"""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from moram_dist import load_memory
from moram_dist.config import ModelConfig
from moram_dist.models.language_model import DEMO_BASE, load_tokenizer
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.answers import generate_batch
from tools.kill_test import Moment, disturbed, undisturbed

pytestmark = pytest.mark.integration

TASKS = ("topic", "mood", "place")
LORA = {"lora_A", "lora_B"}
STORED = {
    "inc_lora": LORA,
    "o_lora": LORA,
    "inf_lora": LORA | {"subspace"},
    "gpm_lora": LORA | {"directions"},
    "gain_lora": LORA | {"subspace"},
    "ewc": LORA | {"fisher_A", "fisher_B"},
    "lwf": LORA,
    "moe_lora": LORA | {"router"},
}
EVERY_CHANGE = ("moe_lora",)
METHODS = [
    name if name in EVERY_CHANGE else pytest.param(name, marks=pytest.mark.nightly)
    for name in STORED
]
IN_THE_THIRD_TASK = Moment(1, "after a step", 9)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_its_restart_and_its_memory(tmp_path, method):
    # A rate at which the answers of 12 steps differ from those of the base.
    flags = ("--method", method, "--limit_train", "16", "--learning_rate", "1e-2", "--epochs", "2")
    flags += ("--preset", "published")
    reference = undisturbed(tmp_path / "run", *flags)
    losses = [loss for *_, loss in reference.results["losses"]]
    assert len(losses) == 3 * 4 and all(math.isfinite(loss) for loss in losses)

    manifest = json.loads((tmp_path / "run" / "memory" / "memory.json").read_text())
    for i, task in enumerate(manifest["tasks"]):
        tensors = load_file(tmp_path / "run" / "memory" / task["file"])
        gate = {name for name in tensors if name.startswith("gate.")}
        assert bool(gate) == (method == "gain_lora")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in gate}
        kinds = Counter(name.rpartition(".")[2] for name in tensors)
        count = len(manifest["modules"])
        # Of four linears, query, key and value share an input, and so their directions.
        assert kinds == {k: count // 2 if k == "directions" else count for k in STORED[method]}
        routers = [tensor for name, tensor in tensors.items() if name.endswith("router")]
        assert {len(router) for router in routers} <= {i + 1}

    demo = BENCHMARKS["demo"](Source(order=",".join(TASKS), limit_eval=8))
    model = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype="float32")
    tokenizer = load_tokenizer(ModelConfig())
    base = [generate_batch(model, tokenizer, t.test, t, demo.decoding) for t in demo.tasks]
    load_memory(model, tmp_path / "run")
    for j, task in enumerate(demo.tasks):
        path = tmp_path / "run" / f"predictions/after_002/on_{j:03d}_{task.name}.jsonl"
        saved = [json.loads(line)["prediction"] for line in path.read_text().splitlines()]
        assert generate_batch(model, tokenizer, task.test, task, demo.decoding) == saved
        assert saved != base[j]

    outcome = disturbed(tmp_path / "killed", [IN_THE_THIRD_TASK], reference)
    assert (outcome.kills, outcome.differs) == (1, [])
