"""Make a LoRA of a task of MoRAM, and measure what that loses on the task's data."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from launch.settings import resolve
from moram_dist import config_io
from moram_dist.atoms.routing import Routing
from moram_dist.methods.moram import MoramConfig
from moram_dist.methods.restore import config_of
from moram_dist.metrics import score
from moram_dist.reading import read_mapping
from moram_dist.registry import InputError
from moram_dist.tasks.task import Example, Task, digest
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
    task = _data(source, upto)
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
    whole = score_of(answerer, task, test)
    with replaced(answerer.model, lora):
        alone = score_of(answerer, task, test)
    return lora, [
        f"LoRA of rank {lora.rank} for {task.name}, beside the memory after that task, on "
        f"{len(test)} of its test examples:",
        f"KL to the memory {as_lora:.4f} nats per answer token (of the bare base: {of_base:.4f})",
        f"{task.metric} {alone:.2f} (of the memory: {whole:.2f})",
    ]


def _data(source: MemorySource, upto: int) -> Task:
    """The task with its examples. Raises InputError if they are not those of the run."""
    if source.inputs is None:
        raise InputError(
            f"{source.path}: a LoRA of a task of moram is fitted to the task's data: give the run "
            "directory, which names it"
        )
    path = source.path / "run.yaml"
    _, benchmark = resolve(config_io.from_saved(read_mapping(path), path))
    name = source.tasks[upto - 1]
    task = next((task for task in benchmark.tasks if task.name == name), None)
    then = next(task for task in source.inputs.tasks if task.name == name)
    for split, known in (("train", then.train), ("test", then.test)):
        examples = getattr(task, split, ())
        if known is not None and digest(examples) != known.digest:
            raise InputError(f"{source.path}: the {split} split of task {name} has changed")
    assert task is not None
    return task


def score_of(
    answerer: Answerer, task: Task, examples: Sequence[Example], numbers: Sequence[int | None] = ()
) -> float:
    """The mean score of the answers; ``numbers`` as for ``Answerer.answers``, default: all."""
    prompts = [example.prompt for example in examples]
    texts = dict(answerer.answers(prompts, numbers or [None] * len(prompts)))
    total = sum(
        score(
            task.metric,
            prompt=example.prompt,
            prediction=texts[i],
            references=example.references,
            labels=task.labels,
        )
        for i, example in enumerate(examples)
    )
    return total / len(examples)


def spread(examples: Sequence[Example], most: int) -> Sequence[Example]:
    """At most ``most`` examples, evenly spaced."""
    return examples[:: 1 + (len(examples) - 1) // most]
