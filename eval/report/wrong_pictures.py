"""Some wrong answers of a run on pictures, each with its picture as a small image inside the page.

Predictions name pictures but not where they are. It is found by reading the benchmark again as
run.yaml describes it, from a relative ``data_dir`` only in the folder where the run was started.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from eval.continual import Scores
from eval.predictions import predictions_path
from eval.report.contents import WrongAnswer, WrongAnswers
from eval.run_files import part, scored_example
from moram_dist.data.picture_source import Pictures, pictures_of
from moram_dist.reading import read_object
from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.tasks.readers import read_records
from moram_dist.tasks.task import Drawn

EDGE = 64
"""Pixels of a picture's longer edge in the page."""

QUALITY = 85
"""JPEG's; such a picture takes about 2 KB."""

PER_TASK = 12
IN_ALL = 250
"""Of all tasks: with many tasks there are fewer of each, and some tasks may have none."""


def read_wrong_answers(
    run_dir: Path, config: Mapping[str, Any], matrix: Scores
) -> WrongAnswers | None:
    """Wrong answers of the last row, evenly spaced in each file; None for a run on texts.

    A picture that cannot be opened is left out, but its answer is not. If the data is no longer
    where the run found it, the result says so.

    Args:
        run_dir: the run.
        config: run.yaml, flat.
        matrix: the scores in the main mode.

    Raises:
        InputError: a file of the run is broken.
    """
    if not matrix.scores or not _is_of_pictures(run_dir):
        return None
    try:
        places = _picture_places(config, run_dir / "run.yaml")
    except (InputError, OSError) as error:
        return WrongAnswers(missing=str(error))
    tasks = list(enumerate(matrix.tasks))
    each = max(1, min(PER_TASK, IN_ALL // len(tasks)))
    shown, counts = {}, {}
    for column, task in tasks[:: 1 + (len(tasks) - 1) // IN_ALL]:
        path = predictions_path(run_dir, len(matrix.scores) - 1, column, task)
        if task not in places or not os.path.exists(path):
            continue
        examples = (scored_example(line, where) for where, line in read_records(path))
        wrong = [one for one in examples if one.score is not None and one.score < 100]
        if wrong:
            pictures = pictures_of(places[task])
            stride = max(1, len(wrong) // each)
            counts[task] = len(wrong)
            shown[task] = tuple(
                WrongAnswer(
                    name=one.prompt,
                    thumbnail=thumbnail(pictures, one.prompt),
                    right=" | ".join(one.references),
                    answer=one.prediction,
                )
                for one in wrong[::stride][:each]
            )
    return WrongAnswers(shown=shown, counts=counts)


def thumbnail(pictures: Pictures, name: str) -> str:
    """A picture as a data URI, its longer edge of ``EDGE`` pixels; empty if it cannot be opened."""
    try:
        picture = pictures.open(name)
    except (InputError, OSError):
        return ""
    small = ImageOps.contain(picture, (EDGE, EDGE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _is_of_pictures(run_dir: Path) -> bool:
    """Whether labels have texts, which only models that look at pictures use."""
    path = run_dir / "inputs.json"
    tasks = read_object(path).get("tasks") if os.path.exists(path) else None
    rules = [task.get("rules") for task in tasks or [] if isinstance(task, dict)]
    return any(isinstance(one, dict) and one.get("texts") for one in rules)


def _picture_places(config: Mapping[str, Any], where: Path) -> dict[str, Path | Drawn]:
    """Task -> where its pictures are. Raises InputError if the data cannot be read any more."""
    asked = {
        name.removeprefix("data."): value
        for name, value in config.items()
        if name.startswith("data.")
    }
    source = part(Source, asked | {"seed": config.get("train.seed", 0)}, where)
    benchmark = BENCHMARKS[str(asked.get("benchmark"))](source)
    return {task.name: task.pictures for task in benchmark.tasks if task.pictures is not None}
