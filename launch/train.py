"""Train a method on a sequence of tasks. All defaults: MoRAM on the embedded demo.

    deepspeed --num_gpus 2 launch/train.py --ds_config ds_configs/zero3.json
    deepspeed launch/train.py --ds_config ds_configs/zero3.json --model PATH_OR_HF_ID \
        --benchmark trace --data_dir DIR --output_dir RUN

The same command again goes on where it was. Exit codes, each with one line that says why:

    2   wrong input
    3   the loss is not finite
    4   the machine failed: a rank died or hangs, the disk is full
    75  stopped by a signal, with the state saved
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

ROOT = Path(__file__).resolve().parents[1]
# The launcher puts this file's folder on the path, not the repository.
sys.path.insert(0, str(ROOT))

from launch.flags import read_flags, usage  # noqa: E402
from moram_dist.registry import InputError, MachineError  # noqa: E402

if TYPE_CHECKING:
    from moram_dist.comm.watch import Watch
    from moram_dist.train.stop import Stopped

OWN_ERROR_AFTER_S = 5.0

OTHERS_LEAVE_S = 1.0
"""Where all were signalled, a lower rank speaks first, and its leaving ends the others."""


def main(*arguments: str, **flags: str) -> None:
    """Check everything, then train. Flags: every field of moram_dist.config, and --ds_config."""
    if "help" in flags or "h" in flags:
        print(usage(__doc__ or ""))
        return
    try:
        config, ds_path = read_flags(arguments, flags)
        from launch.session import prepare

        session = prepare(config, ds_path)
    except InputError as error:
        refuse(error)
    except MachineError as error:
        refuse(error, code=MachineError.EXIT_CODE)
    from moram_dist.train.stop import Stopped
    from moram_dist.train.trainer import NonFiniteLossError

    try:
        session.run()
    except InputError as error:  # found late: memory on disk that was changed or is not this base's
        refuse(error, watch=session.watch)
    except NonFiniteLossError as error:
        refuse(error, code=3, watch=session.watch)
    except MachineError as error:
        refuse(error, code=MachineError.EXIT_CODE, watch=session.watch)
    except Stopped as stopped:
        leave(stopped, session.watch)
    except Exception:
        session.watch.let_speak()
        raise


def unambiguous(words: list[str]) -> list[str]:
    """The command line as fire reads it without surprises.

    To fire, ``--nofoo`` means ``--foo False``, and what follows a ``-`` or ``--`` is not for us: a
    flag there would be dropped without a word.
    """
    out = []
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word in ("-", "--"):
            refuse(InputError(f"unexpected argument {word!r}; settings are given as --name value"))
        bare = word.startswith("--") and "=" not in word and following.startswith("--")
        out.append(f"{word}=True" if bare else word)
    return out


def refuse(error: Exception, code: int = 2, watch: Watch | None = None) -> NoReturn:
    """One line, from the main rank where it has it too, and an exit code from all."""
    rank = int(os.environ.get("RANK", 0))
    if rank:
        # What is wrong for all, the main rank says, and the launcher ends the others at once. One
        # that is still here has met something of its own, such as a folder its node does not see.
        time.sleep(OWN_ERROR_AFTER_S)
    who = f" (rank {rank})" if rank else ""
    print(f"error{who}:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    # No exception and no clean-up: nothing should add to that line. Ranks that wait for this one in
    # a collective are ended by the watch, before it is up by the launcher.
    if watch is not None:
        watch.leave(code)
    sys.stdout.flush()
    os._exit(code)


def leave(stopped: Stopped, watch: Watch) -> NoReturn:
    """After a signal: say what is saved. The same exit code from all ranks, and no clean-up."""
    from moram_dist.train.stop import EXIT_CODE

    rank = int(os.environ.get("RANK", 0))
    if rank and not stopped.together:
        time.sleep(OTHERS_LEAVE_S)
    if rank == 0 or not stopped.together:
        print(f"stopped by a signal{stopped.where}; the same command goes on", flush=True)
    sys.stdout.flush()
    watch.leave(0 if stopped.together else EXIT_CODE)
    os._exit(EXIT_CODE)


if __name__ == "__main__":
    import fire

    # Values stay text: fire would read 1e5, a,b or 007 as something else. The fields' types decide.
    fire.Fire(fire.decorators.SetParseFn(str)(main), command=unambiguous(sys.argv[1:]))
