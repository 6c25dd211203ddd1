"""Train a method on a sequence of tasks. All defaults: MoRAM on the embedded demo.

    moram train
    moram train --ranks 2 --model PATH_OR_HF_ID --benchmark trace --data_dir DIR --output_dir RUN
    deepspeed --num_gpus 2 launch/train.py --ds_config ds_configs/zero3.json

The second starts two processes on this machine, as the third does in a checkout. Rerun the same
command to resume. Exit codes, each with one line that says why:

    1   a fault of this program; the trace-back is in RUN/crash_<time>.log
    2   wrong input
    3   the loss is not finite
    4   the machine failed: a rank died or hangs, the disk is full
    75  stopped by a signal, with the state saved
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __name__ == "__main__" and not __package__:  # a script: its imports start at the checkout
    checkout = str(Path(__file__).resolve().parents[1])
    runpy.run_path(checkout, {"module": "launch.train"}, "__main__")
    sys.exit()

from launch.flags import read_flags, train_flags, usage
from moram_dist.command_line import INTERRUPTED, check_words, say_crash, say_error
from moram_dist.registry import InputError, MachineError
from moram_dist.terminal import make_output_last, say

if TYPE_CHECKING:
    from moram_dist.comm.watchdog import PeerWatchdog
    from moram_dist.train.stop import Stopped

OWN_ERROR_AFTER_S = 15.0
"""On a busy machine, rank 0 imports and checks as much later than another rank."""

OTHERS_LEAVE_S = 1.0
"""If all ranks got a signal, rank 0 reports first, and the others end when it exits."""


def main(*arguments: str, **flags: str) -> None:
    """Check everything, then train. Flags: every field of moram_dist.config, and --ds_config."""
    if "help" in flags or "h" in flags:
        say(usage(__doc__ or ""))
        return
    try:
        config, ds_path = read_flags(arguments, flags)
        from launch.session import prepare

        session = prepare(config, ds_path)
    except InputError as error:
        refuse(error)
    except MachineError as error:
        refuse(error, code=MachineError.EXIT_CODE)
    except KeyboardInterrupt:
        refuse("interrupted", code=INTERRUPTED)
    except Exception as error:
        crash(error)
    from moram_dist.train.stop import Stopped
    from moram_dist.train.trainer import NonFiniteLossError

    try:
        session.run()
    except InputError as error:  # found late: memory on disk that was changed or is not this base's
        refuse(error, watchdog=session.watchdog)
    except NonFiniteLossError as error:
        refuse(error, code=3, watchdog=session.watchdog)
    except MachineError as error:
        refuse(error, code=MachineError.EXIT_CODE, watchdog=session.watchdog)
    except Stopped as stopped:
        leave(stopped, session.watchdog)
    except KeyboardInterrupt:
        refuse("interrupted; rerun the same command to resume", INTERRUPTED, session.watchdog)
    except Exception as error:
        session.watchdog.let_speak()
        crash(error, session.run_dir.path, session.watchdog)


def refuse(error: Exception | str, code: int = 2, watchdog: PeerWatchdog | None = None) -> NoReturn:
    """Print one line, by the main rank if it has the same error, and exit with a code."""
    if _rank():
        # The main rank reports an error that all ranks have, and the launcher then ends the others.
        # A rank that is still alive then has its own error, such as a folder missing on its node.
        time.sleep(OWN_ERROR_AFTER_S)
    say_error(error, _who())
    end(code, watchdog)


def crash(
    error: Exception, folder: Path | None = None, watchdog: PeerWatchdog | None = None
) -> NoReturn:
    """Report an unexpected error in one line, and write the trace-back to a file of the run."""
    end(say_crash(error, folder, _who()), watchdog)


def end(code: int, watchdog: PeerWatchdog | None) -> NoReturn:
    """Exit without an exception or clean-up, so that nothing is printed after the error line.

    The watchdog ends the ranks that wait for this one in a collective, before the launcher does.
    """
    if watchdog is not None:
        watchdog.leave(code)
    sys.stdout.flush()
    os._exit(code)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _who() -> str:
    return f" (rank {_rank()})" if _rank() else ""


def leave(stopped: Stopped, watchdog: PeerWatchdog) -> NoReturn:
    """After a signal: print what is saved, and exit without clean-up, all with the same code."""
    from moram_dist.train.stop import EXIT_CODE

    if _rank() and not stopped.together:
        time.sleep(OTHERS_LEAVE_S)
    if _rank() == 0 or not stopped.together:
        say(f"stopped by a signal{stopped.where}; rerun the same command to resume")
    sys.stdout.flush()
    watchdog.leave(0 if stopped.together else EXIT_CODE)
    os._exit(EXIT_CODE)


def run(words: Sequence[str]) -> None:
    """Run the command, given its words."""
    make_output_last()
    try:
        check_words(words)
        flags = train_flags(words)
    except InputError as error:
        refuse(error)
    main(**flags)


if __name__ == "__main__":
    run(sys.argv[1:])
