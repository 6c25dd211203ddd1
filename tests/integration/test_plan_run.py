"""Plans against the runs that they are for: micro-batches, tensors, bytes between ranks, files."""

from __future__ import annotations

import gc
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import plan
from launch.flags import read_flags
from launch.planning.estimate import Plan
from launch.planning.meter import Meter
from launch.submit import train_flags
from moram_dist.train import task_data
from moram_dist.train.trainer import Trainer
from tests.integration.launching import train

pytestmark = pytest.mark.integration

WITHIN = 0.15
DEMO = ("--order", "topic,mood", "--limit_train", "48", "--limit_eval", "2", "--epochs", "1")
DEMO += ("--preset", "published")
TRACE = ("--order", "C-STANCE,MeetingBank", "--limit_train", "4", "--limit_eval", "1")
TRACE += ("--epochs", "1", "--max_answer_tokens", "64")
PICTURES = ("--order", "gtsrb,mnist", "--shots", "4", "--limit_eval", "4", "--epochs", "2")
PICTURES += ("--target_modules", "all-linear")
OF_DATA = {"demo": (DEMO, 12), "trace": (TRACE, 2), "pictures": (PICTURES, 17)}
"""Flags and batch size. 17 is no multiple of ranks, so one of two has more pictures."""


def metered(rank: int) -> None:
    """Have each step write down how many bytes its rank's tensors take at most."""
    step = Trainer._step

    def with_meter(self: Trainer, *arguments: Any) -> torch.Tensor:
        there = {
            tensor.untyped_storage()._cdata: tensor
            for tensor in gc.get_objects()
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta
        }
        # A CPU gives the bucket no memory before it is used.
        buckets = getattr(self.engine.optimizer, "ipg_buckets", {}).values()
        bucket = sum(b.buffer.nbytes for b in buckets if b.buffer is not None)
        standing = sum(t.untyped_storage().nbytes() for t in there.values()) - bucket
        with Meter(there.values()) as meter:
            loss = step(self, *arguments)
        with (self.run_dir.path / f"tensors_{rank}").open("a") as file:
            file.write(f"{standing + meter.peak}\n")
        return loss

    Trainer._step = with_meter  # type: ignore[method-assign]
    # gc.get_objects would show tuples that another thread is still filling.
    task_data.ahead = lambda found, depth: found  # type: ignore[attr-defined]


def planned(words: list[str], ranks: int) -> Plan:
    own = plan.parser().parse_args(["--gpus_per_node", str(ranks), "--calibrate", "false"])
    return plan.make(own, *read_flags((), train_flags(words)))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def received(folder: Path, task: str) -> list[int]:
    """Bytes of each step but the first, as metrics.jsonl counts them since the run's beginning."""
    sums = [
        sum(v for k, v in line.items() if k.startswith("atoms/") and k.endswith("_bytes"))
        for line in lines(folder / "metrics.jsonl")
        if line.get("task") == task and "train/peak_memory_mb" in line
    ]
    return [after - before for before, after in itertools.pairwise(sums)]


@pytest.mark.parametrize(
    ("data", "ranks", "placement"),
    [
        ("demo", 1, ()),
        pytest.param("demo", 2, ("--resident_fraction", "0"), marks=pytest.mark.nightly),
        pytest.param("demo", 2, ("--placement", "stationary"), marks=pytest.mark.nightly),
        pytest.param("trace", 1, (), marks=pytest.mark.nightly),
        ("trace", 2, ("--resident_fraction", "0")),
        pytest.param("pictures", 1, (), marks=pytest.mark.nightly),
        pytest.param("pictures", 2, ("--resident_fraction", "0"), marks=pytest.mark.nightly),
        ("pictures", 2, ("--placement", "stationary")),
    ],
)
def test_a_run_takes_what_was_planned(data, ranks, placement, request, tmp_path):
    run = tmp_path / "run"
    flags, batch_size = OF_DATA[data]
    words = [*flags, *placement]
    words += ["--output_dir", str(run), "--tracking", "none", "--log_every", "1"]
    words += ["--eval_rows", "diagonal", "--batch_size", str(batch_size)]
    if data == "trace":
        shared = request.getfixturevalue("shared")
        words += ["--benchmark", "trace", "--data_dir", str(shared / "data" / "trace")]
        words += ["--model", str(shared / "models" / "t0-llama-5m")]
    if data == "pictures":
        shared = request.getfixturevalue("shared")
        words += ["--benchmark", "images", "--data_dir", str(shared / "data" / "vision")]
        words += ["--model", str(shared / "models" / "clip-tiny")]
    found = planned(words, ranks)
    assert not run.exists()
    done = train(*words, ranks=ranks, before=metered)
    assert done.code == 0, done.out + done.err

    tensors = [
        max(int(line) for line in (run / f"tensors_{rank}").read_text().split())
        for rank in range(ranks)
    ]
    # Whether layers arrive at the moment of the peak depends on the order of modules.
    least = found.training - found.standing.arriving
    peak = max(tensors)
    assert (1 - WITHIN) * least < peak < (1 + WITHIN) * found.training, (least, peak)
    manifest = json.loads((run / "memory" / "memory.json").read_text(encoding="utf-8"))
    assert [task.file for task in found.tasks] == [file["bytes"] for file in manifest["tasks"]]
    measured = {task.name: received(run, task.name) for task in found.tasks}
    assert measured == {task.name: [*task.received["run"][1:]] for task in found.tasks}
    assert any(map(any, measured.values())) == bool(placement)
