"""The ranks watch over one another: none outlives a dead one, and none waits for ever.

Every rank holds a TCP connection to every other one. The kernel closes those of a process that
dies, however it dies, so the others know at once; a rank that leaves on purpose first sends its
exit code, one byte. The lowest rank that is left says in one line who died, and all exit with code
4. Keepalive finds a machine that vanished, within ``VANISHED_S``.

``at`` says what a rank does next. One that does nothing new for ``--wait_limit`` seconds waits for
a rank that hangs: it says so, and all exit.

This is done in a thread, because the main one is then inside a collective that does not return.
"""

from __future__ import annotations

import os
import platform
import resource
import secrets
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import NoReturn

from moram_dist.comm import env
from moram_dist.registry import MachineError

TICK_S = 0.25
TURN_S = 3.0
"""A rank that is to speak, and is silent for so long, cannot: it is the next one's turn."""

ECHO_S = 5.0
"""How long after a rank's death the errors that it causes on others may come before the watch."""

MEET_S = 60.0
VANISHED_S = 60

GO_ON = "; what is published is whole: the same command goes on from there"


@dataclass(frozen=True)
class Peer:
    """Another rank."""

    name: str
    """For messages: ``rank 1 (process 4711 on node2)``."""

    connection: socket.socket


class Watch:
    """This rank's part of the watch. Does nothing until ``start``, nor where there is one rank."""

    def __init__(self, wait_limit_s: float) -> None:
        self.wait_limit_s = wait_limit_s
        self._doing = ("", time.monotonic())
        self._peers: dict[int, Peer] = {}
        """Ranks that neither died nor left."""
        self._dead: dict[int, str] = {}
        self._died_at = 0.0
        self._left = False

    def at(self, label: str) -> None:
        """What this rank does, or waits for, from here on; its time starts again."""
        self._doing = (label, time.monotonic())

    def start(self) -> None:
        """Connect to all other ranks, and watch from here on. All ranks call it together.

        Raises:
            MachineError: another rank cannot be reached.
        """
        if env.world_size() == 1:
            return
        # A connection a rank: the usual soft limit on open files ends at about 1000 ranks.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(
            ("", 0), family=family, dualstack_ipv6=dual, backlog=env.world_size()
        ) as server:
            token = env.from_main(secrets.token_hex(16))
            place = f"process {os.getpid()} on {platform.node()}"
            places = env.gather_objects((place, _own_address(), server.getsockname()[1]))
            names = [f"rank {r} ({place})" for r, (place, *_) in enumerate(places)]
            for rank, (_, *address) in enumerate(places[: env.rank()]):
                self._peers[rank] = Peer(names[rank], _call(names[rank], address, token))
            while len(self._peers) < env.world_size() - 1:
                rank, connection = _answer(server, token)
                self._peers[rank] = Peer(names[rank], connection)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

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

        Where it is, the watch ends this process before this returns.
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
            os._exit(code[0])  # it has said why

    def _speak_up(self) -> None:
        """End all ranks, if one died or hangs and it is this rank's turn to say so."""
        label, since = self._doing
        if self._dead:
            line, noticed = f"{' and '.join(self._dead.values())} died", self._died_at
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
            self._end(line + GO_ON)

    def _end(self, line: str) -> NoReturn:
        try:
            print(f"error: {line}", file=sys.stderr, flush=True)
            self.leave(MachineError.EXIT_CODE)
        finally:
            os._exit(MachineError.EXIT_CODE)


def _own_address() -> str:
    """Under which the other ranks reach this one."""
    master = os.environ["MASTER_ADDR"]
    family, kind, *_, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing; finds the interface that leads there
        own = probe.getsockname()[0]
    # On the master's own machine that may be loopback, which to others is themselves.
    return master if own.startswith("127.") or own == "::1" else own


def _call(name: str, address: tuple[str, int], token: str) -> socket.socket:
    try:
        connection = socket.create_connection(address, timeout=MEET_S)
        connection.sendall(f"{token} {env.rank():08d}".encode())
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        raise MachineError(f"{name} cannot be reached at {where}: {error}") from None
    return _lasting(connection)


def _answer(server: socket.socket, token: str) -> tuple[int, socket.socket]:
    """The next rank that calls; whoever else does is turned away."""
    server.settimeout(MEET_S)
    length = len(token) + len(" 00000000")
    while True:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            raise MachineError(f"not all ranks have reached rank {env.rank()}") from None
        connection.settimeout(MEET_S / 6)
        try:
            words = b""  # no more than these: what follows is an exit code
            while part := connection.recv(length - len(words)):
                words += part
            said, rank = words.decode("ascii").split()
            if secrets.compare_digest(said, token):
                return int(rank), _lasting(connection)
        except (OSError, ValueError):
            pass
        connection.close()


def _lasting(connection: socket.socket) -> socket.socket:
    """Set up to notice that the machine at the other end has vanished."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_S // 2)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, VANISHED_S // 6)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return connection
