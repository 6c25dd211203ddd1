"""The ranks watch over one another: none outlives a dead one, and none waits for ever.

Ranks are connected by TCP (``comm.links``): each to rank 0, and to its neighbours in a tree. The
kernel closes the connections of a process that dies, however it dies, so those at the other end
know at once; a rank that leaves on purpose first sends its exit code, one byte. The lowest rank
that is left says in one line who died, and all exit with code 4. Whoever is told to exit passes it
on to all its connections first, so word travels over the star or, where rank 0 is dead or stands
still, through the tree. Keepalive finds a machine that vanished, within ``links.VANISHED_S``.

``at`` says what a rank does next. One that does nothing new for ``--wait_limit`` seconds waits for
a rank that hangs: it says so, and all exit.

This is done in a thread, because the main one is then inside a collective that does not return.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
import time
from typing import NoReturn

from moram_dist.comm import env, links
from moram_dist.comm.links import Peer
from moram_dist.registry import MachineError

TICK_S = 0.25
TURN_S = 3.0
"""A rank that is to speak, and is silent for so long, cannot: it is the next one's turn."""

ECHO_S = 5.0
"""How long after a rank's death the errors that it causes on others may precede the watchdog."""

NAMED = 8
"""Dead ranks that the line names; a node may hold many more."""

HOW_TO_RESUME = "; published tasks are intact; rerun the same command to resume"


class PeerWatchdog:
    """This rank's part of it. Does nothing until ``start``, nor where there is one rank."""

    def __init__(self, wait_limit_s: float) -> None:
        self.wait_limit_s = wait_limit_s
        self._doing = ("", time.monotonic())
        self._peers: dict[int, Peer] = {}
        """Ranks that this one is connected to, and that neither died nor left."""
        self._dead: dict[int, str] = {}
        self._died_at = 0.0
        self._left = False

    def at(self, label: str) -> None:
        """What this rank does, or waits for, from here on; its time starts again."""
        self._doing = (label, time.monotonic())

    def still(self) -> None:
        """This rank is at the same thing, and does not hang; its time starts again."""
        self.at(self._doing[0])

    def start(self) -> None:
        """Connect to other ranks, and watch from here on. All ranks call it together.

        Raises:
            MachineError: another rank cannot be reached.
        """
        if env.world_size() == 1:
            return
        self._peers = links.connect()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def leave(self, code: int) -> None:
        """This rank is about to end on purpose; a code other than 0 ends the others with it too."""
        self._left = True
        for peer in list(self._peers.values()):
            try:
                peer.connection.send(bytes([code]))
            except OSError:
                pass  # it is gone already

    def let_speak(self) -> None:
        """To be called on an error that may be the echo of another rank's end.

        Where it is, the watchdog ends this process before this returns.
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
        # The connections stay open until the process ends: closed by now, they could be closed
        # before ``leave`` has said goodbye on them, which to the others is a death.

    def _hear(self, rank: int) -> None:
        peer = self._peers.pop(rank)
        try:
            code = peer.connection.recv(1)
        except OSError:  # keepalive found nobody
            code = b""
        peer.connection.close()
        if not code:
            self._dead[rank] = peer.name
            self._died_at = time.monotonic()
        elif code[0] and not self._left:
            try:  # it has said why
                self.leave(code[0])
            finally:
                os._exit(code[0])

    def _speak_up(self) -> None:
        """End all ranks, if one died or hangs and it is this rank's turn to say so."""
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
