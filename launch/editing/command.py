"""Show, verify and look after the memory of a run.

    moram memory show RUN/memory                       tasks, atoms, sizes, hashes, edits
    moram memory verify RUN/memory                     read every file; exit 2 if one is damaged
    moram memory drop RUN --task TASK --out DIR        all tasks but one
    moram memory prune RUN --keep N --out DIR          of each task the N atoms that add most
    moram memory merge RUN RUN --out DIR               the tasks of one run, then those of another
    moram memory branch RUN --upto TASK --order A,B --out DIR
                                                       go on from a task with other ones

The last four write a new run directory and change no other. Its score matrix is then measured as in
training, in one process or with --ranks N, and shown beside the one before. --write_only leaves the
measuring to moram train --recipe DIR/run.yaml --output_dir DIR, which also finishes what a stop
left. A branch has tasks to learn, so this command is printed and not run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from moram_dist.command_line import Parser, run_command
from moram_dist.registry import InputError, unknown
from moram_dist.terminal import make_output_last, say

if TYPE_CHECKING:
    from launch.editing.run_folder import EditedRun
    from moram_dist.use.editing import EditedMemory
    from moram_dist.use.source import MemorySource

LOOK = ("show", "verify")
"""Commands that write nothing."""


def main(words: Sequence[str]) -> int:
    """Run one command and return the exit code."""
    return run_command(_run, words)


def _run(words: Sequence[str]) -> int:
    name, *rest = words or [""]
    if name in ("-h", "--help"):
        say((__doc__ or "").strip())
        return 0
    if name in EDITS:
        EDITS[name](rest)
        return 0
    if not name:
        raise InputError(f"usage: moram memory {'|'.join([*LOOK, *EDITS])} ...; --help says more")
    if name not in LOOK:
        raise unknown("command", name, [*LOOK, *EDITS])
    from moram_dist import memory

    return memory.run(words)


def _drop(words: Sequence[str]) -> None:
    parser = _parser("drop")
    parser.add_argument("--task", required=True, help="the one to leave out")
    args = _parsed(parser, words)
    from launch.editing.run_folder import plan_run
    from moram_dist.use.editing import drop

    source = _source(args.run)
    edited = drop(source, args.task)
    _write(args, plan_run([source], edited.names), edited, left_out=args.task)


def _prune(words: Sequence[str]) -> None:
    parser = _parser("prune")
    parser.add_argument("--keep", required=True, type=int, help="atoms of a task in each linear")
    args = _parsed(parser, words)
    from launch.editing.run_folder import plan_run
    from moram_dist.use.atom_use import atom_use
    from moram_dist.use.editing import check_prunable, prune

    source = _source(args.run)
    check_prunable(source, args.keep)
    run = plan_run([source], source.tasks)
    say("measuring how much each atom answers on the training data ...", error=True)
    _write(args, run, prune(source, args.keep, atom_use(source, run.benchmark)))


def _merge(words: Sequence[str]) -> None:
    parser = _parser("merge")
    parser.add_argument("second", type=Path, metavar="RUN", help="whose tasks come last")
    args = _parsed(parser, words)
    from launch.editing.run_folder import plan_run
    from moram_dist.use.editing import merge

    sources = [_source(args.run), _source(args.second)]
    edited = merge(*sources)
    try:
        run = plan_run(sources, edited.names)
    except InputError as error:
        _write_memory(args.out, edited)
        say(f"not measured, as one run cannot measure all of its tasks: {error}")
        return
    _write(args, run, edited)


def _branch(words: Sequence[str]) -> None:
    parser = _parser("branch")
    parser.add_argument("--upto", required=True, metavar="TASK", help="the last one to keep")
    parser.add_argument("--order", required=True, help="tasks to learn next, joined by commas")
    args = _parsed(parser, words)
    from launch.editing.run_folder import plan_run
    from moram_dist.use.editing import branch

    source = _source(args.run)
    edited = branch(source, args.upto)
    coming = [name.strip() for name in args.order.split(",")]
    _write(args, plan_run([source], [*edited.names, *coming]), edited)


EDITS = {"drop": _drop, "prune": _prune, "merge": _merge, "branch": _branch}


def _parser(command: str) -> Parser:
    parser = Parser(f"moram memory {command}", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--out", required=True, type=Path, help="a folder that is not there yet")
    if command != "branch":
        parser.add_argument("--ranks", type=int, help="measure with so many processes")
        parser.add_argument("--write_only", action="store_true", help="do not measure")
    return parser


def _parsed(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """The flags. Raises InputError on a wrong one, before anything is read."""
    from launch.flags import MOST_RANKS

    args = parser.parse_args(words)
    ranks = getattr(args, "ranks", None)
    if ranks is not None and not 1 <= ranks <= MOST_RANKS:
        raise InputError(f"--ranks must be from 1 to {MOST_RANKS:,}, got {ranks}")
    if not getattr(args, "write_only", True) and find_spec("deepspeed") is None:
        raise InputError(
            "measuring needs more packages: pip install 'moram-dist[train,track]'; "
            "--write_only does without"
        )
    if os.path.lexists(args.out):
        edited = (args.out / "edit.json").is_file()
        hint = f"{_train_command(args.out)} finishes it" if edited else "give another name"
        raise InputError(f"--out {args.out}: is there already; {hint}")
    for run in (args.run, getattr(args, "second", args.run)):
        if args.out.resolve().is_relative_to(run.resolve()):
            raise InputError(f"--out {args.out} is inside {run}, which is not to be changed")
    return args


def _source(path: Path) -> MemorySource:
    from launch.settings import quiet
    from moram_dist.use.source import read_source

    quiet()
    if not (path / "run.yaml").is_file():
        raise InputError(f"{path} is no run directory: it has no run.yaml")
    source = read_source(path)
    if not source.tasks:
        raise InputError(f"{path} has learned no task yet")
    return source


def _write(
    args: argparse.Namespace, run: EditedRun, edited: EditedMemory, left_out: str | None = None
) -> None:
    """Write the new run directory, then measure it."""
    from launch.editing.left_out import score_without
    from launch.editing.run_folder import edit_record, write_run
    from moram_dist.files import complete_folder

    has_more = len(run.benchmark.tasks) > len(edited.tasks)
    measures = not has_more and not args.write_only
    with complete_folder(args.out) as folder:
        write_run(folder, args.out, run, edited)
        found = score_without(folder, run, left_out) if left_out and measures else None
        record = edit_record(run, edited, found)
        record.write(folder)
    for line in record.lines:
        say(line)
    say(f"run directory: {args.out}", error=True)
    if not measures:
        say(f"{'go on learning' if has_more else 'measure it'} by: {_train_command(args.out)}")
        return
    from launch.moram import train

    ranks = [] if args.ranks is None else ["--ranks", str(args.ranks)]
    train([*_train_words(args.out), *ranks])


def _write_memory(out: Path, edited: EditedMemory) -> None:
    """Write the memory alone, into ``DIR/memory``."""
    from moram_dist.files import complete_folder

    with complete_folder(out) as folder:
        edited.write(folder / "memory")
    say(f"{edited.edit.what}.\nIt is {edited.edit.caution}.")
    say(f"memory: {out / 'memory'}", error=True)


def _train_words(out: Path) -> list[str]:
    return ["--recipe", str(out / "run.yaml"), "--output_dir", str(out)]


def _train_command(out: Path) -> str:
    return f"moram train {shlex.join(_train_words(out))}"


if __name__ == "__main__":
    make_output_last()
    sys.exit(main(sys.argv[1:]))
