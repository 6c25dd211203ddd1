"""The training loop: train, freeze, publish and evaluate one task after the other."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from moram_dist.atoms.manifest import Manifest
from moram_dist.comm import env
from moram_dist.data.stream import Step
from moram_dist.methods.method import ForwardOutput
from moram_dist.tracking import read_ids
from moram_dist.train.checkpoint import Checkpoint, SaveTimer
from moram_dist.train.context import RunContext
from moram_dist.train.engine import set_learning_rate, start_fresh
from moram_dist.train.forward import Forward
from moram_dist.train.recognition import all_features, statistics_of
from moram_dist.train.schedule import learning_rate
from moram_dist.train.state import read_state, write_state
from moram_dist.train.stop import Stopped, StopSignals
from moram_dist.train.task_data import TaskData

OF_METHOD = "method."
"""Prefix of the names of the method's own tensors in a checkpoint."""

SHARED = 1
"""Distinguishes the dropout seeds of rows that all ranks read from those of a step's examples."""


class NonFiniteLossError(RuntimeError):
    """The loss or a trained tensor is NaN or infinite; the message says where."""


class Trainer:
    """Trains a method on a benchmark. One instance per rank; the main rank writes and prints."""

    def __init__(
        self,
        context: RunContext,
        *,
        manifest: Manifest,
        evaluate: Callable[[int], None],
        stop: StopSignals,
        saved: Checkpoint | None = None,
    ) -> None:
        """``evaluate(i)`` fills row i of the score matrix; row -1 is the untouched base.

        ``saved`` is the checkpoint from which the first unpublished task resumes, if any.
        """
        self.config = context.config
        self.benchmark = context.benchmark
        self.method = context.method
        self.engine = context.engine
        self.base = context.base
        self.run_dir = context.run_dir
        self.tracker = context.tracker
        self.progress = context.progress
        self.watchdog = context.watchdog
        self.manifest = manifest
        self.evaluate = evaluate
        self.stop = stop
        self.saved = saved
        self.data = TaskData(context)
        self.forward = Forward(self.engine, self.base.model)
        self.peak = self.config.train.learning_rate or self.benchmark.learning_rate

    def run(self) -> None:
        """Train on the tasks in order, from the first that is not published yet.

        Also evaluates missing cells of earlier rows, for example after a change of ``eval_rows``.
        """
        finished = len(self.manifest.tasks)
        self.evaluate(-1)
        for i, published in enumerate(self.manifest.tasks):
            memory = self.run_dir.memory
            self.watchdog.at(f"the memory of task {published.name}")
            memory.check(published, self.method.stored_shapes(i, published, self.method.layers))
            self.method.load_task(i, memory.read(published))
            if published.recogniser is None and "prefix" in self.config.eval.recalls:
                self._add_recogniser(i)  # older versions computed no statistics
            self.evaluate(i)
        for i in range(finished, len(self.benchmark.tasks)):
            with self.stop.held():
                self._learn(i)
                self._publish(i)
            self.evaluate(i)

    def _learn(self, i: int) -> None:
        task = self.benchmark.tasks[i]
        self.watchdog.at(f"the start of task {task.name}")
        total = self.data.num_steps(i)
        done = self._begin(i)
        self.engine.train()
        self.tracker.begin_task(i, task.name)
        self.progress.begin(f"task {i + 1}/{len(self.benchmark.tasks)} {task.name}", total, done)
        timer = SaveTimer(self.config.record, self.stop.control)
        losses: list[Tensor] = []
        seen: list[Step] = []
        try:
            for step in self.data.steps(i, done):
                losses.append(self._step(i, step, total))
                seen.append(step)
                done = step.index + 1
                save = timer.due(done, ends=done == total)
                log = save or done % self.config.record.log_every == 0 or done == total
                self.progress.step(step.num_tokens, logged=log)
                if log:
                    self._log(i, losses, seen)
                    losses, seen = [], []
                if save:
                    self._save(i, done)
                    timer.saved()
            self.stop.check(now=True)
        except Stopped as stopped:
            if stopped.together and done:
                if seen:
                    self._log(i, losses, seen)
                self._save(i, done)
                stopped.where = f" after step {done}/{total} of task {task.name}"
            raise

    def _begin(self, i: int) -> int:
        """Set engine and method to where task i starts or resumes. Returns its finished steps."""
        saved, self.saved = self.saved, None
        if saved is None:
            self.method.prepare_task(i, lambda limit: self.data.look(i, limit))
        fresh = self.method.begin_task(i)
        if saved is None:
            start_fresh(self.engine, fresh)
            return 0
        name = self.benchmark.tasks[i].name
        self.progress.say(f"task {name} resumes after step {saved.step}")
        tensors = self.run_dir.progress.read(saved)
        of_method = {n: tensors.pop(n) for n in list(tensors) if n.startswith(OF_METHOD)}
        write_state(self.engine, tensors, saved.optimizer_steps)
        self.method.load_state_dict({n[len(OF_METHOD) :]: t for n, t in of_method.items()})
        return saved.step

    def _save(self, i: int, done: int) -> None:
        """Save the state after ``done`` steps of task i; on a full disk, training continues."""
        tensors, optimizer_steps = read_state(self.engine)
        tensors |= {f"{OF_METHOD}{n}": t for n, t in self.method.state_dict().items()}
        if not env.is_main():
            return
        checkpoint = Checkpoint(
            task=i,
            step=done,
            optimizer_steps=optimizer_steps,
            seed=self.config.train.seed,
            learned=[task.sha256 for task in self.manifest.tasks],
            tracking=read_ids(self.run_dir.path),
            world_size=env.world_size(),
        )
        try:
            self.run_dir.progress.write(checkpoint, tensors)
        except OSError as error:
            self.progress.say(f"step {done} could not be saved: {error}; training continues")

    def _step(self, i: int, step: Step, total: int) -> Tensor:
        """One optimizer step. Returns this rank's part of its loss, on the device."""
        train = self.config.train
        share = torch.zeros((), device=env.device())
        for m, batch in enumerate(step.micro_batches):
            self.stop.check()
            self._seed_dropout(i, step, m)
            last = m + 1 == len(step.micro_batches)
            self.engine.set_gradient_accumulation_boundary(last)
            weight = env.world_size() * len(step.micro_batches) / step.num_answer_tokens
            seen = self.forward(batch, weight)
            loss = self.base.family.loss(
                seen.logits_BPV, seen.targets_BP, batch, step.num_answer_tokens
            )
            share += loss.detach()
            # DeepSpeed averages gradients over ranks; we need their sum.
            penalty = self._penalty(seen, len(step.micro_batches), last)
            self.engine.backward(loss * env.world_size() + penalty, scale_wrt_gas=False)
            if last:
                rate = learning_rate(
                    step.index,
                    total,
                    peak=self.peak,
                    schedule=train.schedule,
                    warmup_ratio=train.warmup_ratio,
                )
                set_learning_rate(self.engine, rate)
                self.method.before_step(self.engine)
            self.engine.step()
        return share

    def _penalty(self, seen: ForwardOutput, count: int, last: bool) -> Tensor | float:
        """A micro-batch's part of its step's penalty; ``count``: of micro-batches.

        Sharded weights are prefetched only if all passes ask for them in the same order.
        """
        sharded = self.engine.zero_optimization_partition_weights()
        if self.method.penalty_is_of_parameters and not sharded:
            return self.method.penalty(seen) if last else 0.0
        return self.method.penalty(seen) / count

    def _seed_dropout(self, i: int, step: Step, m: int) -> None:
        """Seed the micro-batch's dropout by its examples, independent of the rank."""
        place = (self.config.train.seed, i, step.index)
        batch = step.micro_batches[m]
        seeds = [_seed(*place, row) & 0xFFFFFFFF for row in batch.rows]
        self.method.token_keys.set(seeds, batch.lengths, env.device())
        rows, length = batch.shared
        if rows:
            seeds = [_seed(*place, SHARED, row) & 0xFFFFFFFF for row in range(rows)]
            self.method.token_keys.add(seeds, length, env.device())
        # Dropout of the base itself, which few models have, does depend on the ranks.
        torch.manual_seed(_seed(*place, m, env.rank()))

    def _log(self, i: int, losses: list[Tensor], seen: list[Step]) -> None:
        """Sum the losses since the last log over ranks, and stop all ranks if one is not finite.

        Checking all steps only here keeps each step from waiting for the device. The last step of
        a task is checked before anything of the task is published.
        """
        summed = env.all_sum(torch.stack(losses).tolist())
        first = self.data.first_step(i)
        for step, loss in zip(seen, summed, strict=True):
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"loss is {loss} in task {self.benchmark.tasks[i].name} at step {step.index} "
                    f"on examples {', '.join(step.ids)}; nothing of this task was published. "
                    "A lower --learning_rate usually helps"
                )
            self.tracker.log({"train/loss": loss}, first + step.index)
        rate = self.progress.log(summed[-1])
        measured = {
            "train/tokens_per_second": rate,
            "train/peak_memory_mb": peak_memory_bytes() / 2**20,
        }
        self.tracker.log(measured | self.method.metrics(), first + seen[-1].index)

    def _publish(self, i: int) -> None:
        """Freeze task i's tensors and write them to disk atomically."""
        task = self.benchmark.tasks[i]
        self.watchdog.at(f"the end of task {task.name}")
        if self.method.reads_features:
            self.watchdog.at(f"the features of task {task.name}'s prompts")
            self.method.read_features(i, task, all_features(self.base, task, task.train))
        tensors = self.method.end_task(i, lambda limit: self.data.look(i, limit))
        # The logged losses do not include the method's penalty, so check its effect here.
        broken = next((n for n, t in tensors.items() if not t.isfinite().all()), None)
        if broken:
            raise NonFiniteLossError(
                f"{broken} is not finite after task {task.name}; nothing of this task was "
                "published. A lower --learning_rate, or a smaller weight of the method's penalty, "
                "usually helps"
            )
        recogniser = self._statistics(i) if self.method.keeps_prefixes else None
        self.watchdog.at(f"the memory file of task {task.name}")
        if env.is_main():
            self.manifest = self.run_dir.memory.publish(
                self.manifest, task.name, tensors, recogniser
            )
            self.run_dir.progress.clear()
        self.data.clear()
        self.manifest = env.from_main(self.manifest)
        self.tracker.end_task()

    def _statistics(self, i: int) -> dict[str, Tensor]:
        """Statistics that distinguish task i's prompts. All ranks call it together."""
        task = self.benchmark.tasks[i]
        self.watchdog.at(f"the statistics of task {task.name}'s prompts")
        return statistics_of(self.base, task).tensors()

    def _add_recogniser(self, i: int) -> None:
        recogniser = self._statistics(i)
        if env.is_main():
            self.manifest = self.run_dir.memory.add_recogniser(self.manifest, i, recogniser)
        self.manifest = env.from_main(self.manifest)


def _seed(*parts: int) -> int:
    """One well-mixed seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def peak_memory_bytes() -> int:
    """Peak memory of this rank: on the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
