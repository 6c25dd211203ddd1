"""What a method keeps is on the model's device. Here that is ``meta``, which stands for a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launch.planning.meter import AsOnDevice
from moram_dist.families.targets import find_linears
from moram_dist.methods import METHODS
from moram_dist.methods.adapting import AdaptingMethod
from tests.helpers.configs import config_of
from tests.helpers.tiny import HIDDEN, tiny_model

META = torch.device("meta")
ADAPTING = sorted(name for name in METHODS if issubclass(METHODS[name], AdaptingMethod))

READING = {"ewc", "inf_lora", "gpm_lora", "moe_lora", "moram"}
"""At a task's end they read numbers, which ``meta`` has not."""


def built(name: str) -> tuple[Any, nn.Module]:
    """A method on a model that has no contents."""
    method = METHODS[name](config_of(method=name, atoms_per_task=2), seed=0, num_tasks=3)
    model = tiny_model().requires_grad_(False).to(META)
    method.build(model, find_linears(model, "q_proj,k_proj,v_proj,o_proj"))
    return method, model


def run(method: Any, model: Any) -> None:
    """A forward pass."""
    method.token_keys.set([1, 2], [5], META)
    with AsOnDevice():
        model(input_ids=torch.zeros(2, 5, dtype=torch.long, device=META))


@pytest.mark.parametrize("name", ADAPTING)
def test_parameters_and_buffers(name):
    _, model = built(name)
    elsewhere = [n for n, t in [*model.named_parameters(), *model.named_buffers()] if not t.is_meta]
    assert not elsewhere


@pytest.mark.parametrize("name", ADAPTING)
def test_a_pass_of_training(name):
    method, model = built(name)
    method.begin_task(0)
    run(method, model.train())


def from_a_file(method: Any) -> dict[str, Tensor]:
    """The tensors of a task as they are read: on the CPU, one row where any number is right."""

    def size(name: str, i: int) -> int:
        return 1 if i == 0 and name.endswith(("directions", "subspace")) else HIDDEN

    return {
        name: torch.zeros([size(name, i) if n < 0 else n for i, n in enumerate(shape)])
        for name, shape in method.shapes(0, method.layers).items()
    }


@pytest.mark.parametrize("name", ADAPTING)
def test_a_sequence_that_is_resumed(name):
    method, model = built(name)
    method.load_task(0, from_a_file(method))
    run(method, model)
    if method.keeps_prefixes:
        for count in (0, 1):
            with method.prefix.of((count,)):
                run(method, model.eval())
    if name == "gain_lora":  # it would read the last gate
        return
    method.begin_task(1)
    run(method, model.train())
    if name in READING:
        return
    tensors = method.end_task(1, lambda limit: (0, iter(())))
    assert all(tensor.is_meta for tensor in tensors.values())
    run(method, model.eval())
