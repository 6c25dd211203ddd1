"""Measure what LoRAs lose by sharing a memory, on the test examples of their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from launch.export.measure import TEST_EXAMPLES, spread
from moram_dist.adapters.adapter import bare
from moram_dist.methods.restore import answered_by, recogniser_of
from moram_dist.recognise import TaskStatistics
from moram_dist.tasks.task import Example, Task
from moram_dist.train.recognition import MOST_PROMPTS
from moram_dist.use.answerer import Answerer, Asked
from moram_dist.use.compare import AnswerMeans, SeenAnswer, replaced, see_answers
from moram_dist.use.from_peft import PeftLora
from moram_dist.use.imported import Figures, Measured
from moram_dist.use.source import read_source


def measure(folder: Path, loras: Sequence[PeftLora], tasks: Sequence[Task]) -> tuple[Measured, ...]:
    """Add the statistics of the tasks' training prompts to a new memory, and measure it.

    Args:
        folder: of the import.
        loras: in the order of the memory.
        tasks: of the same names, with their examples.

    Raises:
        InputError: as ``Answerer``.
    """
    source = read_source(folder)
    answerer = Answerer(source, Asked(recall="all"))
    manifest = source.manifest
    for i, task in enumerate(tasks):
        prompts = task.train[:: 1 + (len(task.train) - 1) // MOST_PROMPTS]
        features = answerer.family.features(answerer.model, answerer.tokenizer, prompts, task)
        statistics = TaskStatistics.of(features).tensors()
        manifest = source.files.add_recogniser(manifest, i, statistics)
    answerer.recogniser = recogniser_of(
        source.files, manifest, len(tasks), "prefix", source.recogniser
    )
    return tuple(_Beside(answerer, *pair).measured() for pair in zip(loras, tasks, strict=True))


class _Beside:
    """One LoRA and the memory that holds it."""

    def __init__(self, answerer: Answerer, lora: PeftLora, task: Task) -> None:
        self.answerer = answerer
        self.answerer.task = replace(task, train=(), test=())
        self.lora = lora
        self.task = task
        self.test = spread(task.test, TEST_EXAMPLES)

    def measured(self) -> Measured:
        model, all_tasks = self.answerer.model, [None] * len(self.test)
        recognised = self.answerer.recognised([example.prompt for example in self.test])
        numbers = [number for number, _ in recognised]
        means = self._means(numbers)
        with replaced(model, self.lora.lora):
            alone = self._figures(all_tasks, means["alone"])
        with bare(model):
            base = self._figures(all_tasks, means["base"])
        return Measured(
            task=self.task.name,
            examples=len(self.test),
            metric=self.task.metric,
            base=base,
            alone=alone,
            together=self._figures(all_tasks, means["together"]),
            recognised=self._figures(numbers, means["recognised"]),
        )

    def _figures(self, numbers: Sequence[int | None], means: AnswerMeans) -> Figures:
        return Figures(
            score=self.answerer.mean_score(self.test, numbers),
            loss=means.loss,
            divergence=means.divergence,
        )

    def _means(self, recognised: Sequence[int | None]) -> dict[str, AnswerMeans]:
        model = self.answerer.model
        means = {name: AnswerMeans() for name in ("alone", "base", "together", "recognised")}
        for number, example in zip(recognised, self.test, strict=True):
            with replaced(model, self.lora.lora):
                alone = self._see(None, example)
            with bare(model):
                base = self._see(None, example)
            seen = (alone, base, self._see(None, example), self._see(number, example))
            for one, its in zip(means.values(), seen, strict=True):
                one.add(alone, its)
        return means

    def _see(self, number: int | None, example: Example) -> SeenAnswer:
        own = self.answerer
        with nullcontext() if number is None else answered_by(own.model, (number,)):
            (seen,) = see_answers(own.model, own.tokenizer, own.family, self.task, [example])
        return seen
