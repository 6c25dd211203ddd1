"""The summary that a finished run prints: score matrix, headline metrics, where to find files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.column_blocks import BLOCKS, column_blocks
from eval.confusion import read_confusion
from eval.continual import HEADLINE, MatrixEntry, Scores
from eval.edited import read_edit, scores_before
from eval.markup import one_line
from eval.score_matrix import scores_path
from eval.scoring_modes import recall_label, scoring_modes
from moram_dist.config import RunConfig
from moram_dist.redaction import clean_address
from moram_dist.tracking import store_of

WIDEST = 160
"""Characters of all columns; if names need more, columns are numbered."""

MANY_TASKS = 24
"""More columns than this are wider than any terminal, so only two columns are printed."""

MOST_ROWS = 40
"""At most this many tasks are printed, the last ones."""


def summary(run_dir: Path, report: Path, config: RunConfig) -> str:
    """The summary, several lines of text."""
    saved = Scores.load(run_dir / "scores.json")
    many = len(saved.tasks) > MANY_TASKS
    lines = ["", *(_last_scores(saved) if many else _matrix(saved))]
    lines += _before(run_dir, saved, config)
    lines += ["", *_headlines(run_dir, saved, config), f"report:  {report}"]
    if config.record.tracking == "mlflow":
        store = clean_address(store_of(run_dir, config.record.tracking_uri))
        server = store.startswith("http")  # a server shows its own pages
        lines.append(f"compare: {store if server else f'mlflow ui --backend-store-uri {store}'}")
    return "\n".join(lines)


def _before(run_dir: Path, saved: Scores, config: RunConfig) -> list[str]:
    """For a memory that was edited, the scores before: the matrix, and AP by recall."""
    edit = read_edit(run_dir)
    if edit is None:
        return []
    lines = ["", *edit.lines]
    modes = scoring_modes(config.eval)
    for mode in modes:
        suffix = mode.file_suffix(modes[0])
        before = scores_before(run_dir, edit, suffix)
        if before is None:
            continue
        if mode == modes[0] and len(before.tasks) <= MANY_TASKS:
            lines += ["what it was made from scored:", *_matrix(before)[1:]]
        now = saved if mode == modes[0] else Scores.load(scores_path(run_dir, suffix))
        then_ap, ap = (each.sequence_metrics()["ap"] for each in (before, now))
        if then_ap is not None and ap is not None:
            label = f" ({mode.label(modes)})" if len(modes) > 1 else ""
            lines.append(f"AP{label}: {then_ap:.2f} before, {ap:.2f} after")
    return lines


def _headlines(run_dir: Path, saved: Scores, config: RunConfig) -> list[str]:
    """Headline metrics, per recall if there are several, and the recogniser's accuracy."""
    main, *others = scoring_modes(config.eval)
    modes = [main, *(mode for mode in others if mode.answers == main.answers)]
    if len(modes) == 1:
        metrics = saved.sequence_metrics()
        found = [
            f"{name} {metrics[k]:.2f}" for k, name in HEADLINE.items() if metrics[k] is not None
        ]
        if len(saved.tasks) > MANY_TASKS:  # otherwise they are below the matrix
            found += [f"{block.title} {block.mean:.2f}" for block in column_blocks(saved.scores)]
        found += [recall_label(main.recall)] if main.recall == "oracle" else []
        lines = ["   ".join(found)]
    else:
        paths = {mode.recall: scores_path(run_dir, mode.file_suffix(main)) for mode in modes}
        lines = _by_recall({recall: Scores.load(path) for recall, path in paths.items()})
    for mode in modes:
        if mode.recall == "prefix":
            last = len(saved.scores) - 1
            confusion = read_confusion(run_dir, saved.tasks, last, mode.file_suffix(main))
            if confusion is not None:
                lines.append(
                    f"recognised: {confusion.accuracy:.2f} % of prompts as their own task's, "
                    f"{confusion.rejected:.2f} % as no task's"
                )
    return lines


def _by_recall(found: Mapping[str, Scores]) -> list[str]:
    """One row per recall; metrics that no recall has are left out."""
    metrics = {recall_label(recall): scores.sequence_metrics() for recall, scores in found.items()}
    whole = all(column_blocks(scores.scores) for scores in found.values())
    names = {
        k: n
        for k, n in (HEADLINE | (BLOCKS if whole else {})).items()
        if any(row[k] is not None for row in metrics.values())
    }
    width = max(map(len, metrics))
    lines = [" " * width + "".join(f"{name:>12}" for name in names.values())]
    for recall, row in metrics.items():
        cells = ("" if (value := row[k]) is None else f"{value:.2f}" for k in names)
        lines.append(f"{recall:{width}}" + "".join(f"{cell:>12}" for cell in cells))
    return lines


def _last_scores(saved: Scores) -> list[str]:
    """For the last tasks, the score right after learning and the score after the last task."""
    names = list(saved.tasks)[-MOST_ROWS:]
    first = len(saved.tasks) - len(names)
    left_out = f", the last {len(names)} of {len(saved.tasks)} tasks" if first else ""
    lines = [
        f"score when a task was learned, and after the last one{left_out}; all: report/matrix.csv",
        f"{'learned':>9}{'last':>9}  task",
    ]
    for i, name in enumerate(names, start=first):
        learned = saved.scores[i][i] if i < len(saved.scores) else None
        last = saved.scores[-1][i] if saved.scores else None
        cells = "".join(f"{'' if v is None else f'{v:.2f}':>9}" for v in (learned, last))
        lines.append(f"{cells}  {one_line(name)}")
    return lines


def _matrix(saved: Scores) -> list[str]:
    """The score matrix and, if it is whole, Transfer, Average and Last of each of its columns."""
    names = [one_line(name) for name in saved.tasks]
    heads, rows = list(names), list(names)
    if sum(max(6, len(name)) + 2 for name in saved.tasks) > WIDEST:
        heads = [f"{i + 1}" for i in range(len(names))]
        rows = [f"{i + 1:2} {name}" for i, name in enumerate(names)]
    blocks = column_blocks(saved.scores)
    titles = [block.title for block in blocks]
    width = max(map(len, ("after", *rows, *titles)))
    cells = [max(6, len(head)) for head in heads]

    def line(name: str, values: Sequence[MatrixEntry]) -> str:
        shown = ("" if value is None else f"{value:.2f}" for value in values)
        return f"{name:{width}}  " + "  ".join(
            f"{s:>{c}}" for s, c in zip(shown, cells, strict=True)
        )

    head = "  ".join(f"{h:>{c}}" for h, c in zip(heads, cells, strict=True))
    lines = ["score on each task (columns) after each task (rows)", f"{'after':{width}}  {head}"]
    lines += map(line, rows, saved.scores)
    if blocks:
        lines += ["", f"{'':{width}}  {head}  {'mean':>6}"]
        lines += [f"{line(one.title, one.columns)}  {one.mean:6.2f}" for one in blocks]
    return lines
