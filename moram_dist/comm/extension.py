"""Build the extensions that torch compiles, with messages and a safe lock.

Examples are DeepSpeed's for CPU ranks on one machine, and ours for atoms on a CPU. torch compiles
with ninja, which rebuilds if anything has changed: the interpreter, torch, ninja itself. It does so
silently, and guards the folder by a file ``lock`` that a killed build leaves behind, so that others
wait for ever. Here a process that loads also holds our lock, which the system frees if it dies.
"""

from __future__ import annotations

import inspect
import os
import platform
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from moram_dist.comm import env
from moram_dist.comm.rendezvous import Rendezvous
from moram_dist.files import exclusive_lock
from moram_dist.registry import InputError, MachineError
from moram_dist.terminal import say

NAME = "deepspeed_shm_comm"
"""The extension that DeepSpeed loads when CPU ranks join."""

SILENT_S = 5.0
"""A wait this long is reported; loading an extension that is already built takes less."""

AGAIN_S = 30.0
"""Seconds between messages of a process that builds or waits."""

RELEASE_S = 1.0
"""torch closes its lock file before removing it: a file that stays closed this long is stale."""

LIMIT_S = 1800.0
"""Longest wait for other ranks' builds, which may take minutes on a slow shared disk."""


Still = Callable[[], None]
"""Called from time to time in a long wait, to signal that this process does not hang."""


def guard(still: Still) -> None:
    """Make this process load every extension by ``build``, with the installed ninja.

    Another version on PATH (outside of an activated environment) cannot read this version's log,
    and then the two would rebuild everything in turn.
    """
    import ninja
    from torch.utils import cpp_extension

    path = os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != ninja.BIN_DIR:
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, path])
    compile_ = cpp_extension._jit_compile
    signature = inspect.signature(compile_)

    def guarded(*args: Any, **named: Any) -> Any:
        place = Path(signature.bind(*args, **named).arguments["build_directory"])
        return build(place, partial(compile_, *args, **named), still)

    if not hasattr(compile_, "guarded"):
        guarded.guarded = True  # type: ignore[attr-defined]
        cpp_extension._jit_compile = guarded


def prepare(rendezvous: Rendezvous, load: Callable[[], object]) -> None:
    """Load the extensions of CPU ranks before they join. All ranks call it, after ``guard``.

    A build is not a hang, so it has a separate limit, independent of ``--wait_limit``.

    Args:
        rendezvous: where ranks wait for each other.
        load: loads further extensions than DeepSpeed's.

    Raises:
        MachineError: a build fails, or takes longer than ``LIMIT_S``.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None and deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        builder.load()
    load()
    if rendezvous.arrive("loaded"):
        return
    for _ in range(int(LIMIT_S / AGAIN_S)):
        if rendezvous.wait_for_all("loaded", AGAIN_S):
            return
        if env.rank() == 0:
            _say("waiting for ranks that have not loaded their extensions yet ...")
    raise MachineError(f"extensions were not loaded on every machine within {LIMIT_S:.0f} s")


def build(place: Path, load: Callable[[], Any], still: Still = lambda: None) -> Any:
    """Load an extension, and build it first if anything has changed.

    Args:
        place: the folder in which torch builds it.
        load: loads it by ``torch.utils.cpp_extension``.
        still: called while this takes long.

    Returns:
        The result of ``load``.

    Raises:
        MachineError: the build fails; with the compiler's first error.
    """
    from torch.utils import cpp_extension

    run_ninja = cpp_extension._run_ninja_build

    def announced(build_directory: str, *rest: Any, **named: Any) -> None:
        if not _has_work(Path(build_directory)):
            return run_ninja(build_directory, *rest, **named)
        _say(f"building extension {place.name} in {place} (once, up to minutes) ...")
        with _reminders(f"still building {place.name}", still):
            run_ninja(build_directory, *rest, **named)

    try:
        with _sole_builder(place, still), _outside_of_make():
            cpp_extension._run_ninja_build = announced
            return load()
    except (RuntimeError, ImportError, OSError) as error:
        raise MachineError(
            f"extension {place.name} cannot be built in {place}: {_first_error(str(error))}"
        ) from None
    finally:
        cpp_extension._run_ninja_build = run_ninja


def held_by(place: Path) -> str | None:
    """Describe the process that holds torch's lock there; None if none does: the lock is stale.

    torch's builder keeps the lock file open while it builds.
    """
    lock = place / "lock"
    try:
        owner = lock.stat().st_uid
    except OSError:
        return None
    if owner != os.geteuid() and os.geteuid() != 0:
        return f"user {owner}, whose processes cannot be seen; if there is no build, delete {lock}"
    target, holders = str(lock.resolve()), []
    for process in _processes():
        with suppress(OSError):  # it has ended, or is another user's
            if any(_link(file) == target for file in (process / "fd").iterdir()):
                holders.append(process.name)
    return f"process {', '.join(holders)}" if holders else None


def _processes() -> Iterator[Path]:
    """``/proc`` folders of this machine's processes; none without ``/proc``."""
    return Path("/proc").glob("[0-9]*")


