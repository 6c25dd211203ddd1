"""Compare label scoring with generation: time per example, and agreement with one label at a time.

    python tools/bench_labels.py       a table in Markdown, about four minutes on one core

AG News of ``../shared/data`` in SAPT's form (prompts of at most 512 tokens), on
``../shared/models/t0-llama-5m`` in fp32: unchanged, and with a MoRAM memory of 15 tasks. All modes
process each batch in turn, within one run, on one thread; milliseconds are CPU time of this
process, so other processes have little effect. The base has not learned to stop, so free generation
runs to its limit: 50 tokens in SAPT, 512 in the MoRAM scripts. Constrained generation ends with a
label, so it shows the cost of generation by a model that has learned to answer.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from moram_dist.config import ModelConfig
from moram_dist.data.encode import encode_training
from moram_dist.families import answer_batch
from moram_dist.methods import METHODS
from moram_dist.methods.moram import MoramConfig
from moram_dist.models import language_model
from moram_dist.tasks.task import Decoding, Example, Task

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODEL = SHARED / "models" / "t0-llama-5m"
DATA = SHARED / "data" / "long_sequence" / "agnews"
MODES = ("generate", "constrained", "labels")
NUM_EXAMPLES = 256
NUM_TASKS = 15
SETTINGS = (  # tasks in the memory, examples a batch, most new tokens, batches timed
    (0, 1, 50, 16),
    (0, 4, 50, 8),
    (0, 16, 50, 8),
    (0, 16, 512, 3),
    (NUM_TASKS, 4, 50, 8),
    (NUM_TASKS, 16, 50, 8),
)
CHECKED = 32
"""Examples whose labels are scored one by one as well."""


def main() -> None:
    """Print a table of times, and the largest disagreement."""
    torch.set_num_threads(1)
    print("| tasks in memory | batch | tokens | free, ms | constrained, ms | labels, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for num_tasks, size, max_tokens, num_batches in SETTINGS:
        model, tokenizer = load(num_tasks)
        took = timed(model, tokenizer, agnews(max_tokens), size, num_batches)
        shown = " | ".join(f"{1000 * took[mode]:.1f}" for mode in MODES)
        ratio = took["generate"] / took["labels"]
        print(f"| {num_tasks} | {size} | {max_tokens} | {shown} | {ratio:.1f} |", flush=True)
    print(f"\nLargest difference to a full pass for each label, {CHECKED} examples, nats:\n")
    print("| tasks in memory | fp32 | as a share of the value | fp64 |\n| --- | --- | --- | --- |")
    for num_tasks in (0, NUM_TASKS):
        model, tokenizer = load(num_tasks)
        absolute, relative = disagreement(model, tokenizer, agnews())
        exact, _ = disagreement(model.double(), tokenizer, agnews())
        print(f"| {num_tasks} | {absolute:.1e} | {relative:.1e} | {exact:.1e} |", flush=True)


def agnews(max_answer_tokens: int = 50) -> Task:
    """AG News with its test examples, sorted by length."""
    content = json.loads((DATA / "test.json").read_text(encoding="utf-8"))
    definition = content["Definition"][0]
    examples = [
        Example(f"test-{i}", f"{definition}\n{item['input']}\nOutput: ", (item["output"],))
        for i, item in enumerate(content["Instances"][:NUM_EXAMPLES])
    ]
    return Task(
        name="agnews",
        metric="exact_match_normalised",
        train=(),
        test=tuple(sorted(examples, key=lambda example: len(example.prompt))),
        labels=tuple(json.loads((DATA / "labels.json").read_text(encoding="utf-8"))),
        max_prompt_tokens=512,
        max_answer_tokens=max_answer_tokens,
    )


def load(num_tasks: int) -> tuple[nn.Module, Any]:
    """The base, with a memory of ``num_tasks`` tasks whose atoms are random."""
    base = language_model.load(
        ModelConfig(model=str(MODEL), dtype="fp32"), {"zero_optimization": {"stage": 0}}
    )
    if num_tasks:
        method = METHODS["moram"](MoramConfig(method="moram"), seed=0)
        method.build(base.model)
        for i in range(num_tasks):
            fresh = method.begin_task(i)
            with torch.no_grad():
                for name, value in fresh.items():
                    base.model.get_parameter(name).copy_(value + 0.01 * torch.randn_like(value))
            method.end_task(i, lambda _: (0, iter(())))
    return base.model.eval(), base.tokenizer


def timed(
    model: nn.Module, tokenizer: Any, task: Task, size: int, num_batches: int
) -> dict[str, float]:
    """Mode -> mean seconds per example, over batches spread from short prompts to long ones."""
    starts = [i * (len(task.test) - size) // (num_batches - 1) for i in range(num_batches)]
    took = dict.fromkeys(MODES, 0.0)
    short = dataclasses.replace(task, max_answer_tokens=2)
    for mode in MODES:  # warms up
        answer_batch([mode], model, tokenizer, task.test[:size], short, Decoding())
    for start in starts:
        batch = task.test[start : start + size]
        for mode in MODES:
            begun = time.process_time()
            answer_batch([mode], model, tokenizer, batch, task, Decoding())
            took[mode] += (time.process_time() - begun) / size / num_batches
    return took


@torch.no_grad()
def disagreement(model: nn.Module, tokenizer: Any, task: Task) -> tuple[float, float]:
    """Largest difference to full passes over one label of one example, absolute and relative."""
    worst = relative = 0.0
    examples = task.test[:: len(task.test) // CHECKED][:CHECKED]
    found = answer_batch(["labels"], model, tokenizer, examples, task, Decoding())["labels"]
    for example, answer in zip(examples, found, strict=True):
        assert answer.log_likelihoods is not None
        for label, value in answer.log_likelihoods.items():
            one = encode_training(tokenizer, Example("", example.prompt, (label,)), task)
            ids = torch.tensor([one.tokens])
            logits = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
            each = logits[:-1].gather(1, ids[0, 1:, None])
            whole = float(each[-one.num_answer :].sum())
            worst = max(worst, abs(whole - value))
            relative = max(relative, abs(whole - value) / abs(whole))
    return worst, relative


if __name__ == "__main__":
    main()
