"""Send what a tracking server has not got of runs that have ended.

    python -m moram_dist.tracking send RUN... [--tracking_uri URI]

The store is --tracking_uri, else MLFLOW_TRACKING_URI, else mlflow.db beside the run. To a store
that has nothing of a run all of it is sent, so this also copies runs from one store to another.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moram_dist.command_line import Parser
from moram_dist.redaction import clean_address, without_secrets
from moram_dist.registry import InputError
from moram_dist.tracking.addresses import store_of
from moram_dist.tracking.connect import prepare
from moram_dist.tracking.replay import Replay
from moram_dist.tracking.spool import spools


def main(words: list[str]) -> int:
    """Send each run; the exit code: 0 sent, 2 wrong input, 4 the store does not take it."""
    try:
        parser = Parser("python -m moram_dist.tracking", __doc__)
        parser.add_argument("command", choices=["send"])
        parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
        parser.add_argument("--tracking_uri")
        args = parser.parse_args(words)
        prepare(args.tracking_uri)
        for run_dir in args.runs:
            if not spools(run_dir):
                raise InputError(f"{run_dir} has nothing to send: it holds no tracked run")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for run_dir in args.runs:
        uri = store_of(run_dir, args.tracking_uri)
        try:
            Replay(uri, run_dir).send()
        except BlockingIOError:
            print(f"error: {run_dir} is being sent by a run at work", file=sys.stderr)
            return 2
        except Exception as error:  # a server can fail in many ways
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            shown = f"{clean_address(uri)} does not take {run_dir}: {without_secrets(reason)}"
            print(f"error: MLflow at {shown}", file=sys.stderr)
            return 4
        print(f"{run_dir}: MLflow at {clean_address(uri)} has all of it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
