"""A run's context around given parts, with nothing tracked or printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moram_dist.comm.watchdog import PeerWatchdog
from moram_dist.config import RunConfig
from moram_dist.tracking import Tracker
from moram_dist.train.context import RunContext
from moram_dist.train.progress import Progress
from moram_dist.train.run_dir import RunDir


def make_context(
    *,
    method: Any,
    engine: Any,
    base: Any,
    config: RunConfig,
    benchmark: Any = None,
    folder: Path = Path("unused"),
    tracker: Tracker | None = None,
) -> RunContext:
    """``benchmark`` and ``folder`` may be missing where only a step is taken."""
    return RunContext(
        config=config,
        benchmark=benchmark,
        method=method,
        engine=engine,
        base=base,
        run_dir=RunDir(folder),
        tracker=tracker or Tracker(),
        progress=Progress(enabled=False),
        watchdog=PeerWatchdog(300.0),
    )
