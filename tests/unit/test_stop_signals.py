"""Signals that stop a run. Each case is a process of its own, since most of them end it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest

from moram_dist.config import RecordConfig
from moram_dist.registry import InputError
from moram_dist.train import stop
from moram_dist.train.stop import EXIT_CODE, Stopped, StopSignals

pytestmark = pytest.mark.slow  # waits for signals

Say = Callable[[object], None]


def outcome(body: Callable[[Say], None]) -> tuple[int | None, list[object]]:
    """Exit code of a process that calls ``body``, and what it said."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(body, writer))
    process.start()
    writer.close()
    process.join(60)
    process.kill()
    said = []
    while reader.poll():
        try:
            said.append(reader.recv())
        except EOFError:
            break
    return process.exitcode, said


def _run(body, writer) -> None:
    # As in a program of its own, whatever the test runner has installed.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    body(writer.send)


def send(name: str = "SIGTERM") -> None:
    os.kill(os.getpid(), signal.Signals[name])


def blocked() -> None:
    """As in a collective: in C, without Python's lock, so that no handler runs."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def test_while_steps_are_done_a_signal_waits_for_the_check():
    def body(say):
        with StopSignals("SIGTERM,SIGUSR1") as signals:
            try:
                with signals.held():
                    signals.check()
                    send("SIGUSR1")
                    say("goes on")
                    signals.check()
                    say("not here")
            except Stopped as stopped:
                say(stopped.together)

    assert outcome(body) == (0, ["goes on", True])


def test_outside_of_steps_it_stops_at_once_and_is_no_exception():
    def body(say):
        with StopSignals("SIGTERM"):
            try:
                try:
                    send()
                    say("not here")
                except Exception:
                    say("nor here")
            except Stopped as stopped:
                say(stopped.together)

    assert outcome(body) == (0, [False])


@pytest.mark.parametrize("kind", ["generator", "object"])
def test_a_signal_while_something_is_finalized_is_not_lost(kind):
    class Closing:
        def __del__(self):
            send()

    def generator():
        try:
            yield
        finally:
            send()

    def body(say):
        with StopSignals("SIGTERM"):
            try:
                left = Closing() if kind == "object" else generator()
                if kind == "generator":
                    next(left)
                del left
                say("the exception went nowhere")
                time.sleep(20)
                say("not here")
            except Stopped as stopped:
                say(stopped.together)

    assert outcome(body) == (0, ["the exception went nowhere", False])


def test_other_exceptions_that_go_nowhere_are_shown_as_before():
    class Closing:
        def __del__(self):
            raise ValueError

    def body(say):
        sys.unraisablehook = lambda lost: say(lost.exc_type.__name__)
        with StopSignals("SIGTERM"):
            Closing()
        Closing()

    assert outcome(body) == (0, ["ValueError", "ValueError"])


def test_a_signal_after_the_last_check_is_not_lost():
    def body(say):
        with StopSignals("SIGTERM") as signals:
            try:
                with signals.held():
                    signals.check()
                    send()
                say("not here")
            except Stopped as stopped:
                say(stopped.together)

    assert outcome(body) == (0, [False])


def test_handlers_are_put_back():
    def body(say):
        with StopSignals("SIGUSR1"):
            say(signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL)
            say(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
        say(signal.set_wakeup_fd(-1))
        send("SIGUSR1")

    assert outcome(body) == (-signal.SIGUSR1, [False, True, -1])


@pytest.mark.parametrize("held", [True, False])
def test_a_rank_that_is_blocked_is_ended_in_time(held, monkeypatch):
    monkeypatch.setattr(stop, "LEAVE_AFTER_S", 0.5)

    def body(say):
        with StopSignals("SIGTERM") as signals:
            signals._held = held
            threading.Timer(0.2, send).start()
            blocked()

    assert outcome(body) == (EXIT_CODE, [])


@pytest.mark.parametrize("descriptors", [10, 1100])
def test_a_blocked_rank_with_many_descriptors_is_ended_in_time(descriptors, monkeypatch):
    """A rank among a thousand has a connection to each of them."""
    monkeypatch.setattr(stop, "LEAVE_AFTER_S", 0.5)

    def body(say):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(descriptors)]
        with StopSignals("SIGTERM"):
            threading.Timer(0.2, send).start()
            blocked()
        say(held)

    assert outcome(body) == (EXIT_CODE, [])


def test_a_second_signal_ends_it_at_once_but_not_a_launcher_s_repetition(monkeypatch):
    monkeypatch.setattr(stop, "REPEATED_AFTER_S", 0.5)

    def body(say):
        with StopSignals("SIGTERM") as signals, signals.held():
            send()
            send()
            time.sleep(1)
            say("goes on")
            send()
            time.sleep(15)
            say("not here")

    assert outcome(body) == (EXIT_CODE, ["goes on"])


def test_other_signals_mean_what_they_did(monkeypatch):
    monkeypatch.setattr(stop, "LEAVE_AFTER_S", 0.1)

    def body(say):
        signal.signal(signal.SIGUSR2, lambda *_: say("own"))
        with StopSignals("SIGTERM") as signals:
            send("SIGUSR2")
            time.sleep(0.5)
            signals.check()
        say("done")

    assert outcome(body) == (0, ["own", "done"])


def test_signals_that_cannot_be_meant():
    assert RecordConfig(stop_signals="SIGUSR1").stop_signals == "SIGUSR1"
    with pytest.raises(InputError, match=r"--stop_signals.*did you mean 'SIGTERM'"):
        RecordConfig(stop_signals="SIGTRM")
    for text in ("", "SIGKILL", "SIGTERM,"):
        with pytest.raises(InputError, match="--stop_signals"):
            RecordConfig(stop_signals=text)
