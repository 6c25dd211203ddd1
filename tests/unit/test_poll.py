"""Wishes of ranks, exchanged now and then. The other rank and the clock are made up."""

from __future__ import annotations

import pytest
import torch

from moram_dist.comm import env, poll
from moram_dist.comm.poll import Poll


class Peer:
    """Another rank whose steps take ``step_s``, and a clock that each call of this one moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
        self.step_s = step_s
        self.wants = False
        self.exchanges = 0
        self._now = self._asked_at = 100.0
        monkeypatch.setattr(env, "world_size", lambda: 2)
        monkeypatch.setattr(poll.time, "monotonic", lambda: self._now)
        monkeypatch.setattr(poll.dist, "all_reduce", self._all_reduce)

    def step(self) -> None:
        self._now += self.step_s

    def _all_reduce(self, tensor: torch.Tensor, op: object, group: object) -> None:
        self.exchanges += 1
        mine = torch.tensor([float(self.wants), self._now - self._asked_at])
        tensor.copy_(torch.maximum(tensor, mine))
        self._asked_at = self._now


def test_ranks_ask_each_other_about_twice_a_second(monkeypatch):
    peer, ask = Peer(monkeypatch, 0.01), Poll(None)
    for _ in range(6_000):  # a minute
        peer.step()
        assert not ask(False)
    assert 120 <= peer.exchanges <= 130  # the first ones come sooner


def test_slow_steps_exchange_each_time(monkeypatch):
    peer, ask = Peer(monkeypatch, 2.0), Poll(None)
    for _ in range(10):
        peer.step()
        ask(False)
    assert peer.exchanges == 10


@pytest.mark.parametrize("step_s", [0.01, 0.2, 3.0])
def test_a_wish_of_either_rank_is_known_soon(monkeypatch, step_s):
    for mine in (True, False):
        peer, ask = Peer(monkeypatch, step_s), Poll(None)
        for _ in range(200):
            peer.step()
            ask(False)
        peer.wants = not mine
        waited = 0
        while not ask(mine):
            peer.step()
            waited += 1
        assert waited * step_s <= 1.1


def test_now_asks_at_once_and_then_from_the_start(monkeypatch):
    peer, ask = Peer(monkeypatch, 0.01), Poll(None)
    for _ in range(300):
        peer.step()
        ask(False)
    peer.wants = True
    assert ask(False, now=True)
    peer.wants, before = False, peer.exchanges
    peer.step()
    ask(False)
    assert peer.exchanges == before + 1


def test_a_single_rank_asks_nobody(monkeypatch):
    monkeypatch.setattr(poll.dist, "all_reduce", None)
    assert Poll(None)(True) and not Poll(None)(False)
