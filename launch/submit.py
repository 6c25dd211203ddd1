"""Write a SLURM job script, print it and submit it.

    moram submit --nodes 4 --gpus_per_node 8 --benchmark trace --data_dir DIR --model ID
    moram submit --orders 1 2 --methods moram o_lora --seeds 0 1 2 --output_dir RUNS ...
    moram submit --evaluate RUN

The first is one sequence, the second an array of 12 sequences, each in a run directory of its own
in RUNS, the third evaluates what is not evaluated yet of a run that is trained. In a checkout,
python launch/submit.py is the same. All other flags are those of moram train. What is special about
a cluster is in launch/slurm/site.yaml.

Exit code 2, with one line that says why: wrong input. Nothing is submitted then.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:  # a script: its imports start at the checkout
    checkout = str(Path(__file__).resolve().parents[1])
    runpy.run_path(checkout, {"module": "launch.submit"}, "__main__")
    sys.exit()

from launch import checks, job_secrets
from launch.flags import (
    DEFAULT_DS_CONFIG,
    MOST_RANKS,
    as_words,
    read_flags,
    train_flags,
    train_script,
)
from launch.job_script import ArrayTask, Site, SlurmJob, read_site, render, seconds
from moram_dist.command_line import Parser, run_command
from moram_dist.config import RunConfig
from moram_dist.files import write_atomically
from moram_dist.reading import read_object
from moram_dist.redaction import clean_command, without_secrets
from moram_dist.registry import InputError
from moram_dist.terminal import make_output_last, one_line, quoted, say
from moram_dist.tracking import open_tracker, store_of

SITE = Path(__file__).resolve().parent / "slurm" / "site.yaml"

MOST = 1_000_000
"""Largest number that a flag accepts; a larger one is a typing error."""

LEAST_WORK_S = 60
"""Seconds that each attempt must have between its start and the signal before its time limit."""


def parser() -> Parser:
    """This command's own flags."""
    out = Parser("moram submit", __doc__)
    add = out.add_argument
    add("--nodes", type=int, default=1, help="nodes of each run [1]")
    add("--gpus_per_node", type=int, default=1, help="a rank each; 0: one CPU rank a node [1]")
    add("--time", default="24:00:00", help="time limit of an attempt, as of sbatch [24:00:00]")
    add("--stop_before", type=int, default=180, help="seconds before it to save and leave [180]")
    add("--attempts", type=int, default=20, help="most starts of one submission [20]")
    add("--parallel", type=int, help="most runs of an array at a time [all]")
    add("--orders", nargs="+", help="an array over task orders")
    add("--methods", nargs="+", help="an array over methods")
    add("--seeds", nargs="+", help="an array over seeds")
    add("--evaluate", nargs="+", type=Path, metavar="RUN", help="evaluate trained runs")
    add("--site", type=Path, default=SITE, help="[%(default)s]")
    add("--dry_run", action="store_true", help="print the script, and do nothing else")
    return out


def main(argv: Sequence[str]) -> None:
    """Check everything, then print the script and submit it. Raises InputError."""
    own, rest = parser().parse_known_args(argv)
    for name in ("nodes", "attempts", "stop_before", "parallel"):
        if getattr(own, name) is not None and not 1 <= getattr(own, name) <= MOST:
            raise InputError(f"--{name} must be from 1 to {MOST:,}, got {getattr(own, name)}")
    if not 0 <= own.gpus_per_node <= MOST_RANKS:
        raise InputError(
            f"--gpus_per_node must be from 0 to {MOST_RANKS:,}, got {own.gpus_per_node}"
        )
    if seconds(own.time) < own.stop_before + LEAST_WORK_S:
        raise InputError(
            f"--time {own.time} leaves less than {LEAST_WORK_S} s of work before the signal, "
            f"{own.stop_before} s before its end (--stop_before)"
        )
    site = read_site(own.site)
    flags = train_flags(rest)
    all_flags = evaluations(own, flags) if own.evaluate else sequences(own, flags)
    runs = [checked(each) for each in all_flags]
    run_dirs = [config.run_dir.absolute() for config in runs]
    if len(set(map(os.path.realpath, run_dirs))) < len(run_dirs):
        raise InputError("two runs of the array have the same run directory: choose --output_dir")
    jobs = run_dirs[0].parent / "slurm"
    job = SlurmJob(
        name=job_name(run_dirs),
        folder=Path.cwd(),
        log=jobs,
        nodes=own.nodes,
        gpus_per_node=own.gpus_per_node,
        time=own.time,
        stop_before=own.stop_before,
        parallel=own.parallel,
        attempts=own.attempts,
    )
    site, hidden = job_secrets.split(site, all_flags, own.site)
    tasks = [
        ArrayTask(command=command(each, run_dir), logs=run_dir.parent / "slurm" / run_dir.name)
        for each, run_dir in zip(all_flags, run_dirs, strict=True)
    ]
    made_by = "python launch/submit.py " + shlex.join(clean_command(list(argv)))
    script = render(job, tasks, site, python=sys.executable, made_by=" ".join(made_by.split()))
    say(script, end="")
    warn_of_sqlite(runs, site)
    if hidden:
        say(job_secrets.note(hidden), error=True)
    if not own.dry_run:
        submit(script, jobs / f"{job.name}.sbatch", hidden)


