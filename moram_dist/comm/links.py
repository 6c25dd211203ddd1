"""TCP connections between ranks: a star around rank 0, and a tree under rank 1.

Rank r connects to rank 0, and to its parent in the tree, rank r // 2. So rank 0 has a connection to
every rank, and each other rank has at most four, however many ranks there are. If rank 0 dies or
hangs, the tree still connects the others.
"""

from __future__ import annotations

import os
import platform
import secrets
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moram_dist.comm import env
from moram_dist.comm.rendezvous import LOOPBACK, is_loopback, listen
from moram_dist.registry import MachineError

MEET_S = 60.0
VANISHED_S = 60
LENGTH = 41
"""Bytes of a caller's greeting: the token's 32 digits, a space, its rank in 8 digits."""


@dataclass(frozen=True)
class Peer:
    """Another rank."""

    name: str
    """For messages: ``rank 1 (process 4711 on node2)``."""

    connection: socket.socket


def called_by(rank: int) -> list[int]:
    """The lower ranks to which ``rank`` connects."""
    return sorted({0, rank // 2} - {rank})


def callers(rank: int, world_size: int) -> list[int]:
    """The higher ranks that connect to ``rank``."""
    if rank == 0:
        return list(range(1, world_size))
    return [r for r in (2 * rank, 2 * rank + 1) if r < world_size]


def connect() -> dict[int, Peer]:
    """Connect to this rank's peers and return them. All ranks must call it together.

    Raises:
        MachineError: another rank cannot be reached.
    """
    rank, world_size = env.rank(), env.world_size()
    everyone = env.gather_objects((_machine(), os.getpid(), _own_address()))
    names = [f"rank {r} (process {pid} on {m[0]})" for r, (m, pid, _) in enumerate(everyone)]
    with listen(_reachable([(machine, address) for machine, _, address in everyone]), 0) as server:
        token = env.from_main(secrets.token_hex(16))
        addresses = env.gather_objects(server.getsockname()[:2])
        peers = {
            r: Peer(names[r], _call(names[r], addresses[r], f"{token} {rank:08d}"))
            for r in called_by(rank)
        }
        for r, connection in answer(server, token, callers(rank, world_size)):
            peers[r] = Peer(names[r], connection)
    return peers


def _machine() -> tuple[str, ...]:
    """A key, equal for ranks that reach each other over loopback: same kernel and network."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return platform.node(), boot, str(os.stat("/proc/self/ns/net").st_ino)
    except OSError:
        return (platform.node(),)


def _reachable(ranks: Sequence[tuple[tuple[str, ...], str]]) -> str:
    """The address at which others reach this rank, given each rank's machine and address."""
    machine, own = ranks[env.rank()]
    elsewhere = [address for other, address in ranks if other != machine]
    if not elsewhere:
        return "::1" if ":" in own and is_loopback(own) else LOOPBACK
    if not is_loopback(own):
        return own
    # On the master's machine, MASTER_ADDR may resolve to loopback: use the interface that leads to
    # another machine.
    return leads_to(next((a for a in elsewhere if not is_loopback(a)), own))


def _own_address() -> str:
    """Address of the interface that leads to MASTER_ADDR."""
    return leads_to(os.environ["MASTER_ADDR"])


def leads_to(host: str) -> str:
    """This machine's address on the route to ``host``."""
    family, kind, *_, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])


def _call(name: str, address: tuple[str, int], words: str) -> socket.socket:
    try:
        connection = socket.create_connection(address, timeout=MEET_S)
        connection.sendall(words.encode())
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        raise MachineError(f"{name} cannot be reached at {where}: {error}") from None
    return _lasting(connection)


def answer(
    server: socket.socket, token: str, expected: Sequence[int]
) -> Iterator[tuple[int, socket.socket]]:
    """Accept the expected ranks and yield each as it connects; other callers are rejected.

    Callers are served concurrently, so that a silent one blocks no other.

    Raises:
        MachineError: no further rank connected for ``MEET_S``.
    """
    missing, said = {*expected}, dict[socket.socket, bytes]()
    deadline = time.monotonic() + MEET_S
    server.setblocking(False)
    with selectors.DefaultSelector() as ready:
        ready.register(server, selectors.EVENT_READ)
        while missing:
            events = ready.select(max(0.0, deadline - time.monotonic()))
            if time.monotonic() > deadline:
                few = ", ".join(map(str, sorted(missing)[:8]))
                raise MachineError(f"rank {few} has not reached rank {env.rank()}")
            for key, _ in events:
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is server:
                    for caller in _accepted(server):
                        ready.register(caller, selectors.EVENT_READ)
                        said[caller] = b""
                    continue
                words = said[connection] + _heard(connection, LENGTH - len(said[connection]))
                if len(said[connection]) < len(words) < LENGTH:
                    said[connection] = words
                    continue
                ready.unregister(connection)
                del said[connection]
                rank = _introduced(words, token)
                if rank in missing:
                    missing.remove(rank)
                    deadline = time.monotonic() + MEET_S
                    yield rank, _lasting(connection)
                else:
                    connection.close()
    for stranger in said:
        stranger.close()


def _accepted(server: socket.socket) -> Iterator[socket.socket]:
    try:
        connection, _ = server.accept()
    except OSError:  # it has hung up again
        return
    connection.setblocking(False)
    yield connection


def _heard(connection: socket.socket, length: int) -> bytes:
    """Read at most ``length`` bytes: an exit code may follow. Empty if the caller hung up."""
    try:
        return connection.recv(length)
    except OSError:
        return b""


def _introduced(words: bytes, token: str) -> int:
    """The rank in a greeting; -1 if its token is not ours."""
    said, _, rank = words.decode("ascii", "replace").partition(" ")
    known = secrets.compare_digest(said.encode(), token.encode())
    return int(rank) if known and rank.isdecimal() else -1


def _lasting(connection: socket.socket) -> socket.socket:
    """Enable keepalive, to notice if the machine at the other end vanishes."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_S // 2)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, VANISHED_S // 6)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return connection
