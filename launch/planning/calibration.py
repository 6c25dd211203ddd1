"""Measure seconds and memory of a few real micro-batches on this machine, in separate processes.

If all ranks of the run are on one machine, as many processes run here, else one represents them.
They run the largest micro-batches of each task, with as many frozen atoms as the task will have.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import linear_regression
from typing import Any

from launch import settings
from moram_dist.atoms import Placer
from moram_dist.comm import env
from moram_dist.comm.collectives import make_atom_group
from moram_dist.comm.joining import join
from moram_dist.config import RunConfig
from moram_dist.data.stream import MicroBatch
from moram_dist.families.causal import one_row_each
from moram_dist.families.pictures import StepPictures
from moram_dist.methods.moram import Moram
from moram_dist.models import language_model
from moram_dist.train.engine import make_engine, start_fresh
from moram_dist.train.forward import Forward
from moram_dist.train.trainer import peak_memory_bytes

TIMEOUT_S = 300.0
"""How long ranks wait for each other."""


@dataclass(frozen=True)
class Calibration:
    """Measured memory and times."""

    peak: int
    """Bytes: of the process on a CPU, of tensors on CUDA."""

    timings: tuple[tuple[int, float], ...]
    """Tokens and seconds of each micro-batch: forward, backward and optimizer step."""

    def seconds(self, num_tokens: int) -> float:
        """Of a micro-batch, by a straight line fitted to the measured ones."""
        tokens, seconds = zip(*self.timings, strict=True)
        slope, intercept = linear_regression(tokens, seconds)
        return max(0.0, intercept + slope * num_tokens)


def calibrate(
    config: RunConfig,
    ds_path: Path,
    tasks: Sequence[Sequence[MicroBatch]],
    *,
    ranks: int,
    placement: str,
) -> Calibration:
    """Run the micro-batches of each task in turn, the same on each rank.

    Raises the exception that made a rank fail.
    """
    context, port = multiprocessing.get_context("spawn"), env.free_port()
    with ProcessPoolExecutor(ranks, mp_context=context) as apart:
        started = [
            apart.submit(_rank, rank, ranks, port, config, ds_path, tasks, placement)
            for rank in range(ranks)
        ]
        first, *_ = [each.result() for each in started]
    return first


def _rank(
    rank: int,
    ranks: int,
    port: int,
    config: RunConfig,
    ds_path: Path,
    tasks: Sequence[Sequence[MicroBatch]],
    placement: str,
) -> Calibration:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}"}
    os.environ |= {"LOCAL_WORLD_SIZE": f"{ranks}", "MASTER_PORT": f"{port}"}
    settings.quiet()
    config, benchmark = settings.resolve(config)
    one_each = replace(config, train=replace(config.train, batch_size=ranks))
    ds_config = settings.deepspeed_config(one_each, ds_path, ranks)
    join(TIMEOUT_S)
    base = language_model.load(config.model, ds_config)
    placer = Placer(make_atom_group("world"), placement)
    method = Moram(config.method, config.train.seed, placer, num_tasks=len(benchmark.tasks))
    method.build(base.model)
    engine: Any = make_engine(base.model, ds_config, weight_decay=config.train.weight_decay)
    forward = Forward(engine, base.model)
    found = []
    for i, batches in enumerate(tasks):
        start_fresh(engine, method.begin_task(i))
        engine.train()
        # The longest come last, since an allocator's memory depends on earlier requests.
        for batch in (_front(batches[0], 16), _front(batches[0], 2), *batches):
            started = time.perf_counter()
            method.token_keys.set([0] * len(batch.rows), batch.lengths, env.device())
            rows, length = batch.shared
            if rows:
                method.token_keys.add([0] * rows, length, env.device())
            seen = forward(batch)
            loss = base.family.loss(seen.logits_BPV, seen.targets_BP, batch, len(batch.rows))
            engine.backward(loss, scale_wrt_gas=False)
            engine.step()
            found.append((len(batch.rows) * batch.lengths[0], time.perf_counter() - started))
        method.end_task(i, lambda limit: (0, iter(())))
    peak = peak_memory_bytes()
    env.leave()
    # The first micro-batch of a process is slow.
    return Calibration(peak, tuple(found[1:]))


def _front(batch: MicroBatch, part: int) -> MicroBatch:
    """A smaller micro-batch: the last 1/``part`` of each row's tokens, or of the pictures."""
    if isinstance(batch, StepPictures):
        return batch.last(max(1, len(batch.rows) // part))
    ids_BT = batch.inputs["input_ids"]
    length = max(2, ids_BT.shape[1] // part)
    return one_row_each(ids_BT[:, -length:], batch.labels[:, -length:], batch.rows)
