"""Give the commands thousands of wrong inputs; each must be refused in one line or must work.

    python tools/fuzz.py --seed 0 --inputs 2000
    python tools/fuzz.py --seed 0 --only recipes:17

Seven areas take turns: flags, recipes, YAML listings, DeepSpeed files, model folders, memory
folders, and the files of a run that eval/run.py reads. An input depends only on (seed, area,
index). Faults are a trace-back or a crash, an undocumented exit code, more than 5 s of CPU, and
files written by a command that refused its input. Each input has its own process, forked after the
imports. Exit code 1 if there was a fault; the first ones are printed with commands to repeat them.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from moram_dist.registry import MachineError, unknown
from moram_dist.terminal import say
from tools.fuzz_inputs import AREAS, QUICK, ROOT, Do

CPU_S, WALL_S = 5, 60
SHOWN = 20
"""Number of faults that are printed."""


@dataclass(frozen=True)
class Result:
    """The result of one input."""

    area: str
    index: int
    state: str
    """ok, refused or fault."""

    said: str


def one(area: str, index: int, seed: int, run: Path) -> Result:
    """Make an input and give it to its command, in a separate process."""
    rng = Random(f"{seed}:{area}:{index}")
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as streams:
        folder = Path(name)
        do = AREAS[area](rng, folder, run)
        before = listing(folder)
        code = in_a_child(do, folder, Path(streams))
        said = (Path(streams) / "err").read_text(encoding="utf-8", errors="backslashreplace")
        state, why = judge(code, said, written=listing(folder) != before)
        return Result(area, index, state, why)


def judge(code: int, said: str, *, written: bool) -> tuple[str, str]:
    """Decide whether a command may end like this. Returns the state, and the reason of a fault."""
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if code == -signal.SIGXCPU:
        return "fault", f"more than {CPU_S} s of CPU"
    if code == -signal.SIGALRM:
        return "fault", f"not done after {WALL_S} s"
    if "Traceback" in said or code not in (0, 2, 4):
        return "fault", f"exit code {code}: {last}"
    if code and len(errors) != 1:
        return "fault", f"exit code {code} with {len(errors)} lines of error: {last}"
    if code and written:
        return "fault", f"refused, and yet something was written: {last}"
    return ("refused", errors[0]) if code else ("ok", "")


def in_a_child(
    do: Do, folder: Path, streams: Path, cpu_s: int = CPU_S, wall_s: int = WALL_S
) -> int:
    """The exit code of ``do`` in a fork; minus the signal's number if a signal ended it.

    SIGALRM stands for the time limit ``wall_s``, SIGXCPU for that of the CPU.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for descriptor, stream in ((1, "out"), (2, "err")):
                opened = os.open(streams / stream, os.O_WRONLY | os.O_CREAT)
                os.dup2(opened, descriptor)
            os.chdir(folder)
            code = do() or 0
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
        finally:
            os._exit(code)
    deadline = time.monotonic() + wall_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM


def listing(folder: Path) -> dict[str, Any]:
    """All paths in a folder, with the attributes that writing would change."""
    out: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        out[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return out


def import_all() -> None:
    """Import the commands' modules once for all children."""
    import matplotlib.pyplot
    import safetensors.torch
    import transformers.models.llama.modeling_llama

    import eval.report.write
    import eval.run
    import launch.session
    import launch.submit
    import moram_dist.memory
    from moram_dist.train import ds_check

    ds_check.check({}, path=Path("none"))  # imports DeepSpeed
    del matplotlib, safetensors, transformers, eval, launch, moram_dist


def make_run(folder: Path) -> Path:
    """Make a small successful run, whose files are then spoilt."""

    def do() -> None:
        from launch import train

        train.run([*QUICK, "--ds_config", str(ROOT / "ds_configs/zero2.json"), "--output_dir", "r"])

    code = in_a_child(do, folder, folder, cpu_s=900, wall_s=900)
    if code:
        raise MachineError(f"the run to spoil failed: {(folder / 'err').read_text()[-500:]}")
    return folder / "r"


def fuzz(seed: int, chosen: Sequence[tuple[str, int]], tell: Callable[[Result], None]) -> None:
    """Try the inputs, and pass each result to ``tell``."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_URI": ""}
    import_all()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder))
        for area, index in chosen:
            tell(one(area, index, seed, run))


def main(argv: Sequence[str]) -> int:
    """Fuzz, print the table and the first faults. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=2000, help="over all areas [2000]")
    parser.add_argument(
        "--only", metavar="AREA", help="some areas, joined by commas; or AREA:INDEX"
    )
    args = parser.parse_args(argv)
    names, _, index = (args.only or ",".join(AREAS)).partition(":")
    areas = names.split(",")
    for area in areas:
        if area not in AREAS:
            raise unknown("area", area, AREAS)
    chosen = [(areas[n % len(areas)], n // len(areas)) for n in range(args.inputs)]
    if index:
        chosen = [(areas[0], int(index))]
    counts: Counter[tuple[str, str]] = Counter()
    faults: list[Result] = []

    def tell(result: Result) -> None:
        counts[result.area, result.state] += 1
        if result.state == "fault":
            faults.append(result)
        if index:
            say(f"{result.state}: {result.said}")

    fuzz(args.seed, chosen, tell)
    say(f"{'area':12} {'inputs':>7} {'ok':>7} {'refused':>8} {'faults':>7}")
    for area in areas:
        ok, refused, bad = (counts[area, state] for state in ("ok", "refused", "fault"))
        say(f"{area:12} {ok + refused + bad:7} {ok:7} {refused:8} {bad:7}")
    for fault in faults[:SHOWN]:
        say(f"{fault.area}:{fault.index}  {fault.said[:300]}")
        say(f"    python tools/fuzz.py --seed {args.seed} --only {fault.area}:{fault.index}")
    return 1 if faults else 0


if __name__ == "__main__":
    from moram_dist.command_line import run_command

    sys.exit(run_command(main, sys.argv[1:]))
