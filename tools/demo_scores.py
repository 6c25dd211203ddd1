"""Print the scores of runs, one line per recall, at the end of ``make demo``.

    python tools/demo_scores.py runs/demo runs/demo-published

Learned is the mean score right after learning.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eval.continual import Scores, sequence_metrics  # noqa: E402
from eval.score_matrix import scores_path  # noqa: E402
from eval.scoring_modes import recall_label, saved_scoring_modes  # noqa: E402
from moram_dist.reading import read_mapping  # noqa: E402

COLUMNS = {"mean_diagonal": "learned", "ap": "at the end", "bwt_gem": "BWT"}


def table(folders: Sequence[Path]) -> str:
    """A table with one row per run and recall."""
    rows = [row for folder in folders for row in _rows(folder)]
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{head:>12}" for head in COLUMNS.values())]
    for name, metrics in rows:
        lines.append(f"{name:{width}}" + "".join(f"{metrics[key]:12.2f}" for key in COLUMNS))
    return "\n".join(lines)


def _rows(folder: Path) -> Iterator[tuple[str, dict[str, float | None]]]:
    path = folder / "run.yaml"
    settings = {f"eval.{name}": value for name, value in read_mapping(path)["eval"].items()}
    modes = saved_scoring_modes(settings, path)
    for mode in modes:
        scores = Scores.load(scores_path(folder, mode.file_suffix(modes[0])))
        yield f"{folder.name}, {recall_label(mode.recall)}", sequence_metrics(scores.scores)


if __name__ == "__main__":
    print(table([Path(word) for word in sys.argv[1:]]))
