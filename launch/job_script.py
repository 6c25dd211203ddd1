"""The text of a SLURM job script: sbatch's options, what to run, and the body from slurm/job.sh."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from moram_dist.config_io import read_mapping
from moram_dist.reading import read_text
from moram_dist.registry import InputError, unknown

BODY = Path(__file__).resolve().parent / "slurm" / "job.sh"


@dataclass(frozen=True, kw_only=True)
class Site:
    """What is special about a cluster; slurm/site.yaml says what each field is."""

    sbatch: dict[str, Any] = field(default_factory=dict)
    gpus: str = "gpus-per-node={n}"
    cpus_per_rank: int = 1
    environment: dict[str, Any] = field(default_factory=dict)
    setup: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a script asks of SLURM, for each of its tasks."""

    name: str
    folder: Path
    """Where the job starts; relative paths in its commands are of this folder."""

    log: Path
    """Folder of the job's own log."""

    nodes: int
    gpus_per_node: int
    """0: one rank a node, on its CPU."""

    time: str
    stop_before: int
    """Seconds before the time limit at which the run is asked to stop."""

    parallel: int | None
    """Most tasks at a time, None for any number."""

    attempts: int
    """Most starts of one submission, the first included."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the array, or all of a job that is no array."""

    command: Sequence[str]
    logs: Path
    """Folder of the logs of attempts."""


def read_site(path: Path) -> Site:
    """A site's settings. Raises InputError that names the file and the field."""
    given, known = read_mapping(path), {item.name: item for item in fields(Site)}
    for name in given:
        if name not in known:
            raise unknown(f"setting in {path}", name, known)
    kinds = {"sbatch": dict, "environment": dict, "gpus": str, "setup": str, "cpus_per_rank": int}
    for name, value in given.items():
        if type(value) is not kinds[name]:
            kind = {dict: "a mapping", str: "a text", int: "a whole number"}[kinds[name]]
            raise InputError(f"{path}: {name} must be {kind}, got {value!r}")
    site = Site(**given)
    if site.cpus_per_rank < 1:
        raise InputError(f"{path}: cpus_per_rank must be >= 1, got {site.cpus_per_rank}")
    if "{n}" not in site.gpus:
        raise InputError(f"{path}: gpus must hold {{n}}, the number on a node, got {site.gpus!r}")
    for name in site.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*", str(name)):
            raise InputError(f"{path}: environment: {name!r} is no name of a variable")
    return site


def seconds(time: str) -> int:
    """A time limit as sbatch takes it: minutes, or [days-]hours:minutes:seconds and its like.

    Raises:
        InputError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        raise InputError(f"--time must be MINUTES, H:MM:SS or D-H:MM:SS, got {time!r}")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None or len(parts) == 3:  # from hours down
        hours, minutes, secs = (*parts, 0, 0)[:3]
    else:
        hours, minutes, secs = 0, *(*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs


def render(job: Job, tasks: Sequence[Task], site: Site, *, python: str, made_by: str) -> str:
    """The whole script, which needs no other file of ours but what its commands name."""
    ranks = job.gpus_per_node or 1
    options: dict[str, Any] = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": site.cpus_per_rank * ranks,
        "time": job.time,
        "chdir": job.folder,
        "output": job.log / f"{job.name}-%j.log",
        "open-mode": "append",
        "requeue": None,
        "signal": f"B:USR1@{job.stop_before}",
        # Of jobs of one name, which stands for run directories, one is at work at a time.
        "dependency": "singleton",
    }
    if job.gpus_per_node:
        name, _, value = site.gpus.format(n=job.gpus_per_node).partition("=")
        options[name] = value or None
    if len(tasks) > 1:
        most = f"%{job.parallel}" if job.parallel else ""
        options["array"] = f"0-{len(tasks) - 1}{most}"
    options |= site.sbatch
    lines = ["#!/usr/bin/env bash", *(_option(name, value) for name, value in options.items())]
    lines += [f"# Made by: {made_by}", ""]
    environment = ({} if job.gpus_per_node else {"DS_ACCELERATOR": "cpu"}) | site.environment
    lines += [f"export {name}={shlex.quote(str(v))}" for name, v in environment.items()]
    lines += site.setup.strip().splitlines()
    lines += [f"python={shlex.quote(python)}", f"ranks_per_node={ranks}"]
    lines += [f"max_attempts={job.attempts}", "case ${SLURM_ARRAY_TASK_ID:-0} in"]
    for number, task in enumerate(tasks):
        lines += [f"{number})", f"  logs={shlex.quote(str(task.logs))}"]
        lines += [f"  command=({shlex.join(task.command)})", "  ;;"]
    return "\n".join([*lines, "esac", "", read_text(BODY)])


def _option(name: str, value: Any) -> str:
    return f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(str(value))}")
