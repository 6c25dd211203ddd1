"""From tasks and examples to what recognisers see: all ranks work together, each on its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moram_dist.comm import env
from moram_dist.comm.zero3 import whole
from moram_dist.data.encode import encode_question
from moram_dist.models.language_model import Base
from moram_dist.recognise import TaskStatistics, prompt_features
from moram_dist.tasks.task import Example, Task

MOST_PROMPTS = 4096
"""Of a task, whose statistics are taken: spread evenly over its training examples. The features of
so many take 128 MiB at an embedding size of 4,096."""


def statistics_of(base: Base, task: Task) -> TaskStatistics:
    """Of a task's training prompts, equal to the last bit on any number of ranks."""
    prompts = task.train[:: 1 + (len(task.train) - 1) // MOST_PROMPTS]
    world = env.world_size()
    parts = env.gather_objects(features_of(base, task, prompts[env.rank() :: world]))
    x_ND = torch.empty(len(prompts), parts[0].shape[1], dtype=parts[0].dtype)
    for rank, part_ND in enumerate(parts):
        x_ND[rank::world] = part_ND
    return TaskStatistics.of(x_ND)


def features_of(base: Base, task: Task, examples: Sequence[Example]) -> Tensor:
    """``prompt_features`` of this rank's examples, (N, D). All ranks call it together."""
    prompts = [
        encode_question(base.tokenizer, example.prompt, task, base.decoder_start)
        for example in examples
    ]
    model: Any = base.model
    weight = model.get_input_embeddings().weight
    with whole([weight]):
        return prompt_features(weight.detach(), prompts)
