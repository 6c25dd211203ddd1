"""Write a SLURM job script: sbatch's options, the commands, and the body from slurm/job.sh."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from moram_dist.reading import read_mapping, read_text
from moram_dist.registry import InputError, unknown
from moram_dist.terminal import quoted

BODY = Path(__file__).resolve().parent / "slurm" / "job.sh"


@dataclass(frozen=True, kw_only=True)
class Site:
    """Settings of a cluster; slurm/site.yaml explains each field."""

    sbatch: dict[str, Any] = field(default_factory=dict)
    gpus: str = "gpus-per-node={n}"
    cpus_per_rank: int = 1
    environment: dict[str, Any] = field(default_factory=dict)
    setup: str = ""


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """Resources that a script requests from SLURM, for each of its tasks."""

    name: str
    folder: Path
    """The job starts here; relative paths in its commands refer to this folder."""

    log: Path
    """Folder of the job's own log."""

    nodes: int
    gpus_per_node: int
    """0: one rank per node, on the CPU."""

    time: str
    stop_before: int
    """Seconds before the time limit at which the run is asked to stop."""

    parallel: int | None
    """At most this many tasks run at the same time; None: no limit."""

    attempts: int
    """At most this many starts per submission, including the first."""


@dataclass(frozen=True, kw_only=True)
class ArrayTask:
    """One task of an array, or the only task of a job without an array."""

    command: Sequence[str]
    logs: Path
    """Folder of the logs of attempts."""


def read_site(path: Path) -> Site:
    """A site's settings. Raises InputError, which names the file and the field."""
    given, known = read_mapping(path), {item.name: item for item in fields(Site)}
    for name in given:
        if name not in known:
            raise unknown(f"setting in {path}", str(name), known)
    kinds = {"sbatch": dict, "environment": dict, "gpus": str, "setup": str, "cpus_per_rank": int}
    for name, value in given.items():
        if type(value) is not kinds[name]:
            kind = {dict: "a mapping", str: "a text", int: "a whole number"}[kinds[name]]
            raise InputError(f"{path}: {name} must be {kind}, got {quoted(value)}")
    site = Site(**given)
    if site.cpus_per_rank < 1:
        raise InputError(f"{path}: cpus_per_rank must be >= 1, got {site.cpus_per_rank}")
    if "{n}" not in site.gpus:
        raise InputError(f"{path}: gpus must hold {{n}}, the number on a node, got {site.gpus!r}")
    if not re.fullmatch(r"[a-z][a-z0-9-]*(=[^\s'\"\\$`;|&<>#]*)?", site.gpus.replace("{n}", "1")):
        raise InputError(f"{path}: gpus must be option=value, got {quoted(site.gpus)}")
    for name, value in site.environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            raise InputError(f"{path}: environment: {name!r} is no name of a variable")
        if not isinstance(value, str | int | float):
            raise InputError(f"{path}: environment.{name} must be a text, got {quoted(value)}")
    for name, value in site.sbatch.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", str(name)):
            raise InputError(f"{path}: sbatch: {quoted(name)} is no name of an option")
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise InputError(
                f"{path}: sbatch.{name} must be a text, a number, or null for an option without a "
                f"value, got {quoted(value)}"
            )
    one_line_each({f"{path}: environment.{k}": v for k, v in site.environment.items()})
    one_line_each({f"{path}: sbatch.{k}": v for k, v in site.sbatch.items()})
    one_line_each({f"{path}: setup": site.setup.replace("\n", " ")})
    return site


def one_line_each(values: Mapping[str, Any]) -> None:
    """Raise InputError for the first value that would break its line of the script.

    Args:
        values: name for messages -> value.
    """
    for name, value in values.items():
        bad = [x for x in str(value) if x != "\t" and unicodedata.category(x) in _CONTROLS]
        if bad:
            raise InputError(
                f"{name} holds {bad[0]!r}, which a job script cannot: {quoted(str(value))}"
            )


_CONTROLS = ("Cc", "Cs", "Zl", "Zp")


def seconds(time: str) -> int:
    """Parse a time limit of sbatch: minutes, or [days-]hours:minutes:seconds and its short forms.

    Raises:
        InputError: it is not a time limit.
    """
    number = r"([0-9]{1,9})"
    match = re.fullmatch(rf"(?:{number}-)?{number}(?::{number})?(?::{number})?", time)
    if not match:
        raise InputError(f"--time must be MINUTES, H:MM:SS or D-H:MM:SS, got {time!r}")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None or len(parts) == 3:  # from hours down
        hours, minutes, secs = (*parts, 0, 0)[:3]
    else:
        hours, minutes, secs = 0, *(*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs


def render(
    job: SlurmJob, tasks: Sequence[ArrayTask], site: Site, *, python: str, made_by: str
) -> str:
    """The whole script; of our files, it needs only those that its commands name.

    Raises:
        InputError: a value contains a line feed or another control character.
    """
    one_line_each({"the current folder's path": job.folder, "the interpreter's path": python})
    one_line_each({f"the path of {task.logs.name!r}": task.logs for task in tasks})
    one_line_each({f"flag {word[:40]!r}": word for task in tasks for word in task.command})
    ranks = job.gpus_per_node or 1
    options: dict[str, Any] = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": site.cpus_per_rank * ranks,
        "time": job.time,
        "chdir": job.folder,
        "output": f"{str(job.log).replace('%', '%%')}/{job.name}-%j.log",
        "open-mode": "append",
        "requeue": None,
        "signal": f"B:USR1@{job.stop_before}",
        # A name stands for run directories; only one job of a name runs at a time.
        "dependency": "singleton",
    }
    if job.gpus_per_node:
        name, _, value = site.gpus.replace("{n}", str(job.gpus_per_node)).partition("=")
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
