"""Level ``matrix``: generate the answers for all cells of a score matrix.

It uses the embedded demo and its base with random atoms. Their answers are nonsense and have full
length, since the model has not learned to end them. Published scripts generate one example at a
time. Times are those of answering all cells once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bench.contest import OURS, PUBLISHED, Settings
from bench.models import Atoms, draw_atoms, put_learned, put_published
from bench.results import Measurement
from moram_dist.config import ANSWERS, ModelConfig
from moram_dist.families import answer_batch
from moram_dist.methods.moram import MoramConfig
from moram_dist.models import language_model
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.tasks.task import Benchmark, Task

METHOD = MoramConfig(method="moram", threshold=0.0, dropout=0.0)
GENERATE, _, LABELS, _ = ANSWERS
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class How:
    """An implementation that fills the matrix."""

    models: Sequence[nn.Module]
    """The model after each task."""

    batch: int = BATCH
    mode: str = GENERATE


def run(settings: Settings) -> Iterator[list[Measurement]]:
    """Measure one matrix."""
    num_tasks, num_examples = (2, 4) if settings.quick else (5, 16)
    benchmark = BENCHMARKS["demo"](Source(limit_train=1, limit_eval=num_examples))
    yield one_matrix(replace(benchmark, tasks=benchmark.tasks[:num_tasks]))


def one_matrix(benchmark: Benchmark) -> list[Measurement]:
    """Compare each implementation's answers with the formula in float64, and time equal ones."""
    base = language_model.load(ModelConfig(dtype="fp32"), {"zero_optimization": {"stage": 0}})
    num_tasks = len(benchmark.tasks)
    atoms = draw_atoms(base.model, METHOD, METHOD.atoms_per_task * num_tasks, 0)
    published = after_each(base.model, atoms, num_tasks, put_published_atoms)
    ours = after_each(base.model, atoms, num_tasks, put_our_atoms)
    ways = {
        f"{PUBLISHED}, generate, one at a time": How(models=published, batch=1),
        f"{PUBLISHED}, generate, {BATCH} together": How(models=published),
        f"{OURS}, generate, one at a time": How(models=ours, batch=1),
        f"{OURS}, generate, {BATCH} together": How(models=ours),
        f"{OURS}, label likelihood, {BATCH} together": How(models=ours, mode=LABELS),
    }
    exact = {
        mode: answers(
            How(models=[deepcopy(m).double() for m in published], mode=mode),
            benchmark,
            base.tokenizer,
        )[0]
        for mode in (GENERATE, LABELS)
    }
    cells = num_tasks * (num_tasks + 1) // 2
    case = {"tasks": num_tasks, "cells": cells, "examples": cells * len(benchmark.tasks[0].test)}
    rows = []
    for name, how in ways.items():
        answers(replace(how, models=how.models[:1]), benchmark, base.tokenizer)  # warms up
        found, seconds = answers(how, benchmark, base.tokenizer)
        expected = exact[how.mode]
        same = sum(one == other for one, other in zip(found, expected, strict=True))
        passed = same == len(expected)
        rows.append(
            Measurement(
                level="matrix",
                case=case,
                way=name,
                passed=passed,
                least=seconds if passed else None,
                median=seconds if passed else None,
                repeats=1,
                also={"same answers": f"{same} of {len(expected)}"},
            )
        )
    return rows


def after_each(
    base: nn.Module,
    atoms: Atoms,
    num_tasks: int,
    put: Callable[[nn.Module, Atoms], Any],
) -> list[nn.Module]:
    """The models after each task, each with the atoms of the tasks so far."""
    models = []
    for task in range(num_tasks):
        learned = (task + 1) * METHOD.atoms_per_task
        so_far = {
            name: ((keys[:learned], values[:learned]), new)
            for name, ((keys, values), new) in atoms.items()
        }
        model = deepcopy(base)
        put(model, so_far)
        models.append(model.eval())
    return models


def put_published_atoms(model: nn.Module, atoms: Atoms) -> None:
    """The published formulation, all atoms frozen."""
    put_published(model, atoms, METHOD)


def put_our_atoms(model: nn.Module, atoms: Atoms) -> None:
    """A learned memory without active atoms."""
    put_learned(model, atoms, METHOD)


@torch.no_grad()
def answers(how: How, benchmark: Benchmark, tokenizer: Any) -> tuple[list[str], float]:
    """All answers, row by row, and the CPU seconds that they took."""
    begun = time.process_time()
    out: list[str] = []
    for row, model in enumerate(how.models):
        for task in benchmark.tasks[: row + 1]:
            out += _cell(how, model, tokenizer, task, benchmark)
    return out, time.process_time() - begun


def _cell(
    how: How, model: nn.Module, tokenizer: Any, task: Task, benchmark: Benchmark
) -> list[str]:
    found: list[str] = []
    for start in range(0, len(task.test), how.batch):
        batch = task.test[start : start + how.batch]
        answered = answer_batch([how.mode], model, tokenizer, batch, task, benchmark.decoding)
        found += [answer.text for answer in answered[how.mode]]
    return found
