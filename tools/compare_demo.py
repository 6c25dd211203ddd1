"""Compare methods on the demo: same r, same learning rates, several seeds; prints a Markdown table.

    python tools/compare_demo.py [--out runs/compare_demo] [--jobs 2]

Every run is one process of launch/train.py, so an interrupted comparison goes on where it stopped.
The whole grid is shown, because picking a learning rate by the scores it gets is a choice too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eval.continual import Scores  # noqa: E402

METHODS = ("moram", "sequential_lora")
LEARNING_RATES = ("1e-3", "3e-3", "5e-3", "1e-2")
SEEDS = (0, 1, 2)
COLUMNS = {
    "ap": "AP",
    "bwt_gem": "BWT",
    "forgetting_max": "forgetting",
    "mean_diagonal": "right after learning",
}
Cell = tuple[str, str]


def run(out: Path, method: str, rate: str, seed: int) -> dict[str, float]:
    """Train and evaluate one cell of the grid, or find it done; its sequence metrics."""
    folder = out / f"{method}-lr{rate}-seed{seed}"
    command = [sys.executable, str(ROOT / "launch" / "train.py"), "--output_dir", str(folder)]
    command += ["--method", method, "--learning_rate", rate, "--seed", str(seed)]
    command += ["--tracking", "none", "--log_every", "100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    metrics = Scores.load(folder / "scores.json").sequence_metrics()
    print(f"{folder.name}: AP {metrics['ap']:.1f} BWT {metrics['bwt_gem']:.1f}", file=sys.stderr)
    return {name: float(metrics[name]) for name in COLUMNS}  # type: ignore[arg-type]


def table(results: dict[Cell, list[dict[str, float]]]) -> str:
    """Mean and, in brackets, the range over seeds."""
    lines = [
        f"| method | learning rate | {' | '.join(COLUMNS.values())} |",
        f"| --- | --- |{' --- |' * len(COLUMNS)}",
    ]
    for (method, rate), runs in results.items():
        cells = []
        for name in COLUMNS:
            values = [one[name] for one in runs]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        lines.append(f"| {method} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/compare_demo"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    args = parser.parse_args()
    grid = list(itertools.product(METHODS, LEARNING_RATES, SEEDS))
    with ThreadPoolExecutor(args.jobs) as pool:
        metrics = list(pool.map(lambda cell: run(args.out, *cell), grid))
    results: dict[Cell, list[dict[str, float]]] = {}
    for (method, rate, _), found in zip(grid, metrics, strict=True):
        results.setdefault((method, rate), []).append(found)
    (args.out / "results.json").write_text(
        json.dumps([{"method": m, "rate": r, "runs": v} for (m, r), v in results.items()], indent=2)
    )
    print(table(results))


if __name__ == "__main__":
    main()
