"""What the training and the evaluation of one run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moram_dist.comm.watchdog import PeerWatchdog
from moram_dist.config import RunConfig
from moram_dist.methods.method import Method
from moram_dist.models.language_model import Base
from moram_dist.tasks.task import Benchmark
from moram_dist.tracking import Tracker
from moram_dist.train.progress import Progress
from moram_dist.train.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run on one rank. Trainer and evaluator take it whole and change none of its fields."""

    config: RunConfig
    """The settings, with every default filled in."""

    benchmark: Benchmark
    method: Method
    """The method, whose layers stand in the model."""

    engine: Any
    """DeepSpeed's engine around the model."""

    base: Base
    """The model with its tokenizer and its family."""

    run_dir: RunDir
    tracker: Tracker
    progress: Progress
    watchdog: PeerWatchdog
