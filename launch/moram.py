"""Every command of the project under one name.

    moram train --model PATH_OR_HF_ID --benchmark trace --data_dir DIR --output_dir RUN

    train      train a method on a sequence of tasks; --ranks N starts N processes
    plan       estimate memory, traffic, disk and time of a run
    doctor     check that this machine can train
    submit     write a SLURM job script and submit it
    memory     show or verify the memory of a run; drop a task, prune, merge, branch
    generate   answer a prompt, or a file of them, with the memory of a run
    inspect    show which tasks' atoms answer each token of a prompt
    serve      answer over HTTP, in the form of OpenAI's API
    export     write the memory of a run as a PEFT adapter, or for the hub
    import     make a memory of LoRAs that PEFT trained
    report     write the report of a run
    compare    compare runs over orders and seeds
    audit      look for what is wrong with the files of a benchmark
    rescore    compute the scores of predictions again
    metrics    compute the sequence metrics of a run
    tracking   send to a tracking server what it has not got

moram COMMAND --help lists the flags of a command. In a checkout, python . COMMAND is the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from moram_dist import __version__
from moram_dist.command_line import run_command
from moram_dist.registry import InputError, unknown
from moram_dist.terminal import make_output_last, say

if TYPE_CHECKING:
    from moram_dist.config import RunConfig

MODULES = {
    "plan": "launch.plan",
    "doctor": "launch.doctor",
    "submit": "launch.submit",
    "memory": "launch.editing.command",
    "generate": "launch.generate",
    "inspect": "launch.inspection",
    "serve": "launch.serving.command",
    "export": "launch.export.command",
    "import": "launch.importing.command",
    "tracking": "moram_dist.tracking.__main__",
}
"""Command -> the module whose ``main`` runs it. Imported when needed, as some need torch."""

SCORING = ("report", "compare", "audit", "rescore", "metrics")
"""Commands of ``eval.run``."""


def train(words: Sequence[str]) -> None:
    """Train in this process, or with ``--ranks`` in processes that DeepSpeed's launcher starts."""
    from launch.flags import MOST_RANKS, as_words, read_flags, train_flags
    from launch.train import run as train_here
    from moram_dist.values import coerce

    flags = train_flags(words)
    ranks = coerce("ranks", flags.pop("ranks", None), int | None)
    started = "RANK" in os.environ  # by a launcher
    if ranks is not None and started:
        raise InputError("--ranks: a launcher has started this process already; leave it out")
    if ranks is not None and not 1 <= ranks <= MOST_RANKS:
        raise InputError(f"--ranks must be from 1 to {MOST_RANKS:,}, got {ranks}")
    if "help" not in flags:
        given = read_flags((), flags)  # reports wrong flags before anything is started
        if find_spec("deepspeed") is None:
            raise InputError("training needs more packages: pip install 'moram-dist[train,track]'")
        if ranks is not None:
            if report_if_complete(*given):
                return
            say(f"starting {ranks} process{'es' if ranks > 1 else ''} ...", error=True)
            start_ranks(ranks, as_words(flags))
        if not started:
            say("one process; moram train --ranks N starts several on this machine", error=True)
    train_here(as_words(flags))


def report_if_complete(config: RunConfig, ds_path: Path) -> bool:
    """Report a run with nothing left to do in this process; ranks would take longer to start."""
    if not (config.run_dir / "report" / "index.html").exists():  # written when all is done
        return False
    from launch.session import prepare

    session = prepare(config, ds_path, trains=False)
    if complete := session.is_complete():
        session.run()
    return complete


def start_ranks(count: int, words: Sequence[str]) -> NoReturn:
    """Replace this process by DeepSpeed's launcher, on a free port."""
    from launch.flags import train_script
    from moram_dist.comm import env

    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(count)]
    launcher += ["--master_port", str(env.free_port()), *train_script(), *words]
    # Otherwise Python would import from the current folder, which may contain another eval/.
    os.execve(sys.executable, launcher, os.environ | {"PYTHONSAFEPATH": "1"})


def main(words: Sequence[str]) -> int | None:
    """Run one command and return its exit code. Raises InputError if it does not exist."""
    name, *rest = words or [""]
    if name in ("", "-h", "--help"):
        say((__doc__ or "").strip())
        return 0 if name else 2
    if name == "--version":
        say(f"moram-dist {__version__}")
        return 0
    if name == "train":
        train(rest)
        return 0
    if name in SCORING:
        return import_module("eval.run").main(words)
    if name not in MODULES:
        raise unknown("command", name, ["train", *MODULES, *SCORING])
    return import_module(MODULES[name]).main(rest)


def run() -> None:
    """The console command."""
    make_output_last()
    sys.exit(run_command(main, sys.argv[1:]))


if __name__ == "__main__":
    run()
