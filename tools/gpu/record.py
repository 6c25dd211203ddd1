"""The file of a step: written at once, and again with everything that the step finds."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from moram_dist.files import write_atomically

DONE, CUT, SKIPPED, FAILED = "done", "cut short", "skipped", "failed"


@dataclass(frozen=True)
class How:
    """How a step measures."""

    device: str
    """cuda or cpu."""

    tiny: bool
    """Sizes for a test of the command."""

    began: float
    """``time.monotonic()`` at its start."""

    until: float
    """``time.monotonic()`` at which the step must have ended."""

    def left(self) -> float:
        """Seconds left."""
        return self.until - time.monotonic()


@dataclass
class Record:
    """What a step has found so far.

    A JSON file holds all of it. The other files are those of a command: a log gets one more line,
    and where pytest wrote nothing, its file holds one test, with an error or skipped.
    """

    path: Path
    step: str
    began: float
    found: dict[str, Any] = field(default_factory=dict)

    def put(self, **found: Any) -> None:
        """Add fields, and write the file."""
        self.found |= found
        if self.path.suffix == ".json":
            self._write("running", "")

    def end(self, status: str, why: str = "") -> None:
        """Write how the step ended: one of the four words above, and why if it is not ``done``."""
        if self.path.suffix == ".json":
            self._write(status, why)
        elif self.path.suffix == ".xml":
            if status != DONE and not self.path.exists():
                self._write_xml(status, why)
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"gpu_check: {status}{': ' * bool(why)}{why}\n")

    @staticmethod
    def of(path: Path, step: str, began: float) -> Record:
        """A record that continues what another process wrote."""
        record = Record(path, step, began)
        if path.suffix == ".json" and path.exists():
            record.found = json.loads(path.read_text(encoding="utf-8"))["found"]
        return record

    def _write(self, status: str, why: str) -> None:
        seconds = round(time.monotonic() - self.began, 1)
        content = {"step": self.step, "status": status, "why": why, "seconds": seconds}
        text = json.dumps({**content, "found": self.found}, indent=1, default=str)
        write_atomically(self.path, text + "\n")

    def _write_xml(self, status: str, why: str) -> None:
        kind = "skipped" if status == SKIPPED else "error"
        case = f"<testcase classname={quoteattr(self.step)} name={quoteattr(self.step)}>"
        write_atomically(
            self.path,
            f'<testsuites><testsuite name={quoteattr(self.step)} tests="1">{case}'
            f"<{kind} message={quoteattr(why)}/></testcase></testsuite></testsuites>\n",
        )
