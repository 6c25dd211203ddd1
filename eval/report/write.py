"""Write a run's report: its page, and figures and tables as files in the same folder.

It reads only the run directory and needs no model and no network. The run may be unfinished.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.continual import Scores
from eval.figures import svg_text
from eval.report.contents import ReportContents
from eval.report.page import page
from eval.report.plots import figures
from eval.report.read import read_contents
from moram_dist.files import write_atomically
from moram_dist.registry import InputError


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report`` and return its ``index.html``.

    Each file is replaced atomically, the page last.

    Raises:
        InputError: run.yaml, environment.json or scores.json is missing, a file is broken, or the
            folder is a link. Nothing is written then.
        WriteError: the folder cannot be written.
    """
    folder = run_dir / "report"
    if folder.is_symlink():
        raise InputError(f"{folder} is a link; reports are not written through links")
    contents = read_contents(run_dir)
    drawn = {name: svg_text(figure) for name, figure in figures(contents).items()}
    files = {f"{name}.svg": svg for name, svg in drawn.items()}
    files["matrix.csv"] = _matrix_csv(contents.main.matrix)
    if contents.recognition is not None:
        files["confusion.csv"] = contents.recognition.confusion.to_csv()
    if contents.routing:
        files["routing.csv"] = contents.routing[-1].to_csv()
    files["metrics.json"] = json.dumps(_numbers(contents), indent=2, ensure_ascii=False) + "\n"
    files["index.html"] = page(contents, drawn)
    for name, text in files.items():
        # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
        write_atomically(folder / name, text.encode("utf-8", errors="replace"))
    return folder / "index.html"


def _numbers(contents: ReportContents) -> dict[str, Any]:
    """The content of metrics.json."""
    numbers: dict[str, Any] = {
        "metrics": contents.main.metrics,
        "average_so_far": contents.average,
        "forgetting": dict(zip(contents.main.matrix.tasks, contents.forgetting, strict=False)),
    }
    if contents.main.blocks:
        numbers["columns"] = {
            block.metric: dict(zip(contents.main.matrix.tasks, block.columns, strict=True))
            for block in contents.main.blocks
        }
    if len(contents.modes) > 1:
        numbers["metrics_by_way"] = [
            asdict(one.mode) | {"metrics": one.metrics} for one in contents.modes
        ]
    if contents.recognition is not None:
        confusion = contents.recognition.confusion
        numbers["recogniser"] = {"accuracy": confusion.accuracy, "rejected": confusion.rejected}
    if contents.general:
        numbers["general"] = {one.task: asdict(one) for one in contents.general}
    if contents.routing:
        numbers["routing"] = {one.tasks[-1]: one.metrics() for one in contents.routing}
    return numbers


def _matrix_csv(matrix: Scores) -> str:
    """One row after each task, one column per task; cells not measured are empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["after", *matrix.tasks])
    if matrix.base is not None:
        writer.writerow(["base model", *matrix.base])
    for name, row in zip(matrix.tasks, matrix.scores, strict=False):
        writer.writerow([name, *row])
    return buffer.getvalue()
