"""The ``compare`` command: from run directories or an MLflow experiment to tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.compare.comparison import Comparison, compare
from eval.compare.references import read_references
from eval.compare.runs import read_runs
from eval.compare.tables import latex, markdown, to_csv
from moram_dist.config import RECALLS
from moram_dist.files import write_atomically
from moram_dist.registry import InputError, one_of
from moram_dist.tracking import run_directories
from moram_dist.values import coerce


def compare_runs(
    paths: Sequence[Path],
    *,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    answers: str | None = None,
    recall: str | None = None,
    resamples: str | None = None,
) -> tuple[str, Comparison]:
    """Read runs and compare them. Returns the tables as Markdown, and the comparison.

    Args:
        paths: run directories and ``.jsonl`` files of runs.
        experiment: an MLflow experiment whose finished runs are compared too.
        tracking_uri: its store; for None see ``run_directories``.
        answers: which of ``EvalConfig.answers`` to compare; None: each run's main one.
        recall: which recalls to compare, joined by commas; None: all.
        resamples: of the bootstrap, as typed; for None see ``compare``.

    Raises:
        InputError: there is nothing to compare, a run cannot be read, or runs are not comparable.
    """
    count = coerce("resamples", resamples, int | None)
    recalls = [] if recall is None else recall.split(",")
    for name in recalls:
        one_of("recall", name, RECALLS)
    if tracking_uri is not None and experiment is None:
        raise InputError("--tracking_uri goes with --experiment")
    if experiment is not None:
        paths = [*paths, *run_directories(experiment, tracking_uri)]
    if not paths:
        raise InputError("compare needs run directories, or --experiment")
    comparison = compare(read_runs(paths, answers, recalls), resamples=count)
    return markdown(comparison, read_references()), comparison


def write_comparison(folder: Path, text: str, comparison: Comparison) -> None:
    """Write compare.md, compare.csv, compare.tex and the figures."""
    from eval.compare.plots import figures  # slow to import, and only needed for files
    from eval.figures import svg_text

    write_atomically(folder / "compare.md", text)
    write_atomically(folder / "compare.csv", to_csv(comparison))
    write_atomically(folder / "compare.tex", latex(comparison))
    for name, figure in figures(comparison).items():
        write_atomically(folder / f"{name}.svg", svg_text(figure))
