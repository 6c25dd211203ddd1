"""Send the missing records of finished runs to a tracking server.

    moram tracking send RUN... [--tracking_uri URI]

Without the installed command, run python -m moram_dist.tracking. The store is --tracking_uri, else
MLFLOW_TRACKING_URI, else mlflow.db next to the run. A store without the run gets all of it, so this
also copies runs from one store to another.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from moram_dist.command_line import Parser, run_command
from moram_dist.redaction import clean_address, without_secrets
from moram_dist.registry import InputError, MachineError
from moram_dist.terminal import make_output_last, say
from moram_dist.tracking.addresses import store_of
from moram_dist.tracking.already_spooled import recall
from moram_dist.tracking.connect import prepare
from moram_dist.tracking.replay import MlflowReplay
from moram_dist.tracking.spool import spools


def main(words: Sequence[str]) -> int:
    """Send each run. Exit codes: 0 sent, 2 wrong input, 4 the store does not accept it."""
    return run_command(_send, words)


def _send(words: Sequence[str]) -> None:
    parser = Parser("moram tracking", __doc__)
    parser.add_argument("command", choices=["send"])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--tracking_uri")
    args = parser.parse_args(words)
    prepare(args.tracking_uri)
    for run_dir in args.runs:
        _check(run_dir)
    for run_dir in args.runs:
        uri = store_of(run_dir, args.tracking_uri)
        try:
            MlflowReplay(uri, run_dir).send()
        except BlockingIOError:
            raise InputError(f"{run_dir} is being sent by a run at work") from None
        except (InputError, MachineError):
            raise
        except Exception as error:  # a server can fail in many ways
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MachineError(
                f"MLflow at {clean_address(uri)} does not take {run_dir}: {without_secrets(reason)}"
            ) from None
        say(f"{run_dir}: MLflow at {clean_address(uri)} has all of it")


def _check(run_dir: Path) -> None:
    """Raises InputError where there is nothing to send."""
    try:
        paths = spools(run_dir)
        if not paths:
            raise InputError(f"{run_dir} has nothing to send: it holds no tracked run")
        if recall(paths[0]).sequence is None:
            raise InputError(f"{paths[0]} is damaged: it does not say whose run it is")
    except OSError as error:
        raise InputError(f"{run_dir} cannot be read: {error.strerror}") from None


if __name__ == "__main__":
    make_output_last()
    sys.exit(main(sys.argv[1:]))
