"""Compute recognisers' inputs from tasks and examples; each rank processes its shard."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moram_dist.comm import env
from moram_dist.models.language_model import Base
from moram_dist.recognise import PromptFeatures, TaskStatistics
from moram_dist.tasks.task import Example, Task

MOST_PROMPTS = 4096
"""Most prompts per task in its statistics, spread evenly over the training examples. Their features
take 128 MiB at an embedding size of 4,096."""


def statistics_of(base: Base, task: Task) -> TaskStatistics:
    """Statistics of a task's training prompts, bitwise equal on any number of ranks."""
    prompts = task.train[:: 1 + (len(task.train) - 1) // MOST_PROMPTS]
    return TaskStatistics.of(all_features(base, task, prompts))


def all_features(base: Base, task: Task, examples: Sequence[Example]) -> PromptFeatures:
    """The features of these examples, in order, on every rank."""
    world = env.world_size()
    parts = env.gather_objects(features_of(base, task, examples[env.rank() :: world]))
    mean_ND = torch.empty(len(examples), parts[0].mean_ND.shape[1], dtype=torch.float64)
    tokens_N = torch.empty(len(examples), dtype=torch.float64)
    distinct: list[Tensor] = [torch.empty(0)] * len(examples)
    texts = parts[0].distinct is not None
    for rank, part in enumerate(parts):
        mean_ND[rank::world] = part.mean_ND
        tokens_N[rank::world] = part.tokens_N
        if texts:
            distinct[rank::world] = part.distinct or ()
    return PromptFeatures(mean_ND, tokens_N, tuple(distinct) if texts else None)


def features_of(base: Base, task: Task, examples: Sequence[Example]) -> PromptFeatures:
    """``Family.features`` of this rank's examples. All ranks call it together."""
    return base.family.features(base.model, base.tokenizer, examples, task)
