"""The examples of each task of a run: encoded, counted, and dealt into steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from moram_dist.comm import env
from moram_dist.comm.zero3 import release_leftovers
from moram_dist.config import TrainConfig
from moram_dist.data.ahead import ahead
from moram_dist.data.encode import EncodedExample
from moram_dist.data.stream import Step, is_under_a_step, num_steps, order, steps
from moram_dist.data.tokens import WorkProgress, clear
from moram_dist.families import Family
from moram_dist.methods import Method
from moram_dist.tasks import Benchmark
from moram_dist.train.context import RunContext
from moram_dist.train.forward import Forward, answer_loss, without_dropout

STEPS_AHEAD = 2
"""Steps whose files are read while the model computes another."""


def epochs_of(settings: TrainConfig, benchmark: Benchmark, method: Method, i: int) -> float:
    """Passes over task i's examples."""
    batch_size = settings.batch_size or benchmark.batch_size
    return settings.epochs or method.epochs(benchmark, i, batch_size)


def most_tokens(settings: TrainConfig, family: Family) -> int:
    """Most tokens of a micro-batch."""
    return settings.micro_batch_tokens if family.splits_steps else sys.maxsize


class TaskData:
    """Training data of a run's tasks, by index; keeps the encoded examples of one task."""

    def __init__(self, context: RunContext) -> None:
        self._run = context
        self._settings = context.config.train
        self._batch_size = self._settings.batch_size or context.benchmark.batch_size
        self._encoded: tuple[int, Sequence[EncodedExample]] = (-1, ())
        """A task and its examples."""
        self._first_steps: list[int] = [0]
        """Global index of the first tasks' first steps, as far as computed."""

    def examples(self, i: int) -> Sequence[EncodedExample]:
        """Task i's encoded examples, kept until ``clear``. All ranks call it together."""
        if self._encoded[0] != i:
            run = self._run
            pairs = run.method.training_data(run.benchmark, i)
            what = f"tokenising task {self._name(i)}"
            said = WorkProgress(what, len(pairs), run.progress.say, run.watchdog.at)
            family, tokenizer = run.base.family, run.base.tokenizer
            self._encoded = (i, family.encode_task(tokenizer, pairs, self._tokens, said))
        return self._encoded[1]

    def clear(self) -> None:
        """Forget the encoded examples, in memory and on disk, once their task is published."""
        self._encoded = (-1, ())
        if env.is_main():
            clear(self._tokens)

    def num_steps(self, i: int) -> int:
        """Optimizer steps of task i; notes if they round to none. All ranks call it together."""
        count = len(self.examples(i))
        epochs = self._epochs(i)
        if is_under_a_step(count, self._batch_size, epochs):
            self._run.progress.say(
                f"note: task {self._name(i)} takes one step: {epochs:g} epochs of its "
                f"{count} examples round to none"
            )
        return num_steps(count, self._batch_size, epochs)

    def first_step(self, i: int) -> int:
        """Global index of task i's first step."""
        run = self._run
        for j in range(len(self._first_steps) - 1, i):
            count = len(run.method.training_data(run.benchmark, j))
            steps_of = num_steps(count, self._batch_size, self._epochs(j))
            self._first_steps.append(self._first_steps[j] + steps_of)
        return self._first_steps[i]

    def steps(self, i: int, first: int = 0) -> Iterator[Step]:
        """Task i's steps from index ``first`` on, with this rank's micro-batches."""
        family = self._run.base.family
        found = steps(
            self.examples(i),
            family,
            batch_size=self._batch_size,
            micro_batch_size=self._settings.micro_batch_size,
            micro_batch_tokens=most_tokens(self._settings, family),
            epochs=self._epochs(i),
            seed=self._settings.seed,
            task=i,
            rank=env.rank(),
            world_size=env.world_size(),
            pad_id=self._run.base.tokenizer.pad_token_id,
            first=first,
        )
        for step in ahead(found, STEPS_AHEAD) if family.reads_pictures else found:
            self._run.watchdog.at(f"step {step.index} of task {self._name(i)}")
            yield step

    def look(self, i: int, limit: int) -> tuple[int, Iterator[Tensor]]:
        """``methods.method.ExampleLosses`` of the first examples in the first epoch's order."""
        examples = self.examples(i)
        first = order(len(examples), seed=self._settings.seed, task=i, epoch=0)[:limit]
        chosen = [examples[k] for k in first]
        return len(chosen), self._losses(i, chosen)

    def _losses(self, i: int, chosen: Sequence[EncodedExample]) -> Iterator[Tensor]:
        engine, base = self._run.engine, self._run.base
        # The engine's forward pass expects its own backward pass, so call the module.
        forward = Forward(engine.module, base.model)
        family, pad_id = base.family, base.tokenizer.pad_token_id
        with without_dropout(base.model):  # some models have dropout of their own
            for start in range(0, len(chosen), env.world_size()):
                self._run.watchdog.at(f"a look at the examples of task {self._name(i)}")
                mine = chosen[start + env.rank() : start + env.rank() + 1]
                mine = mine or [family.blank(chosen[0], pad_id)]
                yield answer_loss(forward(family.collate(mine, pad_id)))
                release_leftovers(engine)

    def _name(self, i: int) -> str:
        return self._run.benchmark.tasks[i].name

    def _epochs(self, i: int) -> float:
        return epochs_of(self._settings, self._run.benchmark, self._run.method, i)

    @property
    def _tokens(self) -> Path:
        return self._run.run_dir.path / "tokens"
