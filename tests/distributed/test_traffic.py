"""What a step of a whole model moves under ZeRO-3 is what the formulas say, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from moram_dist.comm import env
from tests.helpers.life import METHOD, Life, Setting, task_steps
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import HIDDEN, save_tiny_model

NUM_TASKS = 3
PLACEMENTS = ("resident", "gathered", "stationary")


def received(life: Life, i: int) -> dict[str, int]:
    """What task i's second step receives, by the formulas of ``atoms.placement``."""
    P, N, R = env.world_size(), i * METHOD.atoms_per_task, METHOD.atoms_per_task
    step = task_steps(i, env.rank(), P)[1]
    counts = env.gather_objects([batch.inputs["input_ids"].numel() for batch in step.micro_batches])
    kept = min(METHOD.top_k, -(-(N + R) // P))
    expected: dict[str, int] = {}
    for T in map(max, zip(*counts, strict=True)):
        for names, memory in life.method.memories.items():
            D, E, linears = HIDDEN, sum(e for _, e in memory.bank.shapes), len(names)
            gathered = {"atoms": 2 * -(-N // P) * (linears * D + E) * 4}
            stationary = {
                "tokens": T * D * 4,  # without dropout, q, k and v shard it
                "candidates": P * T * (4 + 8 * kept) * linears,
                "outputs": T * E * 4,
                "gradients": T * E * 4,
                "sums": P * T * 8 * linears,
                "input gradients": T * linears * -(-R // P) * 4,  # of the active atoms' scores
            }
            if "layers.0" not in names[0] or linears == 1:  # the embedding wants no gradient
                stationary["input gradients"] += T * linears * D * 4
            moved = {"gathered": gathered, "stationary": stationary}
            for name, size in moved.get(life.setting.placement, {}).items():
                expected[name] = expected.get(name, 0) + (P - 1) * size
        if life.setting.placement == "stationary":
            expected["token counts"] = expected.get("token counts", 0) + (P - 1) * 8
    return expected


def steps_of_three_tasks(rank: int, world_size: int, model: Path) -> None:
    for placement in PLACEMENTS:
        life = Life(model, Setting("zero3.json", 3, "fp32", placement=placement), world_size)
        traffic = life.method.placer.group.traffic
        for i in range(NUM_TASKS):
            life.begin(i)
            life.train(i, 0, 1)
            traffic.clear()
            life.train(i, 1, 2)
            found = {name: moved.bytes for name, moved in traffic.items()}
            if found != received(life, i):
                raise AssertionError(f"{placement}, task {i}: {found} != {received(life, i)}")
            life.method.end_task(i, lambda: [])
        life.engine.destroy()


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [2, 3])
def test_traffic(world_size, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    run_ranks(steps_of_three_tasks, world_size=world_size, tmp_path=tmp_path, args=(model,))
