"""One line that says where a run is: task, step, loss, tokens a second, time left."""

from __future__ import annotations

import sys
import time


class Progress:
    """Prints on the main rank; in a terminal the line of a task overwrites itself."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.overwrite = enabled and sys.stdout.isatty()

    def begin(self, title: str, total: int) -> None:
        """Start a task of ``total`` steps."""
        self.title, self.total = title, total
        self.started = time.monotonic()
        self.tokens = 0

    def update(self, done: int, tokens: int, loss: float) -> float:
        """After ``done`` steps and ``tokens`` more tokens. Returns tokens per second so far."""
        self.tokens += tokens
        spent = max(time.monotonic() - self.started, 1e-9)
        left = spent / done * (self.total - done)
        rate = self.tokens / spent
        self.say(
            f"{self.title}  step {done}/{self.total}  loss {loss:.4f}  {rate:,.0f} tokens/s  "
            f"{_clock(left)} left",
            end="\r" if self.overwrite and done < self.total else "\n",
        )
        return rate

    def say(self, line: str, end: str = "\n") -> None:
        """Print a line."""
        if self.enabled:
            clear = "\x1b[K" if self.overwrite else ""
            print(line + clear, end=end, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
