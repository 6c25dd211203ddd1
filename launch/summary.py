"""What a finished run prints: the score matrix, the headline numbers, where everything lies."""

from __future__ import annotations

from pathlib import Path

from eval.continual import Scores
from moram_dist.config import RunConfig
from moram_dist.tracking import store_of
from moram_dist.tracking.names import without_password

HEADLINE = {"ap": "AP", "bwt_gem": "BWT", "forgetting_max": "forgetting"}


WIDEST = 160
"""Characters of columns; where names need more, columns are numbered."""


def summary(run_dir: Path, report: Path, config: RunConfig) -> str:
    """Several lines of text."""
    saved = Scores.load(run_dir / "scores.json")
    tasks, scores = saved.tasks, saved.scores
    heads, rows = list(tasks), list(tasks)
    if sum(max(6, len(name)) + 2 for name in tasks) > WIDEST:
        heads = [f"{i + 1}" for i in range(len(tasks))]
        rows = [f"{i + 1:2} {name}" for i, name in enumerate(tasks)]
    width = max(len("after"), *(len(row) for row in rows))
    cells = [max(6, len(head)) for head in heads]
    lines = [
        "",
        "score on each task (columns) after each task (rows)",
        f"{'after':{width}}  " + "  ".join(f"{h:>{c}}" for h, c in zip(heads, cells, strict=True)),
    ]
    for name, row in zip(rows, scores, strict=False):
        shown = ("" if value is None else f"{value:.2f}" for value in row)
        lines.append(
            f"{name:{width}}  " + "  ".join(f"{s:>{c}}" for s, c in zip(shown, cells, strict=True))
        )
    metrics = saved.sequence_metrics()
    headline = (
        f"{label} {metrics[k]:.2f}" for k, label in HEADLINE.items() if metrics[k] is not None
    )
    lines += ["", "   ".join(headline), f"report:  {report}"]
    if config.record.tracking == "mlflow":
        store = without_password(store_of(run_dir, config.record.tracking_uri))
        server = store.startswith("http")  # which has its own pages
        lines.append(f"compare: {store if server else f'mlflow ui --backend-store-uri {store}'}")
    return "\n".join(lines)
