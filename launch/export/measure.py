"""Make a LoRA of a task of MoRAM, and measure what that loses on the task's data."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from launch.settings import recorded_task
from moram_dist.atoms.routing import Routing
from moram_dist.methods.moram import MoramConfig
from moram_dist.methods.restore import config_of
from moram_dist.registry import InputError
from moram_dist.tasks.task import Example
from moram_dist.use.answerer import Answerer, Asked
from moram_dist.use.approximate import TaskAsLora
from moram_dist.use.compare import replaced
from moram_dist.use.lora import Lora
from moram_dist.use.source import MemorySource

TRAINING_EXAMPLES = 128
"""From which weights are fitted."""

TEST_EXAMPLES = 64
"""On which the loss is measured."""


def moram_as_lora(source: MemorySource, upto: int) -> tuple[Lora, list[str]]:
    """The first ``upto`` tasks as a LoRA for the newest of them, and lines on what it loses.

    Raises:
        InputError: the task's data is not there or is not that of the run, or ``Answerer`` refuses.
    """
    if source.inputs is None:
        raise InputError(
            f"{source.path}: a LoRA of a task of moram is fitted to the task's data: give the run "
            "directory, which names it"
        )
    task = recorded_task(source, source.tasks[upto - 1])
    asked = Asked(upto=str(upto), recall="all", task=task.name)
    answerer = Answerer(source, asked)
    config = config_of(source.manifest, source.path)
    assert isinstance(config, MoramConfig)
    tensors = [source.files.read(stored) for stored in source.manifest.tasks[:upto]]
    measured = TaskAsLora(
        answerer.model,
        answerer.tokenizer,
        answerer.family,
        Routing(top_k=config.top_k, temperature=config.temperature, threshold=config.threshold),
        {
            name: (
                torch.cat([each[f"{name}.keys"] for each in tensors]),
                torch.cat([each[f"{name}.values"] for each in tensors]),
            )
            for name in source.manifest.modules
        },
    )
    lora = measured.measure(task, spread(task.train, TRAINING_EXAMPLES))
    test = spread(task.test, TEST_EXAMPLES)
    as_lora, of_base = measured.divergences(task, test, lora)
    whole = answerer.mean_score(test)
    with replaced(answerer.model, lora):
        alone = answerer.mean_score(test)
    return lora, [
        f"LoRA of rank {lora.rank} for {task.name}, beside the memory after that task, on "
        f"{len(test)} of its test examples:",
        f"KL to the memory {as_lora:.4f} nats per answer token (of the bare base: {of_base:.4f})",
        f"{task.metric} {alone:.2f} (of the memory: {whole:.2f})",
    ]


def spread(examples: Sequence[Example], most: int) -> Sequence[Example]:
    """At most ``most`` examples, evenly spaced."""
    return examples[:: 1 + (len(examples) - 1) // most]
