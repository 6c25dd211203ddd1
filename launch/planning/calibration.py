"""A few real passes on the device at hand, in a process of their own: seconds, and its memory.

One rank stands for each of the run's. It makes the largest passes of each task, with as many frozen
atoms as there will be, so its peak is that of the run but for what more ranks share out.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launch import session
from moram_dist.comm import env
from moram_dist.config import RunConfig
from moram_dist.data.stream import MicroBatch
from moram_dist.methods.moram import Moram
from moram_dist.models import language_model
from moram_dist.train import ds_config as ds
from moram_dist.train.engine import make_engine, start_fresh
from moram_dist.train.forward import Forward, answer_loss
from moram_dist.train.trainer import peak_memory_bytes


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    peak: int
    """Bytes: of the process on a CPU, of tensors on CUDA."""

    passes: tuple[tuple[int, float], ...]
    """Tokens and seconds of passes, forward, backward and step."""

    def seconds(self, num_tokens: int) -> float:
        """Of a pass, on the straight line through those that were measured."""
        return self._each + self._per_token * num_tokens

    @property
    def _per_token(self) -> float:
        (short, quick), (long, slow) = min(self.passes), max(self.passes)
        return max(slow - quick, 0.0) / (long - short) if long > short else slow / long

    @property
    def _each(self) -> float:
        short, quick = min(self.passes)
        return max(quick - self._per_token * short, 0.0)


def calibrate(
    config: RunConfig, ds_path: Path, tasks: Sequence[Sequence[MicroBatch]]
) -> Calibration:
    """Make the passes of each task in turn. Raises what made the process fail."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as apart:
        return apart.submit(_measure, config, ds_path, tasks).result()


def _measure(
    config: RunConfig, ds_path: Path, tasks: Sequence[Sequence[MicroBatch]]
) -> Calibration:
    session.quiet()
    config, benchmark = session.settle(config)
    settings = ds.resolve(
        ds.read(ds_path),
        path=ds_path,
        batch_size=1,
        world_size=1,
        clip=config.train.clip,
        bf16=language_model.resolve_dtype(config.model) == torch.bfloat16,
    )
    env.join()
    base = language_model.load(config.model, settings)
    method = Moram(config.method, config.train.seed, num_tasks=len(benchmark.tasks))
    method.build(base.model)
    engine: Any = make_engine(base.model, settings, weight_decay=config.train.weight_decay)
    forward = Forward(engine, base.model)
    found = []
    for i, batches in enumerate(tasks):
        start_fresh(engine, method.begin_task(i))
        engine.train()
        first = batches[0]
        for batch in (*batches, *([_front(first), first] if i + 1 == len(tasks) else ())):
            started = time.perf_counter()
            method.token_keys.set([0] * len(batch.rows), batch.lengths, env.device())
            engine.backward(answer_loss(forward(batch)), scale_wrt_gas=False)
            engine.step()
            found.append((batch.input_ids.numel(), time.perf_counter() - started))
        method.end_task(i, lambda limit: (0, iter(())))
    peak = peak_memory_bytes()
    env.leave()
    return Calibration(peak, tuple(found[-2:]))


def _front(batch: MicroBatch) -> MicroBatch:
    """The last tokens of a batch's first row: a short pass."""
    return MicroBatch(batch.input_ids[:1, -16:], batch.labels[:1, -16:], batch.rows[:1])