def _link(path: Path) -> str:
    """Target of a symbolic link; empty if it is gone."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


@contextmanager
def _sole_builder(place: Path, still: Still) -> Iterator[None]:
    """Context in which no other process builds there; removes a stale lock of torch."""
    with ExitStack() as stack:
        file = _locked(place / ".moram.lock", stack, still)
        if file:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
        _clear(place, still)
        yield


def _locked(path: Path, stack: ExitStack, still: Still) -> BinaryIO | None:
    """Our lock, held until the stack closes; None on a disk without locks: torch's must suffice."""
    wait = _Wait(still)
    while True:
        try:
            return stack.enter_context(exclusive_lock(path, wait=False))
        except BlockingIOError:
            wait.tick(f"the build in {path.parent} by {path.read_text() or 'another process'}")
        except (OSError, InputError):
            return None


def _clear(place: Path, still: Still) -> None:
    """Wait for builds that do not use our lock, then remove torch's lock if it is stale."""
    lock, wait, held = place / "lock", _Wait(still), time.monotonic()
    while lock.exists():
        if holder := held_by(place):
            held = time.monotonic()
        elif time.monotonic() - held > RELEASE_S:
            _say(f"removing {lock}: left by a build that was killed")
            _end_orphans(place)
            lock.unlink(missing_ok=True)
            return
        wait.tick(f"the build in {place} by {holder or 'a process that has just ended'}")


class _Wait:
    """Reports a long wait and its reason, and repeats that from time to time."""

    def __init__(self, still: Still) -> None:
        self.still, self.next = still, time.monotonic() + SILENT_S

    def tick(self, what: str) -> None:
        if time.monotonic() > self.next:
            self.next = time.monotonic() + AGAIN_S
            self.still()
            _say(f"waiting for {what} ...")
        time.sleep(0.1)


def _end_orphans(place: Path) -> None:
    """End ninja processes that outlived their parent: two would write the same files."""
    for process in _processes():
        with suppress(OSError):
            ninja = (process / "comm").read_text().strip() == "ninja"
            if ninja and _link(process / "cwd") == str(place.resolve()):
                os.kill(int(process.name), signal.SIGTERM)
                while _link(process / "cwd"):  # a zombie has none
                    time.sleep(0.1)


def _has_work(place: Path) -> bool:
    """Whether ninja's dry run reports work to do; torch has written its build file by now."""
    said = subprocess.run(["ninja", "-n"], cwd=place, capture_output=True, text=True)
    return said.returncode != 0 or "no work to do" not in said.stdout


@contextmanager
def _outside_of_make() -> Iterator[None]:
    """Context without a surrounding make's flags: ninja complains of the job server they name."""
    flags = os.environ.pop("MAKEFLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["MAKEFLAGS"] = flags


@contextmanager
def _reminders(line: str, still: Still) -> Iterator[None]:
    started, done = time.monotonic(), threading.Event()

    def remind() -> None:
        while not done.wait(AGAIN_S):
            still()
            _say(f"{line} ({time.monotonic() - started:.0f} s) ...")

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _first_error(text: str) -> str:
    """The compiler's first error, else the first line."""
    found = re.search(r"^.*\berror: .*$", text, re.MULTILINE)
    return (found[0] if found else text).strip().partition("\n")[0]


def _say(line: str) -> None:
    say(line, error=True)