def sequences(own: argparse.Namespace, flags: dict[str, str]) -> list[dict[str, str]]:
    """Flags of each run to train. Raises InputError if a swept flag is also given singly."""
    swept = {"order": own.orders, "method": own.methods, "seed": own.seeds}
    swept = {name: values for name, values in swept.items() if values}
    for name in swept:
        if _given(flags, name):
            raise InputError(f"give --{name} or --{name}s, not both")
    out = [
        flags | dict(zip(swept, values, strict=True))
        for values in itertools.product(*swept.values())
    ]
    folder = _given(flags, "output_dir")
    if len(out) > 1 and folder:
        for each in out:
            name = read_flags((), each)[0].name
            each[folder] = str(Path(flags[folder], name))
    return out


def _given(flags: Mapping[str, str], name: str) -> str | None:
    """The flag of a setting as it was given, with its section (``train.seed``) or without."""
    return next((flag for flag in flags if flag.rpartition(".")[2] == name), None)


def evaluations(own: argparse.Namespace, flags: dict[str, str]) -> list[dict[str, str]]:
    """Flags of each run to evaluate: its own settings, overridden by the given flags.

    Raises:
        InputError: there is no run, or not all of its tasks are trained.
    """
    for name in ("orders", "methods", "seeds"):
        if getattr(own, name):
            raise InputError(f"--evaluate takes runs as they are; --{name} is for training")
    for name in ("recipe", "preset", "output_dir"):
        if _given(flags, name):
            raise InputError(f"--evaluate names the run: --{name} must be left out")
    out = []
    for run in own.evaluate:
        if not (run / "run.yaml").is_file():
            raise InputError(f"--evaluate {run}: no run is recorded there")
        tasks = _tasks_in(run / "benchmark.json")
        manifest = run / "memory" / "memory.json"
        trained = _tasks_in(manifest) if manifest.exists() else 0
        if trained < tasks:
            raise InputError(f"--evaluate {run}: {trained} of {tasks} tasks are trained")
        out.append({"recipe": str(run / "run.yaml"), "output_dir": str(run)} | flags)
    return out


def _tasks_in(path: Path) -> int:
    """How many tasks a file of a run lists. Raises InputError if the file has no such list."""
    tasks = read_object(path).get("tasks")
    if not isinstance(tasks, list):
        raise InputError(f"{path}: tasks must be a list, got {quoted(tasks)}")
    return len(tasks)


def checked(flags: dict[str, str]) -> RunConfig:
    """The run that the flags describe. Raises InputError, as the run itself would."""
    config, ds_config = read_flags((), flags)
    from launch.settings import resolve  # imports torch, which --help does not need
    from moram_dist.train import ds_check
    from moram_dist.train import ds_config as ds

    ds_check.check(ds.read(ds_config), path=ds_config)
    resolved, _ = resolve(config)
    if config.record.tracking_uri:
        open_tracker(config.record.tracking, config.record.tracking_uri)
    if config.run_dir.exists():
        from moram_dist.train.run_dir import RunDir

        RunDir(config.run_dir).check(resolved)
    return resolved


def command(flags: dict[str, str], run_dir: Path) -> list[str]:
    """The training command of a run."""
    named = {"ds_config": str(DEFAULT_DS_CONFIG)} | flags | {"output_dir": str(run_dir)}
    return [*train_script(), *as_words(named)]


def job_name(run_dirs: Sequence[Path]) -> str:
    """A readable name; two jobs have the same one only if they have the same run directories."""
    paths = "\n".join(sorted(os.path.realpath(path) for path in run_dirs))
    short = run_dirs[0].name if len(run_dirs) == 1 else f"{len(run_dirs)}-runs"
    digest = hashlib.sha256(paths.encode()).hexdigest()[:8]
    return f"moram-{re.sub(r'[^A-Za-z0-9_.-]', '_', short)[:40]}-{digest}"


def warn_of_sqlite(runs: Sequence[RunConfig], site: Site) -> None:
    """Print a warning if runs on several machines would write to one sqlite file over a network."""
    record = runs[0].record
    if record.tracking == "none" or len(runs) == 1:
        return
    uri = record.tracking_uri or site.environment.get("MLFLOW_TRACKING_URI")
    result = checks.tracking(store_of(runs[0].run_dir, uri))
    if result.state == "fault":
        say(f"warning: {one_line(f'{result.found}; {result.remedy}')}", error=True)


def submit(script: str, path: Path, hidden: Mapping[str, str]) -> None:
    """Save the script and pass it to sbatch, with ``hidden`` in sbatch's environment.

    Raises:
        InputError: sbatch refuses it.
    """
    if shutil.which("sbatch") is None:
        raise InputError("no sbatch on PATH: submit on a login node, or give --dry_run")
    write_atomically(path, script, private=True)
    done = subprocess.run(
        ["sbatch", "--parsable", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **hidden},
    )
    if done.returncode:
        raise InputError(f"sbatch refused {path}: {one_line(without_secrets(done.stderr))}")
    number = done.stdout.strip().split(";")[0]
    say(json.dumps({"job": number, "script": str(path), "logs": str(path.parent)}), error=True)


if __name__ == "__main__":
    make_output_last()
    sys.exit(run_command(main, sys.argv[1:]))
