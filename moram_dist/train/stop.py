"""Stop a run on a signal: it saves its state and exits with a special exit code.

A launcher may signal one rank only, or one after the other. So during training steps a signal only
sets a flag, and ranks compare their flags about twice a second, before a micro-batch. At other
times (loading, evaluation) there is no unsaved state, and the rank exits at once.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from moram_dist.comm import env
from moram_dist.comm.poll import Poll

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: stopped by a signal; rerun the same command to resume."""

LEAVE_AFTER_S = 25.0
"""Time after the first signal at which a rank that still waits is ended."""

AGAIN_AFTER_S = 0.05
"""Delay before a stop that was lost in a finalizer is signalled again; the finalizer has ended."""

REPEATED_AFTER_S = 3.0
"""A second signal within this time counts as the first one, repeated by a launcher."""


class Stopped(BaseException):
    """The run was asked to stop. Not an Exception, because trackers catch those."""

    def __init__(self, *, together: bool) -> None:
        """``together``: whether all ranks stop here, or only this one."""
        super().__init__()
        self.together = together
        self.where = ""


class StopSignals:
    """A context in which some signals stop the run. Main thread only; created by all ranks."""

    def __init__(self, names: str, *, limit_s: float = env.LIMIT_S) -> None:
        """``names``: as in ``RecordConfig.stop_signals``; ``limit_s``: of a collective."""
        self.signals = [signal.Signals[name] for name in names.split(",") if name]
        self.control = env.control_group(limit_s)
        self._poll = Poll(self.control)
        self.asked = False
        self._held = False

    def __enter__(self) -> StopSignals:
        """Install the handlers."""
        self._before: dict[int, Any] = {s: signal.signal(s, self._handle) for s in self.signals}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Restore the old handlers. After a signal, the watching thread still limits the time.

        Ranks that stop together exit together: a launcher ends the others once one has exited.
        """
        if isinstance(error, Stopped) and error.together:
            env.barrier()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook
        signal.set_wakeup_fd(self._wakeup)
        if not self.asked:
            self._writer.close()
            self._thread.join()
            self._reader.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """During training steps: a signal waits for ``check``."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.asked:  # it came after the last check
            raise Stopped(together=False)

    def check(self, *, now: bool = False) -> None:
        """Raise Stopped on all ranks if one was signalled. All ranks call it together.

        ``now``: compare flags at once; otherwise only if that is some time ago (``Poll``).
        """
        if self._poll(self.asked, now=now):
            raise Stopped(together=True)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            if not self._held:
                raise Stopped(together=False)

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Closing generators and ``__del__`` swallow exceptions: signal once more."""
        if lost.exc_type is not Stopped:
            return self._hook(lost)
        self.asked = False
        again = threading.Timer(AGAIN_AFTER_S, os.kill, (os.getpid(), self.signals[0]))
        again.daemon = True
        again.start()

    def _watch(self) -> None:
        """End the process in time, even if the main thread waits in a collective forever.

        Python runs handlers in the main thread, between two of its instructions, but writes to the
        wake-up socket at once.
        """
        first: float | None = None
        with selectors.DefaultSelector() as ready:  # ``select`` ends at descriptor 1024
            ready.register(self._reader, selectors.EVENT_READ)
            while True:
                left = None if first is None else max(0.0, first + LEAVE_AFTER_S - time.monotonic())
                if not ready.select(left):
                    if first is None:
                        continue
                    os._exit(EXIT_CODE)
                arrived = self._reader.recv(64)
                if not arrived:
                    return  # the context ended without a signal
                if not any(number in self.signals for number in arrived):
                    continue
                now = time.monotonic()
                if first is not None and now - first > REPEATED_AFTER_S:
                    os._exit(EXIT_CODE)
                first = now if first is None else first
