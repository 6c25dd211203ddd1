"""Checkpoints within a task, in ``RUN/progress/``: rerunning the command resumes from them.

    progress/002_000400.safetensors   task 2 after 400 steps: masters, moments, the method's state
    progress/002_000400.json          the point in the run and the file's sha256; written last

Tensors are whole, so any number of ranks can read them. The two newest checkpoints are kept,
because a machine may go down while one is written. Once a task is published, its memory file
replaces its checkpoints, which are removed.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from moram_dist.comm import env
from moram_dist.comm.poll import Poll
from moram_dist.config import RecordConfig
from moram_dist.files import sha256, write_atomically
from moram_dist.reading import read_record
from moram_dist.registry import InputError

VERSION = 1
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A point within a task, and the file that holds its state."""

    task: int
    step: int
    """Finished optimizer steps of the task; also the position in its data and schedule."""

    optimizer_steps: int
    seed: int
    learned: list[str]
    """sha256 of the memory files of earlier tasks, on which the state builds."""

    tracking: Any
    """Content of ``tracking.json``: ids of the runs that receive the curves."""

    world_size: int
    """Number of ranks that wrote it; for information, any number can resume."""

    sha256: str = ""
    version: int = field(default=VERSION)

    @property
    def name(self) -> str:
        """Name of both files without suffix. Large numbers make names sort out of order."""
        return f"{self.task:03d}_{self.step:06d}"


class ProgressFiles:
    """The folder ``progress/`` of a run. Only the main rank writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        """Save the state at ``checkpoint``, then delete all but the newest ones. Raises OSError."""
        content = save({name: t.contiguous().cpu() for name, t in sorted(tensors.items())})
        write_atomically(self.folder / f"{checkpoint.name}.safetensors", content)
        whole = asdict(checkpoint) | {"sha256": hashlib.sha256(content).hexdigest()}
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / f"{checkpoint.name}.json", text)
        self._keep([path.stem for path in self._newest_first()[:KEPT]])

    def newest(
        self, *, task: int, learned: list[str], say: Callable[[str], None]
    ) -> Checkpoint | None:
        """The newest checkpoint from which ``task`` can resume, else None; deletes useless files.

        Args:
            task: the first that is not published.
            learned: sha256 of the memory files of the tasks before it.
            say: called with one line for each damaged file.
        """
        useful: list[Checkpoint] = []
        for path in self._newest_first():
            try:
                checkpoint = self._check(path)
            except InputError as error:
                say(f"{error}: not used")
                continue
            if checkpoint.task == task and checkpoint.learned == learned:
                useful.append(checkpoint)
        self._keep([checkpoint.name for checkpoint in useful])
        return useful[0] if useful else None

    def read(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The tensors of a checkpoint from ``newest``."""
        return load_file(self.folder / f"{checkpoint.name}.safetensors")

    def clear(self) -> None:
        """Remove everything."""
        self._keep([])

    def _newest_first(self) -> list[Path]:
        """Records sorted by task and step as numbers; files with other names are ignored."""
        records = [path for path in self.folder.glob("*.json") if _numbers(path)]
        return sorted(records, key=_numbers, reverse=True)

    def _check(self, path: Path) -> Checkpoint:
        """Raises InputError where one of the two files is damaged."""
        checkpoint = read_record(path, Checkpoint)
        if checkpoint.version != VERSION or checkpoint.name != path.stem:
            raise InputError(f"{path} is no record of progress of version {VERSION}")
        tensors = path.with_suffix(".safetensors")
        try:
            whole = sha256(tensors) == checkpoint.sha256
        except OSError:
            whole = False
        if not whole:
            raise InputError(f"{tensors} is not whole")
        return checkpoint

    def _keep(self, names: list[str]) -> None:
        """Remove all other files; records before their tensors."""
        if not self.folder.exists():
            return
        for path in sorted(self.folder.iterdir(), key=lambda path: path.suffix != ".json"):
            if path.is_file() and path.stem not in names:
                path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def _numbers(path: Path) -> tuple[int, ...]:
    """Task and step in a record's name; empty for other files."""
    name = re.fullmatch(r"(\d{3,})_(\d{6,})", path.stem, re.ASCII)
    return tuple(map(int, name.groups())) if name else ()


AT_END_S = 60.0
"""Seconds of unsaved training from which a task's last step is saved."""


class SaveTimer:
    """When to save within a task: by a number of steps, or by the main rank's clock."""

    def __init__(self, record: RecordConfig, control: Any) -> None:
        """``control``: an ``env.control_group``."""
        self.steps = record.save_steps
        self.seconds = record.save_seconds
        self.poll = Poll(control)
        self.saved_at = time.monotonic()

    def due(self, step: int, *, ends: bool = False) -> bool:
        """Whether to save after ``step`` steps. All ranks call it after each step and agree.

        With ``ends``, the step is the last of its task. What comes then may fail or be stopped, and
        must not cost more training than ``AT_END_S``.
        """
        since_s = time.monotonic() - self.saved_at
        if ends and self.poll(env.is_main() and since_s >= AT_END_S, now=True):
            return True
        if self.steps is not None:
            return step % self.steps == 0
        assert self.seconds is not None
        return self.poll(env.is_main() and since_s >= self.seconds)

    def saved(self) -> None:
        """Restart the clock."""
        self.saved_at = time.monotonic()
