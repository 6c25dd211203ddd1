"""Continuous batching of greedy generation: it costs what rows need, not what the longest one does.

Rows go on together, a few tokens a turn. Then those that have ended leave, and others come in.
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
"""Tokens in a turn. A row that ends in it waits for its end."""

READ_TOGETHER = 2048
"""Padded tokens of the prompts that are read in one pass: so many make its products efficient. A
prompt that is read by itself needs no mask, and attention is faster without."""


@dataclass(eq=False)
class Request:
    """A prompt to go on from, and what was said so far."""

    key: int
    prompt: Sequence[int]
    max_new_tokens: int

    def __post_init__(self) -> None:
        """A prompt alone."""
        self.said: list[int] = []

    @property
    def tokens(self) -> list[int]:
        """All of them."""
        return [*self.prompt, *self.said]

    @property
    def length(self) -> int:
        """How many there are."""
        return len(self.prompt) + len(self.said)

    @property
    def room(self) -> int:
        """How many there may be."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True)
class Room:
    """How many rows go on together."""

    rows: int
    tokens: int
    """Of all rows, each as long as the longest may become. One row goes on whatever its length."""

    @classmethod
    def for_all(cls, rows: int) -> Room:
        """Room for so many rows of whatever length."""
        return cls(rows=max(1, rows), tokens=sys.maxsize)

    def for_one_more(self, rows: Sequence[Request], new: Request) -> bool:
        """Whether there is, and no more than a third would be padding: it takes time too."""
        if not rows:
            return True
        together = [*rows, new]
        count, lengths = len(together), [row.length for row in together]
        fits = count <= self.rows and count * max(row.room for row in together) <= self.tokens
        return fits and 2 * count * max(lengths) <= 3 * sum(lengths)


def can_batch_continuously(model: Any) -> bool:
    """Whether all that a causal model keeps of a row is the keys and values of its tokens."""
    return not getattr(model, "_is_stateful", False) and RoomyCache.of(model) is not None


class ContinuousBatcher:
    """Generates with a model that ``can_batch_continuously`` and has whole weights."""

    def __init__(self, model: Any, room: Room, **settings: Any) -> None:
        """``settings`` are of ``GenerationConfig``: ``eos_token_id``, ``pad_token_id`` and more."""
        self.model = model
        self.room = room
        self.settings = settings
        self.eos = settings["eos_token_id"]
        self.device = next(iter(model.parameters())).device

    @torch.no_grad()
    def __call__(self, rows: Iterable[Request]) -> Iterator[Request]:
        """The rows as they end, by EOS or by their limit, with what was said."""
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
        """Each row says so many tokens more, or fewer where EOS comes."""
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
                synced_gpus=False,  # its default under ZeRO-3, hooks or not, is to wait for others
            )
        for row, said in zip(rows, longer[:, ids_BP.shape[1] :].tolist(), strict=True):
            row.said += said[: said.index(self.eos) + 1] if self.eos in said else said


def _read_together(rows: Sequence[Request]) -> Iterator[list[Request]]:
    """Groups of ``READ_TOGETHER`` tokens at most, the shortest first."""
    group: list[Request] = []
    for row in sorted(rows, key=lambda row: len(row.prompt)):
        if group and (len(group) + 1) * len(row.prompt) > READ_TOGETHER:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
