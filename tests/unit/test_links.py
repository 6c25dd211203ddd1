"""The watchdog of many ranks: few connections each; whatever dies, all end, and few say why."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from moram_dist.comm import env, links, watchdog
from moram_dist.comm.watchdog import PeerWatchdog

pytestmark = pytest.mark.slow

RANKS = 24
SOON_S = 60

_forks = multiprocessing.get_context("fork")


def gather(folder: Path) -> Callable[[object], list]:
    """``env.gather_objects`` over files."""
    calls = iter(range(100))

    def gather_objects(value):
        call = next(calls)
        mine = folder / f"{call}_{env.rank()}"
        mine.with_suffix(".new").write_bytes(pickle.dumps(value))
        mine.with_suffix(".new").rename(mine)
        files = [folder / f"{call}_{rank}" for rank in range(env.world_size())]
        while not all(file.exists() for file in files):
            time.sleep(0.01)
        return [pickle.loads(file.read_bytes()) for file in files]

    return gather_objects


def one_rank(rank: int, folder: Path, wait_limit_s: float, leaves: dict[int, int]) -> None:
    place = {"RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.dup2(os.open(folder / f"err{rank}", os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w")
    env.gather_objects = gather(folder)
    env.from_main = lambda value: env.gather_objects(value)[0]
    ours = PeerWatchdog(wait_limit_s)
    ours.start()
    ours.at("the test")
    (folder / f"peers{rank}").write_text(str(len(ours._peers)))
    if rank in leaves:
        while len([*folder.glob("peers*")]) < RANKS:
            time.sleep(0.01)
        ours.leave(leaves[rank])
        os._exit(leaves[rank])
    time.sleep(3600)


class Ranks:
    """As many as ``RANKS``, watching each other."""

    def __init__(self, folder: Path, wait_limit_s: float = 600, leaves: dict | None = None) -> None:
        self.folder = folder
        self.processes = [
            _forks.Process(target=one_rank, args=(rank, folder, wait_limit_s, leaves or {}))
            for rank in range(RANKS)
        ]

    def __enter__(self) -> Ranks:
        for process in self.processes:
            process.start()
        deadline = time.monotonic() + 120
        while len([*self.folder.glob("peers*")]) < RANKS:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def send(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            pid = self.processes[rank].pid
            assert pid is not None
            os.kill(pid, number)

    def codes(self, but: tuple[int, ...] = ()) -> set[int | None]:
        """Of all ranks, once they have ended, but for some."""
        deadline = time.monotonic() + SOON_S
        others = [process for rank, process in enumerate(self.processes) if rank not in but]
        for process in others:
            process.join(max(0.0, deadline - time.monotonic()))
        return {process.exitcode for process in others}

    def said(self) -> list[str]:
        files = [self.folder / f"err{rank}" for rank in range(RANKS)]
        return [line for f in files if f.exists() for line in f.read_text().splitlines()]


def test_few_connections(tmp_path):
    with Ranks(tmp_path):
        counts = [int((tmp_path / f"peers{rank}").read_text()) for rank in range(RANKS)]
    assert counts[0] == RANKS - 1 and max(counts[1:]) <= 4
    for size in (2, 3, 1000):
        called = {(low, high) for high in range(size) for low in links.called_by(high)}
        assert called == {(low, h) for low in range(size) for h in links.callers(low, size)}
        assert len(called) < 2 * size


@pytest.mark.parametrize("rank", [0, 1, 7, RANKS - 1])
def test_a_rank_dies(tmp_path, rank):
    with Ranks(tmp_path) as ranks:
        ranks.send(signal.SIGKILL, rank)
        assert ranks.codes(but=(rank,)) == {4}
        (line,) = ranks.said()
    assert line.startswith(f"error: rank {rank} (process {ranks.processes[rank].pid} on ")
    assert " died; " in line


@pytest.mark.parametrize("node", [range(4), range(8, 16)])
def test_a_whole_node_dies(tmp_path, node):
    with Ranks(tmp_path) as ranks:
        ranks.send(signal.SIGSTOP, *node)  # so that none of them has time to say anything
        ranks.send(signal.SIGKILL, *node)
        assert ranks.codes(but=(*node,)) == {4}
        said = ranks.said()
    assert 1 <= len(said) <= len(node)
    assert all(" died; " in line for line in said)


def test_a_rank_dies_while_rank_0_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "TURN_S", 0.5)
    with Ranks(tmp_path) as ranks:
        ranks.send(signal.SIGSTOP, 0)
        ranks.send(signal.SIGKILL, 5)
        assert ranks.codes(but=(0, 5)) == {4}
        assert all(line.startswith("error: rank 5 ") for line in ranks.said())
        ranks.send(signal.SIGCONT, 0)  # it is told as well, once it listens
        assert ranks.codes(but=(5,)) == {4}


def test_a_code_on_purpose_reaches_all_without_a_word(tmp_path):
    with Ranks(tmp_path, leaves={9: 3}) as ranks:
        assert ranks.codes() == {3}
        assert ranks.said() == []


def test_who_leaves_with_0_ends_nobody(tmp_path):
    with Ranks(tmp_path, leaves={0: 0, 3: 0, 9: 0}) as ranks:
        for rank in (0, 3, 9):
            ranks.processes[rank].join(SOON_S)
        time.sleep(1)
        assert ranks.codes(but=tuple({*range(RANKS)} - {0, 3, 9})) == {0}
        assert all(p.is_alive() for r, p in enumerate(ranks.processes) if r not in (0, 3, 9))
        assert ranks.said() == []


def test_a_hang_is_one_line(tmp_path):
    with Ranks(tmp_path, wait_limit_s=2) as ranks:
        assert ranks.codes() == {4}
        (line,) = ranks.said()
    assert line.startswith("error: rank 0 waited 2 s for the test; a rank hangs")


def test_strangers_hold_up_nobody_and_are_turned_away():
    token = "0" * 32
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        strangers = [socket.create_connection(address) for _ in range(5)]
        for stranger, words in zip(
            strangers,
            [b"", b"x" * 41, b"\xff" * 41, b"1" * 32 + b" 00000001", b"0" * 20],
            strict=True,
        ):
            stranger.sendall(words)
        strangers.append(socket.create_connection(address))
        strangers[-1].close()
        caller = socket.create_connection(address)
        threading.Timer(0.2, caller.sendall, (f"{token} 0000".encode(),)).start()
        threading.Timer(0.5, caller.sendall, (b"0002\x07",)).start()
        ((rank, connection),) = links.answer(server, token, [2])
        assert rank == 2
        assert connection.recv(2) == b"\x07"  # what follows is its exit code
        for stranger in strangers[:5]:
            stranger.settimeout(10)
            with suppress(ConnectionResetError):  # it had not read everything
                assert stranger.recv(1) == b""


def test_who_never_calls_is_named(monkeypatch):
    monkeypatch.setattr(links, "MEET_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(links.MachineError, match="rank 4, 5 has not reached rank 0"),
    ):
        list(links.answer(server, "0" * 32, [4, 5]))
