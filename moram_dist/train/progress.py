"""One line with a run's progress: task, step, loss, tokens per second, time left."""

from __future__ import annotations

import sys
import time

from moram_dist.terminal import shown

QUIET_S = 10.0
"""Longest time without a line while steps are running."""


class Progress:
    """Prints on the main rank; in a terminal the line of a task overwrites itself."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.overwrite = enabled and sys.stdout.isatty()

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Start a task of ``total`` steps, or resume it after the first ``done`` steps."""
        self.title, self.total = title, total
        self.started = self.shown = time.monotonic()
        self.done = self.before = done
        self.tokens = 0
        self.loss: float | None = None

    def step(self, tokens: int, *, logged: bool = False) -> None:
        """Count one step with its tokens; ``logged`` if a call of ``log`` follows.

        If not, the line is shown here when the last one is old, without the other ranks.
        """
        self.done += 1
        self.tokens += tokens
        if not logged and time.monotonic() - self.shown > QUIET_S:
            self._show()

    def log(self, loss: float) -> float:
        """Show the newest loss. Returns tokens per second since the task began or resumed."""
        self.loss = loss
        self._show()
        return self.tokens / max(time.monotonic() - self.started, 1e-9)

    def _show(self) -> None:
        self.shown = time.monotonic()
        spent = max(self.shown - self.started, 1e-9)
        loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
        self.say(
            f"{self.title}  step {self.done}/{self.total}{loss}  "
            f"{self.tokens / spent:,.0f} tokens/s  "
            f"{_clock(spent / (self.done - self.before) * (self.total - self.done))} left",
            end="\r" if self.overwrite and self.done < self.total else "\n",
        )

    def say(self, line: str, end: str = "\n") -> None:
        """Print a line."""
        if self.enabled:
            clear = "\x1b[K" if self.overwrite else ""
            print(shown(line) + clear, end=end, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
