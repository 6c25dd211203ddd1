"""Inspect a memory without a model.

    moram memory show RUN/memory      tasks, atoms, sizes, hashes
    moram memory verify RUN/memory    read every file; exit 2 if one is damaged or missing

Without the installed command, run python -m moram_dist.memory.
Files hold whole atoms, not a rank's shard, so a memory loads on any number of ranks without
resharding.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles, Shape
from moram_dist.command_line import run_command
from moram_dist.registry import InputError, unknown
from moram_dist.terminal import make_output_last, say


def show(files: MemoryFiles, manifest: Manifest) -> str:
    """The manifest as text, one line per task, with the state of each task's files."""
    adapted = f"{len(manifest.modules)} linears of {_shown(manifest.base['name'])}"
    lines = [
        f"{_shown(manifest.method)} on {adapted} ({_shown(manifest.base['fingerprint'][:12])})",
        f"{'task':24} {'atoms':>7} {'bytes':>12}  {'sha256':12}  state",
    ]
    for task in manifest.tasks:
        try:
            state, atoms = "verified", str(_atoms(files.shapes(task)))
            if task.recogniser is not None:
                files.shapes(task.recogniser)
            if task.imported is not None:
                state += f", imported: a LoRA of rank {task.imported.rank}"
        except InputError as error:
            state, atoms = str(error), "?"
        name, digest = _shown(task.name), task.sha256[:12]
        size = sum(stored.bytes for stored in task.files)
        lines.append(f"{name:24} {atoms:>7} {size:>12,}  {digest}  {state}")
    total = sum(stored.bytes for task in manifest.tasks for stored in task.files)
    lines.append(f"{len(manifest.tasks)} tasks, {total:,} bytes")
    for edit in manifest.edits:
        sources = " and ".join(source[:12] for source in edit.sources)
        lines.append(_shown(f"{edit.line} Made from manifest {sources}."))
    return "\n".join(lines)


def verify(files: MemoryFiles, manifest: Manifest) -> str:
    """Check every file; returns one line if all are intact.

    Raises:
        InputError: names the first file that is missing or differs from the published one.
    """
    for task in manifest.tasks:
        for stored in task.files:
            files.shapes(stored)
    return f"{len(manifest.tasks)} tasks verified"


COMMANDS = {"show": show, "verify": verify}


def main(words: Sequence[str]) -> int:
    """Run one command and return the exit code."""
    return run_command(run, words)


def run(words: Sequence[str]) -> int:
    """Run one command. Raises InputError on wrong words, or if there is no memory."""
    if list(words) in (["-h"], ["--help"]):
        say((__doc__ or "").strip())
        return 0
    if len(words) != 2:
        raise InputError("usage: moram memory show|verify RUN/memory")
    command, folder = words
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    files = MemoryFiles(Path(folder))
    manifest = files.manifest()
    if manifest is None:
        raise InputError(f"{files.path} does not exist: no memory was published there")
    say(COMMANDS[command](files, manifest))
    return 0


def _shown(text: str) -> str:
    """Escape characters that a terminal would take for commands."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _atoms(shapes: Mapping[str, Shape]) -> int:
    """Number of rank-1 atoms in a task's file, over all layers; 0 for a method without atoms."""
    return sum(shape[0] for name, shape in shapes.items() if name.endswith(".keys") and shape)


if __name__ == "__main__":
    make_output_last()
    sys.exit(main(sys.argv[1:]))
