"""A watchdog between ranks: if one dies, all exit, and none waits for ever.

Ranks are connected by TCP (``comm.links``): each to rank 0, and to its neighbours in a tree. The
kernel closes the connections of a dead process, however it died, so its peers notice at once; a
rank that leaves on purpose first sends its exit code, one byte. The lowest remaining rank reports
in one line which ranks died, and all exit with code 4. A rank that receives an exit code first
forwards it on all its connections, so it spreads over the star or, if rank 0 is dead or hangs,
through the tree. Keepalive detects a machine that vanished, within ``links.VANISHED_S``.

``at`` records the activity of a rank. If a rank starts no new one for ``--wait_limit`` seconds, it
is waiting for a rank that hangs: it reports that, and all exit.

The watchdog runs in a thread, because the main thread is then stuck inside a collective.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from torch import nn

from moram_dist.comm import env, links
from moram_dist.comm.links import Peer
from moram_dist.registry import MachineError

TICK_S = 0.25
TURN_S = 3.0
"""If the rank that must report stays silent for this long, it cannot: the next rank reports."""

ECHO_S = 5.0
"""Seconds to hold back an error that another rank's death may cause: the watchdog goes first."""

NAMED = 8
"""Dead ranks to name in the message; a node may have many more."""

HOW_TO_RESUME = "; published tasks are intact; rerun the same command to resume"


class PeerWatchdog:
    """This rank's watchdog. Does nothing before ``start``, or if there is only one rank."""

    def __init__(self, wait_limit_s: float) -> None:
        self.wait_limit_s = wait_limit_s
        self._doing = ("", time.monotonic())
        self._peers: dict[int, Peer] = {}
        """Connected ranks that neither died nor left."""
        self._dead: dict[int, str] = {}
        self._died_at = 0.0
        self._left = False

    def at(self, label: str) -> None:
        """Record what this rank does or waits for from now on, and restart its time limit."""
        self._doing = (label, time.monotonic())

    def still(self) -> None:
        """Restart the time limit: this rank is busy with the same activity, and does not hang."""
        self.at(self._doing[0])

    @contextmanager
    def during_passes(self, model: nn.Module) -> Iterator[None]:
        """Context in which each forward pass of a model restarts the time limit."""
        hook = model.register_forward_pre_hook(lambda *_: self.still())
        try:
            yield
        finally:
            hook.remove()

    def start(self) -> None:
        """Connect to other ranks and start watching. All ranks must call it together.

        Raises:
            MachineError: another rank cannot be reached.
        """
        if env.world_size() == 1:
            return
        self._peers = links.connect()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def leave(self, code: int) -> None:
        """Announce that this rank exits on purpose; the others exit with a nonzero ``code`` too."""
        self._left = True
        for peer in list(self._peers.values()):
            try:
                peer.connection.send(bytes([code]))
            except OSError:
                pass  # it is gone already

    def let_speak(self) -> None:
        """Call on an error that another rank's end may have caused.

        If so, the watchdog ends this process before this returns.
        """
        if self._peers or self._dead:
            time.sleep(ECHO_S)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as ready:
            for rank, peer in self._peers.items():
                ready.register(peer.connection, selectors.EVENT_READ, rank)
            while not self._left:
                for key, _ in ready.select(TICK_S):
                    ready.unregister(key.fileobj)
                    self._hear(key.data)
                self._speak_up()
        # Connections stay open until the process ends: if closed here, before ``leave`` has sent
        # the exit code on them, the others would take this rank for dead.

    def _hear(self, rank: int) -> None:
        peer = self._peers.pop(rank)
        try:
            code = peer.connection.recv(1)
        except OSError:  # keepalive got no answer
            code = b""
        peer.connection.close()
        if not code:
            self._dead[rank] = peer.name
            self._died_at = time.monotonic()
        elif code[0] and not self._left:
            try:  # that rank has reported the reason
                self.leave(code[0])
            finally:
                os._exit(code[0])

    def _speak_up(self) -> None:
        """End all ranks if one died or hangs and it is this rank's turn to report it."""
        label, since = self._doing
        if self._dead:
            line, noticed = f"{_named([*self._dead.values()])} died", self._died_at
        elif not self._peers:
            return
        else:
            line = (
                f"rank {env.rank()} waited {self.wait_limit_s:g} s for {label}; "
                "a rank hangs, or this needs a longer --wait_limit"
            )
            noticed = since + self.wait_limit_s
        turn = sum(rank < env.rank() for rank in self._peers)
        if time.monotonic() > noticed + turn * TURN_S and not self._left:
            self._end(line + HOW_TO_RESUME)

    def _end(self, line: str) -> NoReturn:
        try:
            print(f"error: {line}", file=sys.stderr, flush=True)
            self.leave(MachineError.EXIT_CODE)
        finally:
            os._exit(MachineError.EXIT_CODE)


def _named(ranks: list[str]) -> str:
    further = len(ranks) - NAMED
    return " and ".join(ranks[:NAMED]) + (f" and {further} more" if further > 0 else "")
