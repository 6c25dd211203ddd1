"""Ask all ranks now and then whether one of them wants something."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from moram_dist.comm import env

EVERY_S = 0.5
"""About how often ranks ask each other."""

MOST_CALLS = 1000
"""Most calls from one exchange to the next."""


class Poll:
    """Whether some rank wants something, asked in a loop that all ranks run.

    A collective for each call would cost every step its latency, which grows with the ranks. So
    ranks exchange their wishes about twice a second. Each exchange also tells the time that the
    slowest rank took since the one before, so that all agree after how many calls the next comes.
    """

    def __init__(self, control: Any) -> None:
        """``control``: an ``env.control_group``."""
        self.control = control
        self._calls = 0
        """Since the last exchange, which was at ``_asked_at``."""
        self._every = 1
        self._asked_at = time.monotonic()

    def __call__(self, wanted: bool, *, now: bool = False) -> bool:
        """Whether some rank wants it, as far as is known. All ranks call it equally often.

        Args:
            wanted: whether this rank does. A wish is kept by calling again with True.
            now: exchange at once, and again at the next call, as what follows may be slower; on all
                ranks or on none.
        """
        if env.world_size() == 1:
            return wanted
        self._calls += 1
        if self._calls < self._every and not now:
            return False
        asked_at = time.monotonic()
        found = torch.tensor([float(wanted), asked_at - self._asked_at], device=self._device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.control)
        anyone, slowest_s = found.tolist()
        fitting = int(EVERY_S / max(slowest_s, 1e-6) * self._calls)
        # At most twice as far as the last time: one quick step does not promise the next.
        self._every = 1 if now else max(1, min(fitting, 2 * self._calls, MOST_CALLS))
        self._calls, self._asked_at = 0, asked_at
        return bool(anyone)

    @property
    def _device(self) -> torch.device:
        return env.device() if self.control is None else torch.device("cpu")
