"""Collect the wheels that ``tools/gpu_check.py`` needs on a GPU machine without a network.

    python tools/gpu_wheels.py --out wheels
    python tools/gpu_wheels.py --out wheels --python 3.12       for another version of Python

For x86-64 Linux that has torch and what comes with its usual tools. There, install with

    pip install --no-index --no-deps --upgrade --target site wheels/*.whl
    export PYTHONPATH=site

Prints the sizes. Exit code 2 above 64 MiB, or if pip fails: then nothing is written.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from launch.versions import pins  # noqa: E402
from moram_dist.command_line import Parser, run_command  # noqa: E402
from moram_dist.files import make_folder  # noqa: E402
from moram_dist.registry import InputError  # noqa: E402
from moram_dist.terminal import say  # noqa: E402

PINNED = ("transformers", "pydantic", "rapidfuzz", "nltk")
"""Of requirements.txt, what a machine for GPU work lacks, or has in an older version."""

SOURCES = ("deepspeed", "rouge-score")
"""Likewise, but published as sources: built here, DeepSpeed without its operations."""

BEHIND = {
    "annotated-types": "0.8.0",
    "defusedxml": "0.7.1",
    "einops": "0.8.2",
    "hjson": "3.1.0",
    "msgpack": "1.2.4",
    "pydantic-core": "2.50.5",
    "typing-extensions": "4.16.0",
    "typing-inspection": "0.4.5",
}
"""What these need in turn and requirements.txt does not name."""

LIMIT = 64 * 2**20
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def requirements() -> tuple[list[str], list[str]]:
    """``name==version`` of published wheels, and of those that are built here."""
    of = pins(ROOT / "requirements.txt")
    named = {**{name: of[name] for name in PINNED}, **BEHIND}
    wheels = [f"{name}=={version}" for name, version in named.items()]
    return wheels, [f"{name}=={of[name]}" for name in SOURCES]


def main(words: Sequence[str]) -> int:
    """Collect the wheels into a new folder. Returns the exit code."""
    parser = Parser("python tools/gpu_wheels.py", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder, which must not exist")
    here = platform.python_version().rpartition(".")[0]
    parser.add_argument("--python", default=here, help="version there, as 3.12 (%(default)s)")
    given = parser.parse_args(words)
    if given.out.exists():
        raise InputError(f"--out {given.out} exists; choose another folder")
    make_folder(given.out.absolute().parent)
    with tempfile.TemporaryDirectory(dir=given.out.absolute().parent, prefix=".wheels") as place:
        collect(Path(place), given.python)
        total = check_size(Path(place))
        shutil.copytree(place, given.out)
    say(f"{total / 2**20:.1f} MiB in {given.out}")
    return 0


def collect(folder: Path, python: str) -> None:
    """Download and build. Raises InputError with pip's last line if it fails."""
    wheels, sources = requirements()
    there = [word for name in PLATFORMS for word in ("--platform", name)]
    there += ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    pip(["download", "--no-deps", *there, "--dest", str(folder), *wheels])
    pip(["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), *sources])


def pip(words: Sequence[str]) -> None:
    """Run pip without a word of its own."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    environment = {**os.environ, "DS_BUILD_OPS": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"pip {words[0]} failed: {lines[-1]}")


def check_size(folder: Path) -> int:
    """Bytes of all files, which are printed. Raises InputError if they are too many."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for name, size in sizes.items():
        say(f"{size / 2**20:7.2f} MiB  {name}")
    total = sum(sizes.values())
    if total > LIMIT:
        raise InputError(
            f"{total / 2**20:.1f} MiB of wheels, but only {LIMIT // 2**20} MiB may be carried: "
            "leave a package out"
        )
    return total


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
