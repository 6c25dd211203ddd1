"""Continuous batching of greedy generation: rows do not wait for the longest one.

All active rows generate a few tokens per turn. Then finished rows leave and new ones enter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moram_dist.adapters.prompts import asking
from moram_dist.data.stream import pad_left
from moram_dist.decode.cache import RoomyCache, joined
from moram_dist.decode.settings import generate

STEPS_PER_TURN = 8
"""Tokens per turn. A row that finishes earlier waits for the end of the turn."""

READ_TOGETHER = 2048
"""Most tokens, with padding, of prompts read in one forward pass: enough for efficient matrix
products. A prompt that is read alone needs no mask, which makes attention faster."""


@dataclass(eq=False)
class Request:
    """A prompt to continue, and the tokens generated so far in ``said``."""

    key: int
    prompt: Sequence[int]
    max_new_tokens: int

    def __post_init__(self) -> None:
        """Start with nothing generated."""
        self.said: list[int] = []

    @property
    def tokens(self) -> list[int]:
        """Prompt and generated tokens."""
        return [*self.prompt, *self.said]

    @property
    def length(self) -> int:
        """Number of tokens so far."""
        return len(self.prompt) + len(self.said)

    @property
    def room(self) -> int:
        """Number of tokens that the row may reach."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True)
class Room:
    """How many rows may be active together."""

    rows: int
    tokens: int
    """Over all rows, each counted at the longest length that any may reach. One row always fits."""

    @classmethod
    def for_all(cls, rows: int) -> Room:
        """Room for this number of rows of any length."""
        return cls(rows=max(1, rows), tokens=sys.maxsize)

    def for_one_more(self, rows: Sequence[Request], new: Request) -> bool:
        """Whether ``new`` fits with at most a third of all tokens padding, which costs time."""
        if not rows:
            return True
        together = [*rows, new]
        count, lengths = len(together), [row.length for row in together]
        fits = count <= self.rows and count * max(row.room for row in together) <= self.tokens
        return fits and 2 * count * max(lengths) <= 3 * sum(lengths)


def can_batch_continuously(model: Any) -> bool:
    """Whether a causal model's only state is the keys and values of a row's tokens."""
    return not getattr(model, "_is_stateful", False) and RoomyCache.of(model) is not None


class ContinuousBatcher:
    """Generates with a model that ``can_batch_continuously`` and has whole weights."""

    def __init__(self, model: Any, room: Room, **settings: Any) -> None:
        """``settings``: ``GenerationConfig`` fields, with ``eos_token_id`` and ``pad_token_id``."""
        self.model = model
        self.room = room
        self.settings = settings
        self.eos = settings["eos_token_id"]
        self.device = next(iter(model.parameters())).device

    @torch.no_grad()
    def __call__(self, rows: Iterable[Request]) -> Iterator[Request]:
        """Yield each row when it has finished, by EOS or at its limit."""
        waiting = iter(rows)
        following = next(waiting, None)
        active: list[Request] = []
        caches: list[RoomyCache] = []
        while following or active:
            new: list[Request] = []
            while following and self.room.for_one_more([*active, *new], following):
                new.append(following)
                following = next(waiting, None)
            for group in _read_together(new):
                cache = RoomyCache.of(self.model)
                assert cache is not None
                self._go_on(group, cache, 1)
                caches.append(cache)
                active += group
            cache = joined(caches)
            ended = [row for row in active if self._has_ended(row)]
            if ended:
                yield from ended
                keep = [k for k, row in enumerate(active) if row not in ended]
                active = [active[k] for k in keep]
                if active:
                    longest = max(row.length for row in active)
                    cache.select(torch.tensor(keep, device=self.device), longest - 1)
            caches = [cache] if active else []
            if active:
                left = min(row.max_new_tokens - len(row.said) for row in active)
                self._go_on(active, cache, min(STEPS_PER_TURN, left))

    def _has_ended(self, row: Request) -> bool:
        return row.said[-1] == self.eos or len(row.said) >= row.max_new_tokens

    def _go_on(self, rows: Sequence[Request], cache: RoomyCache, tokens: int) -> None:
        """Generate up to ``tokens`` more tokens for each row, fewer after EOS."""
        ids_BP, mask_BP = (
            t.to(self.device)
            for t in pad_left([row.tokens for row in rows], self.settings["pad_token_id"])
        )
        with asking(self.model, [row.prompt for row in rows]):
            longer = generate(
                self.model,
                self.settings | {"max_new_tokens": tokens},
                input_ids=ids_BP,
                attention_mask=mask_BP,
                past_key_values=cache,
                synced_gpus=False,  # under ZeRO-3 the default is to wait for other ranks
            )
        for row, said in zip(rows, longer[:, ids_BP.shape[1] :].tolist(), strict=True):
            row.said += said[: said.index(self.eos) + 1] if self.eos in said else said


def _read_together(rows: Sequence[Request]) -> Iterator[list[Request]]:
    """Groups of at most ``READ_TOGETHER`` tokens with padding, the shortest prompts first."""
    group: list[Request] = []
    for row in sorted(rows, key=lambda row: len(row.prompt)):
        if group and (len(group) + 1) * len(row.prompt) > READ_TOGETHER:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
