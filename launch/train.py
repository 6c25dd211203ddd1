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

OWN_ERROR_AFTER_S = 5.0

OTHERS_LEAVE_S = 1.0
"""Where all were signalled, a lower rank speaks first, and its leaving ends the others."""


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
    """One line, from the main rank where it has it too, and an exit code from all."""
    if _rank():
        # What is wrong for all, the main rank says, and the launcher ends the others at once. One
        # that is still here has met something of its own, such as a folder its node does not see.
        time.sleep(OWN_ERROR_AFTER_S)
    say_error(error, _who())
    end(code, watchdog)


def crash(
    error: Exception, folder: Path | None = None, watchdog: PeerWatchdog | None = None
) -> NoReturn:
    """One line for what nobody thought of, with the trace-back in a file of the run."""
    end(say_crash(error, folder, _who()), watchdog)


def end(code: int, watchdog: PeerWatchdog | None) -> NoReturn:
    """No exception and no clean-up: nothing should add to the line that was said.

    Ranks that wait for this one in a collective are ended by the watchdog, before it is up by the
    launcher.
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
    """After a signal: say what is saved. The same exit code from all ranks, and no clean-up."""
    from moram_dist.train.stop import EXIT_CODE

    if _rank() and not stopped.together:
        time.sleep(OTHERS_LEAVE_S)
    if _rank() == 0 or not stopped.together:
        say(f"stopped by a signal{stopped.where}; rerun the same command to resume")
    sys.stdout.flush()
    watchdog.leave(0 if stopped.together else EXIT_CODE)
    os._exit(EXIT_CODE)


def run(words: Sequence[str]) -> None:
    """The command, from its words."""
    make_output_last()
    try:
        check_words(words)
        flags = train_flags(words)
    except InputError as error:
        refuse(error)
    main(**flags)


if __name__ == "__main__":
    run(sys.argv[1:])
