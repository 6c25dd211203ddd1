"""Say what a run will take, before it: memory, traffic, disk, steps, time.

    moram plan --nodes 4 --gpus_per_node 8 --device cuda --model ID --benchmark trace --data_dir DIR
    moram plan

The second is the demo on one rank of this machine. In a checkout, python launch/plan.py is the
same. All flags that are not its own are those of moram train; nothing of the run is started or
written, and no GPU is needed. What each line means, and how well plans were met: docs/planning.md.

Exit code 2, with one line that says why: wrong input.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if __name__ == "__main__" and not __package__:  # a script: its imports start at the checkout
    checkout = str(Path(__file__).resolve().parents[1])
    runpy.run_path(checkout, {"module": "launch.plan"}, "__main__")
    sys.exit()

from launch.flags import MOST_NODES, MOST_RANKS, read_flags, train_flags
from moram_dist import terminal
from moram_dist.command_line import Parser, run_command
from moram_dist.config import RunConfig
from moram_dist.files import write_atomically
from moram_dist.registry import InputError
from moram_dist.terminal import quoted

if TYPE_CHECKING:
    from launch.planning.estimate import Plan

GPU_GIB = 80.0

ROOM_TO_CALIBRATE = 8
"""Calibrate only if memory has room for this many copies of the base model."""


def parser() -> Parser:
    """This command's own flags."""
    out = Parser("moram plan", __doc__)
    add = out.add_argument
    add("--nodes", type=int, default=1, help="[1]")
    add("--gpus_per_node", type=int, default=1, help="ranks of a node, on a CPU too [1]")
    add("--device", choices=("cpu", "cuda"), help="what ranks compute on [that of this machine]")
    add("--memory", type=float, help="GiB of a rank [80 on cuda, else this machine's, shared out]")
    add(
        "--calibrate",
        choices=("auto", "false"),
        default="auto",
        help="run real micro-batches [auto]",
    )
    add("--json", type=Path, metavar="FILE", help="write the plan there too, in bytes and seconds")
    return out


def main(argv: Sequence[str]) -> None:
    """Check everything, then plan and print. Raises InputError."""
    own, rest = parser().parse_known_args(argv)
    for name, most in (("nodes", MOST_NODES), ("gpus_per_node", MOST_RANKS), ("memory", 2**20)):
        value = getattr(own, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name} must be > 0, got {value:g}")
        if value is not None and value > most:
            raise InputError(f"--{name} must be <= {most}, got {quoted(value)}")
    config, ds_path = read_flags((), train_flags(rest))
    if config.method.method != "moram":
        raise InputError(f"--method {config.method.method}: plans are for moram")
    if own.json and not own.json.parent.is_dir():
        raise InputError(f"--json {own.json}: no such folder")
    plan = make(own, config, ds_path)
    from launch.planning.table import table

    terminal.say(table(plan))
    if own.json:
        write_atomically(own.json, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")


def make(own: argparse.Namespace, config: RunConfig, ds_path: Path) -> Plan:
    """The plan of a run. Raises InputError."""
    from launch import settings  # imports torch, which --help does not need
    from launch.base import check_fit
    from launch.planning.estimate import Planner
    from launch.planning.rehearsal import Ranks
    from moram_dist.comm import env
    from moram_dist.families import family_of
    from moram_dist.models import language_model

    settings.quiet()
    here = env.device().type
    device = own.device or here
    if config.model.dtype == "auto":
        dtype: Literal["bf16", "fp32"] = "bf16" if device == "cuda" else "fp32"
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    config, benchmark = settings.resolve(config)
    count = own.nodes * own.gpus_per_node
    ds_config = settings.deepspeed_config(config, ds_path, count)
    if config.model.gradient_checkpointing:
        raise InputError("--gradient_checkpointing true: plans are for runs without it")
    family = family_of(language_model.check(config.model))
    check_fit(config, benchmark, family)
    if not family.can_be_planned:
        raise InputError(f"--model {config.model.model}: plans are for causal models and CLIP")
    whole = env.host_memory_bytes()
    memory = own.memory * 2**30 if own.memory else GPU_GIB * 2**30
    if device == "cpu" and not own.memory:
        memory = whole // own.gpus_per_node
    ranks = Ranks(
        count=count,
        in_group=count if config.parallel.atom_group == "world" else own.gpus_per_node,
        device=device,
        memory=memory,
    )
    planner = Planner(config, benchmark, ds_config, ranks, say)
    plan = planner.plan()
    if own.calibrate == "auto" and device == here and ROOM_TO_CALIBRATE * plan.base < whole:
        here_too = count if own.nodes == 1 and count <= available_ranks(device) else 1
        plan = planner.calibrated(plan, ds_path, ranks=here_too)
    return plan


def available_ranks(device: str) -> int:
    """How many ranks this machine can run."""
    import torch

    return torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1


def say(line: str) -> None:
    """Print progress to stderr, so that stdout holds only the plan."""
    terminal.say(line, error=True)


if __name__ == "__main__":
    terminal.make_output_last()
    sys.exit(run_command(main, sys.argv[1:]))
