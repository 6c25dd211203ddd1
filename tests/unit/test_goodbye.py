"""A rank that leaves says so before its connections close, however its threads take turns."""

from __future__ import annotations

import socket
import threading

import pytest

from moram_dist.comm.links import Peer
from moram_dist.comm.watchdog import PeerWatchdog


class AfterThe:
    """A connection on which nothing is sent before a thread has ended."""

    def __init__(self, connection: socket.socket, thread: threading.Thread) -> None:
        self.connection, self.thread = connection, thread

    def send(self, data: bytes) -> int:
        self.thread.join(timeout=10)
        assert not self.thread.is_alive()
        return self.connection.send(data)

    def __getattr__(self, name: str):
        return getattr(self.connection, name)


@pytest.mark.parametrize("code", [0, 3, 75])
def test_the_goodbye_comes_though_the_watch_ends_first(code):
    ours, theirs = socket.socketpair()
    watchdog = PeerWatchdog(wait_limit_s=60)
    watchdog.at("nothing")
    thread = threading.Thread(target=watchdog._watch)
    watchdog._peers[1] = Peer("rank 1", AfterThe(ours, thread))
    thread.start()
    watchdog.leave(code)
    theirs.settimeout(10)
    assert theirs.recv(2) == bytes([code])
    ours.close()
    theirs.close()
