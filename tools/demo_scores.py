"""Print the scores of runs, one line per recall, at the end of ``make demo``.

    python tools/demo_scores.py runs/demo runs/demo-published

Learned is the mean score right after learning.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eval.compare.runs import read_runs  # noqa: E402
from eval.continual import sequence_metrics  # noqa: E402
from eval.scoring_modes import recall_label  # noqa: E402

COLUMNS = {"mean_diagonal": "learned", "ap": "at the end", "bwt_gem": "BWT"}


def table(folders: Sequence[Path]) -> str:
    """A table with one row per run and recall."""
    runs = read_runs(folders)
    names = [f"{run.name}, {recall_label(run.recall)}" for run in runs]
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{head:>12}" for head in COLUMNS.values())]
    for name, run in zip(names, runs, strict=True):
        metrics = sequence_metrics(run.scores)
        lines.append(f"{name:{width}}" + "".join(f"{metrics[key]:12.2f}" for key in COLUMNS))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(word) for word in sys.argv[1:]]))
