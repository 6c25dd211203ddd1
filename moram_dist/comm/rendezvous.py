"""The rendezvous of ranks: rank 0 keeps a key-value store, and every rank connects to it.

By default torch's store listens on every interface of the machine, and anyone who reaches it may
read and write. This one listens only where ranks need it: on loopback if all run on one machine,
else on the address of MASTER_ADDR.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from moram_dist.comm import env
from moram_dist.registry import InputError, MachineError

LOOPBACK = "127.0.0.1"
EVERYWHERE = ""
BACKLOG = 4096
"""Ranks that can connect at once. The kernel may allow fewer (net.core.somaxconn); others retry."""


class Rendezvous:
    """This rank's connection to the store. Every rank creates one."""

    def __init__(self, timeout_s: float) -> None:
        """Connect; rank 0 opens the store first.

        Raises:
            InputError: the port is taken.
            MachineError: rank 0's store cannot be reached.
        """
        self.timeout_s = timeout_s
        host, port = store_host(), int(os.environ.get("MASTER_PORT", 0))
        options: dict[str, Any] = {
            "world_size": env.world_size(),
            "timeout": timedelta(seconds=timeout_s),
            "wait_for_workers": False,
        }
        if env.rank() == 0 and not kept_by_torchrun():
            server = _listen(host, port)
            port = server.getsockname()[1]
            os.environ["MASTER_PORT"] = str(port)
            options |= {"is_master": True, "master_listen_fd": server.detach()}
        try:
            self.store = dist.TCPStore(host or os.environ["MASTER_ADDR"], port, **options)
        except (dist.DistStoreError, dist.DistNetworkError):
            raise self._alone() from None

    def meet(self) -> None:
        """Wait for all ranks. Raises MachineError if one does not arrive in time."""
        if self.arrive("here"):
            return
        try:
            self.store.wait(["here: all"], timedelta(seconds=self.timeout_s))
        except (dist.DistStoreError, dist.DistNetworkError):
            raise self._alone() from None

    def arrive(self, place: str) -> bool:
        """Announce that this rank has reached ``place``. Returns whether it is the last one."""
        last = self.store.add(place, 1) == env.world_size()
        if last:
            self.store.set(f"{place}: all", "")
        return last

    def wait_for_all(self, place: str, seconds: float) -> bool:
        """Whether all ranks reach ``place`` within ``seconds``.

        Raises:
            MachineError: rank 0, which keeps the store, is gone.
        """
        try:
            self.store.wait([f"{place}: all"], timedelta(seconds=seconds))
            return True
        except dist.DistStoreError:
            return False
        except dist.DistNetworkError:
            raise MachineError(f"rank {env.rank()} has lost rank 0 before the start") from None

    def init_method(self) -> str:
        """A URL by which torch's ``init_process_group`` finds this store, once."""
        scheme = f"moram{id(self)}"

        def handler(url: str, **_: Any) -> Iterator[tuple[Any, int, int]]:
            yield self.store, env.rank(), env.world_size()

        dist.register_rendezvous_handler(scheme, handler)
        return f"{scheme}://"

    def _alone(self) -> MachineError:
        return MachineError(
            f"rank {env.rank()} waited {self.timeout_s:g} s for the other ranks to start"
        )


def kept_by_torchrun() -> bool:
    """Whether the launcher keeps the store, on all interfaces of rank 0's machine."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def one_machine() -> bool:
    """Whether the launcher says that all ranks run on this machine."""
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    return local == str(env.world_size()) or is_loopback(os.environ["MASTER_ADDR"])


def is_loopback(host: str) -> bool:
    """Whether ``host`` means loopback on any machine, judged by its name alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def store_host() -> str:
    """The host where rank 0 listens and others connect; ``EVERYWHERE`` if rank 0 cannot tell.

    A machine's name may resolve to loopback on that machine only, or to several addresses: then
    rank 0 cannot tell which of its interfaces the others will use.
    """
    master = os.environ["MASTER_ADDR"]
    if kept_by_torchrun():
        return master
    if one_machine():
        return master if ":" in master else LOOPBACK
    if env.rank() != 0:
        return master
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(master, None)}
    except OSError:
        return EVERYWHERE
    own = found.pop()
    return EVERYWHERE if found or is_loopback(own) else own


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` only. Raises OSError."""
    if host == EVERYWHERE:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return socket.create_server(
            (host, port), family=family, dualstack_ipv6=dual, backlog=BACKLOG
        )
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)  # type: ignore[arg-type]


def _listen(host: str, port: int) -> socket.socket:
    """The store's socket; listens everywhere if MASTER_ADDR is not a local address (a service)."""
    try:
        try:
            return listen(host, port)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return listen(EVERYWHERE, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise MachineError(f"no port for ranks to meet at {host}:{port}: {error}") from None
        raise InputError(
            f"port {port} is taken, perhaps by another run on this machine; "
            "give the launcher another one (deepspeed --master_port N)"
        ) from None
