"""A task that was interrupted goes on in a fresh engine as though it had not been.

At the same number of ranks bit for bit; at another one from the same bits. All settings of a world
size share one spawn, and the state goes from one to the next by a file.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moram_dist.comm import env
from moram_dist.train.forward import answer_loss
from moram_dist.train.state import read_state, write_state
from tests.distributed.test_growth import SETTINGS, digest, same_everywhere
from tests.helpers.life import Life, Setting, task_steps
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import save_tiny_model

SAVED_AT, LAST = 2, 4
MOVED = [
    Setting("zero2.json", 0, "bf16"),
    Setting("zero2.json", 1, "fp32"),
    Setting("zero2.json", 2, "bf16"),
    Setting("zero3.json", 3, "fp32", shard_all=True),
    Setting("zero3_offload.json", 3, "bf16"),
]
"""All of them among the settings of two ranks."""

STATIONARY = Setting("zero3.json", 3, "fp32", shard_all=True, placement="stationary")


def begin(model: Path, setting: Setting, world_size: int, memory: dict[str, Tensor]) -> Life:
    """A fresh engine at the beginning of the second task."""
    life = Life(model, setting, world_size)
    life.method.load_task(0, memory)
    life.begin(1)
    return life


def go_on(life: Life) -> tuple[list[float], str, str]:
    """Losses of the rest of the task; then the weights, and the state."""
    losses = life.train(1, SAVED_AT, LAST)
    return losses, digest(life.parameters(trained=True)), digest(read_state(life.engine)[0])


def file(setting: Setting, world_size: int) -> str:
    return f"{setting.name}-{world_size}.safetensors"


def check_same_number_of_ranks(
    model: Path, setting: Setting, world_size: int, folder: Path
) -> None:
    first = Life(model, setting, world_size)
    first.begin(0)
    first.train(0, 0, 2)
    memory = first.method.end_task(0, lambda: [])
    first.begin(1)
    first.train(1, 0, SAVED_AT)
    state, steps = read_state(first.engine)
    assert steps == SAVED_AT
    assert same_everywhere(state)
    assert all(tensor.dtype == torch.float32 and tensor.any() for tensor in state.values())
    weights = {n: w.float() for n, w in first.parameters(trained=True).items()}
    for name, weight in weights.items():
        master = state[f"{name}/master"]
        assert torch.equal(master.to(torch.bfloat16).float(), weight) or torch.equal(master, weight)
    expected = go_on(first)

    # Half a step more: what is accumulated is neither read nor brought along.
    batch = task_steps(1, env.rank(), world_size)[0].micro_batches[0]
    first.engine.train()
    first.engine.set_gradient_accumulation_boundary(False)
    first.engine.backward(answer_loss(first.trainer.forward(batch)))
    assert digest(read_state(first.engine)[0]) == expected[2]
    first.engine.destroy()

    second = begin(model, setting, world_size, memory)
    write_state(second.engine, state, steps)
    assert digest(read_state(second.engine)[0]) == digest(state)
    assert digest({n: w.float() for n, w in second.parameters(trained=True).items()}) == digest(
        weights
    )
    assert go_on(second) == expected
    second.engine.destroy()
    if env.is_main():
        memory = {f"memory.{name}": tensor for name, tensor in memory.items()}
        save_file(
            {**state, **memory, "losses": torch.tensor(expected[0])},
            folder / file(setting, world_size),
        )


def check_other_number_of_ranks(
    model: Path, setting: Setting, world_size: int, folder: Path
) -> None:
    saved = load_file(folder / file(setting, 2))
    losses = saved.pop("losses").tolist()
    memory = {n[len("memory.") :]: saved.pop(n) for n in [*saved] if n.startswith("memory.")}
    life = begin(model, setting, world_size, memory)
    write_state(life.engine, saved, SAVED_AT)
    state, steps = read_state(life.engine)
    assert (digest(state), steps) == (digest(saved), SAVED_AT)
    tolerance = 1e-5 if setting.dtype == "fp32" else 0.02
    assert go_on(life)[0] == pytest.approx(losses, rel=tolerance)
    life.engine.destroy()


def each(rank: int, world_size: int, jobs: list, model: Path, folder: Path) -> None:
    for check, setting in jobs:
        try:
            check(model, setting, world_size, folder)
        except Exception as error:
            error.add_note(f"in {setting}")
            raise


# Number of ranks -> settings that go on there, and settings that come there from two ranks.
EVERY_CHANGE = {2: ([*MOVED[1:], STATIONARY], []), 3: (SETTINGS[3][1:], MOVED[1:])}
EVERY_CHANGE[1] = ([], MOVED[3:4])
NIGHTLY = {2: (SETTINGS[2], []), 3: (SETTINGS[3], MOVED), 1: ([], MOVED[2:4])}


@pytest.mark.distributed
@pytest.mark.parametrize(
    "settings",
    [EVERY_CHANGE, pytest.param(NIGHTLY, marks=pytest.mark.nightly)],
    ids=["every change", "nightly"],
)
def test_an_interrupted_task_goes_on(settings, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    same, other = check_same_number_of_ranks, check_other_number_of_ranks
    jobs = {
        world_size: [(other, setting) for setting in come] + [(same, setting) for setting in stay]
        for world_size, (stay, come) in settings.items()
    }
    for world_size, todo in jobs.items():
        meet = tmp_path / f"ranks{world_size}"
        meet.mkdir()
        run_ranks(each, world_size=world_size, tmp_path=meet, args=(todo, model, tmp_path))
