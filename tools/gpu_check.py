"""Check and measure everything on a GPU, in minutes that are borrowed.

    python tools/gpu_check.py --out DIR --budget 480
    python tools/gpu_check.py --out DIR --device cpu --tiny       test of this command, no GPU
    python tools/gpu_check.py --out DIR --steps layer,decode      some of the steps

Each step writes its own file into DIR at once. A step that fails does not stop the next one, and
one that cannot run, or has no time left, says why in its file. docs/gpu.md describes the files.
Exit code 1: a step failed; 2: wrong input.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from moram_dist.command_line import Parser, run_command
from moram_dist.files import make_folder
from moram_dist.registry import InputError, unknown
from moram_dist.terminal import say
from tools.gpu.record import FAILED, How
from tools.gpu.steps import STEPS, WHOLE, run_step


def main(words: Sequence[str]) -> int:
    """Run the steps in turn. Returns the exit code."""
    began = time.monotonic()
    parser = Parser("python tools/gpu_check.py", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--budget", type=float, default=WHOLE, help="seconds in all (%(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    names = [step.name for step in STEPS]
    parser.add_argument("--steps", default=",".join(names), help="of %(default)s")
    given = parser.parse_args(words)
    wanted = given.steps.split(",")
    for name in wanted:
        if name not in names:
            raise unknown("step", name, names)
    if given.device == "cpu" and not given.tiny:
        raise InputError("--device cpu needs --tiny: the sizes of a GPU take hours")
    if not given.budget >= 0:
        raise InputError(f"--budget {given.budget} must be at least 0 seconds")
    if given.out.exists() and not given.out.is_dir():
        raise InputError(f"--out {given.out} is not a folder")
    make_folder(given.out)
    if given.device == "cpu":
        preload()
    there = given.device == "cuda" and has_cuda()
    failed = False
    steps = [step for step in STEPS if step.name in wanted]
    for step in steps:
        share = step.until / WHOLE if len(steps) == len(STEPS) else 1.0
        until = began + given.budget * share
        how = How(given.device, given.tiny, began=time.monotonic(), until=until)
        status, why = run_step(step, how, given.out, has_cuda=there)
        took = time.monotonic() - how.began
        say(f"{step.name:13} {took:6.1f} s  {status}{': ' * bool(why)}{why}")
        failed |= status == FAILED
    return int(failed)


def preload() -> None:
    """Import what most steps need: on a CPU their processes are forks of this one."""
    with suppress(ImportError):  # which a step then reports
        import tools.gpu.train  # noqa: F401


def has_cuda() -> bool:
    """Whether torch finds a GPU, asked in a process of its own: this one must not start CUDA."""
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return not subprocess.run([sys.executable, "-c", asked], timeout=120).returncode


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
