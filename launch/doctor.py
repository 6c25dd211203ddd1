"""Check that this machine can train: one line a check, and a remedy under what is not ok.

    moram doctor [--output_dir RUN] [--tracking_uri URI] [--port N]

In a checkout, python launch/doctor.py is the same. --output_dir, --tracking and --tracking_uri are
those of moram train; --port is where the launcher lets ranks meet. It takes half a minute, and
starts a rank on each GPU, or two on the CPU.

Exit codes: 0 nothing is at fault (there may be warnings), 1 something is, 2 wrong input.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__" and not __package__:  # a script: its imports start at the checkout
    checkout = str(Path(__file__).resolve().parents[1])
    runpy.run_path(checkout, {"module": "launch.doctor"}, "__main__")
    sys.exit()

from launch import checks, codecs
from launch.checks import CheckResult
from moram_dist.command_line import Parser, run_command
from moram_dist.config import DEFAULT_METHOD, MethodConfig, RecordConfig, RunConfig
from moram_dist.registry import InputError
from moram_dist.terminal import make_output_last, say
from moram_dist.tracking import open_tracker, store_of


def planned(argv: Sequence[str]) -> dict[str, Callable[[], CheckResult]]:
    """The checks by name, in their order. Raises InputError for invalid flags."""
    parser = Parser("moram doctor", __doc__)
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--tracking", default="mlflow")
    parser.add_argument("--tracking_uri")
    parser.add_argument("--port", type=int, default=os.environ.get("MASTER_PORT", "29500"))
    args = parser.parse_args(argv)
    if not 0 < args.port < 65536:
        raise InputError(f"--port must be a number from 1 to 65535, got {args.port}")
    record = RecordConfig(output_dir=args.output_dir, tracking=args.tracking)
    run_dir = RunConfig(method=MethodConfig(method=DEFAULT_METHOD), record=record).run_dir
    open_tracker(args.tracking, args.tracking_uri)
    uri = store_of(run_dir, args.tracking_uri)
    models = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    out: dict[str, Callable[[], CheckResult]] = {
        "python": checks.python,
        "packages": partial(checks.packages, tracked=args.tracking != "none"),
        "pictures": codecs.pictures,
        "compiler": checks.compiler,
        "extension lock": checks.extension_lock,
        "extension folder": _extension_folder,
        "run directory": partial(checks.folder, run_dir, choose="--output_dir"),
        "temporary files": partial(checks.folder, Path(tempfile.gettempdir()), choose="TMPDIR"),
        "model cache": partial(checks.folder, models, choose="HF_HOME", needed=False),
        "tracking": partial(checks.tracking, uri),
        "port": partial(checks.port, args.port),
        "gpu": checks.gpu,
        "flash-attn": checks.flash_attn,
        "ranks": checks.ranks,
    }
    if args.tracking == "none":
        del out["tracking"]
    return out


def _extension_folder() -> CheckResult:
    return checks.folder(checks.extensions(), choose="TORCH_EXTENSIONS_DIR")


def examine(checks_by_name: dict[str, Callable[[], CheckResult]]) -> int:
    """Run all checks and print their results. Returns the exit code."""
    width, states = max(map(len, checks_by_name)), []
    for name, check in checks_by_name.items():
        try:
            result = check()
        except ImportError as error:
            result = CheckResult(
                f"not checked: {error}", "fault", "see packages, then run this again"
            )
        # An unexpected error is a finding too, and the other checks still run.
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            result = CheckResult(
                f"not checked: {what}", "fault", "fix the problem named in this line"
            )
        states.append(result.state)
        say(f"{result.state:8} {name:{width}}  {result.found}")
        if result.remedy:
            say(f"{'':8} {'':{width}}  -> {result.remedy}")
    faults, warnings = states.count("fault"), states.count("warning")
    say(f"\n{len(states)} checks: {faults} at fault, {warnings} with a warning")
    return 1 if faults else 0


def main(argv: Sequence[str]) -> int:
    """Examine this machine. Returns the exit code. Raises InputError."""
    return examine(planned(argv))


if __name__ == "__main__":
    make_output_last()
    sys.exit(run_command(main, sys.argv[1:]))
