"""Command lines that report a mistake in one line. Standard library only: the doctor needs that."""

from __future__ import annotations

import argparse
import errno
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from moram_dist.redaction import without_secrets
from moram_dist.registry import InputError, MachineError
from moram_dist.terminal import lost_output, one_line, quoted, say

INTERRUPTED = 130
"""Exit code after Ctrl-C, the same as in shells."""


MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE),
}
"""System errors for a full or broken disk, or for a machine that has run out of a resource."""


EXTRAS = {
    **dict.fromkeys(("accelerate", "deepspeed", "ninja"), "train"),
    **dict.fromkeys(("nltk", "rapidfuzz", "rouge_score", "sacrebleu", "sentencepiece"), "eval"),
    **dict.fromkeys(("PIL", "matplotlib"), "report"),
    "datasets": "data",
    **dict.fromkeys(("fastapi", "openai", "uvicorn"), "serve"),
    "lm_eval": "general",
    "mlflow": "track",
}
"""Package, as it is imported -> the extra of moram-dist that installs it."""


class Parser(argparse.ArgumentParser):
    """Raises InputError with one line where argparse would print its usage and exit."""

    def __init__(self, command: str, description: str | None) -> None:
        """``command`` is the command as the user types it."""
        super().__init__(
            command,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but accept dashes for underscores in the name of a flag."""
        return super().parse_known_args([spelled(word) for word in args], namespace)

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of exiting."""
        raise InputError(message)


def spelled(word: str) -> str:
    """Replace dashes in a flag's name: ``--top-k=a-b`` to ``--top_k=a-b``. Keep all other words."""
    name, given, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{given}{value}" if name.startswith("--") else word


def run_command(main: Callable[[Sequence[str]], int | None], words: Sequence[str]) -> int:
    """Run a command and return its exit code; an error is one line on standard error.

    Args:
        main: takes the words and returns an exit code, None for 0.
        words: the command line without the command's own name.
    """
    try:
        check_words(words)
        code = main(words) or 0
    except InputError as error:
        say_error(error)
        return 2
    except MachineError as error:
        say_error(error)
        return MachineError.EXIT_CODE
    except KeyboardInterrupt:
        say_error("interrupted")
        return INTERRUPTED
    except Exception as error:
        return say_crash(error)
    if (lost := lost_output()) is not None:
        say_error(f"standard output cannot be written: {lost.strerror}")
        return MachineError.EXIT_CODE
    return code


def check_words(words: Sequence[str]) -> None:
    """Raises InputError on a word that is not UTF-8: the files of a run cannot store it."""
    for word in words:
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            raise InputError(f"not UTF-8: {quoted(word)}; give files names in UTF-8")


def say_error(error: object, who: str = "") -> None:
    """Print an error in one line, without passwords. ``who`` is a rank, in brackets."""
    say(f"error{who}: {one_line(without_secrets(str(error)))}", error=True)


def say_crash(error: BaseException, folder: Path | None = None, who: str = "") -> int:
    """Report an unexpected error in one line and return the exit code.

    The trace-back is written to a file, unless the machine failed: then the line is enough.

    Args:
        error: the exception.
        folder: the run's folder. Without one, or if it cannot be written, the current folder.
        who: a rank, in brackets.
    """
    if isinstance(error, ModuleNotFoundError) and (name := top_level(error)) in EXTRAS:
        say_error(f"{name} is not installed: pip install 'moram-dist[{EXTRAS[name]}]'", who)
        return 2
    if isinstance(error, MemoryError):
        say_error("out of memory", who)
        return MachineError.EXIT_CODE
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        say_error(f"{error.strerror}: {error.filename}", who)  # the name came from the user
        return 2
    if isinstance(error, OSError) and error.errno in MACHINE:
        where = f"{error.filename}: " if error.filename is not None else ""
        say_error(f"{where}{error.strerror}", who)
        return MachineError.EXIT_CODE
    trace = without_secrets("".join(traceback.format_exception(error)))
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    own = "a fault of this program, not of your input"
    if type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        own = "docs/troubleshooting.md says what takes less memory"
    path = _keep(trace, folder)
    if path is None:
        say(trace, error=True)
        say_error(f"{what} ({own}); the trace-back is above", who)
    else:
        say_error(f"{what} ({own}); the trace-back is in {path}", who)
    return 1


def top_level(error: ModuleNotFoundError) -> str:
    """The name of the missing package, without that of a module in it."""
    return (error.name or "").partition(".")[0]


def _keep(trace: str, folder: Path | None) -> Path | None:
    """Write a trace-back to the first of three folders that can be written."""
    rank = f"_rank{os.environ['RANK']}" if os.environ.get("RANK", "0") != "0" else ""
    name = f"crash_{time.strftime('%Y%m%d-%H%M%S')}{rank}.log"
    places = [Path.cwd, lambda: Path(tempfile.gettempdir())]
    for place in (lambda: folder, *places):
        try:
            where = place()
            if where is None or not where.is_dir():
                continue
            path = where.absolute() / name
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(trace)
        except (OSError, ValueError):
            continue
        return path
    return None
