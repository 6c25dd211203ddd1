"""What ranks find out about their machine before they join."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from moram_dist.comm import env, joining, links
from moram_dist.registry import InputError

LOOPBACK, OUTWARDS = "127.0.0.1", "10.1.2.3"


@pytest.fixture
def machine(monkeypatch):
    """A machine whose name has an address, with the addresses that lead to others."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "head")
    interfaces = {
        name: [SimpleNamespace(address=address)]
        for name, address in (("lo", LOOPBACK), ("eth0", "10.9.9.9"), ("ib0", OUTWARDS))
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)

    def of(own, routes):
        def leads_to(host):
            if routes.get(host) is None:
                raise OSError("Network is unreachable")
            return routes[host]

        monkeypatch.setattr(socket, "gethostbyname", lambda name: own)
        monkeypatch.setattr(links, "leads_to", leads_to)
        joining._let_gloo_out()
        return os.environ.get("GLOO_SOCKET_IFNAME")

    yield of
    os.environ.pop("GLOO_SOCKET_IFNAME", None)


@pytest.mark.parametrize(
    ("own", "routes", "interface"),
    [
        ("10.9.9.9", {"head": OUTWARDS}, None),  # gloo's own choice works
        ("127.0.1.1", {"head": OUTWARDS}, "ib0"),
        ("127.0.1.1", {"head": LOOPBACK, joining.SOMEWHERE: OUTWARDS}, "ib0"),  # it is the head
        ("127.0.1.1", {"head": LOOPBACK}, None),  # without a default route nothing is known
        ("127.0.1.1", {joining.SOMEWHERE: OUTWARDS}, "ib0"),
        ("127.0.1.1", {"head": "10.0.0.7"}, None),
    ],
)
def test_gloo_does_not_listen_on_loopback_alone(machine, own, routes, interface):
    assert machine(own, routes) == interface


def test_a_named_interface_stays(machine, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert machine("127.0.1.1", {"head": OUTWARDS}) == "eth0"


def test_the_default_route_is_found_without_a_message():
    try:
        address = links.leads_to(joining.SOMEWHERE)
    except OSError:
        pytest.skip("this machine has no default route")
    assert address in {a.address for all_ in psutil.net_if_addrs().values() for a in all_}


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({"SLURM_STEP_NUM_TASKS": "32"}, True),
        ({"SLURM_STEP_NUM_TASKS": "32", "RANK": "3"}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({}, False),
    ],
)
def test_processes_of_srun_without_ranks_are_refused(monkeypatch, variables, refused):
    for name in ("RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(InputError, match="srun started 32 processes"):
            env.check_launcher()
    else:
        env.check_launcher()
