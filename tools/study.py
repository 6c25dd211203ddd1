"""Make the runs of a comparison: several at a time, each recorded when it ends, none repeated.

Each run is one process of launch/train.py. When it ends, its scores and one digit per answer are
appended to a file of results, with one line per recall. A run in the file is not repeated, on any
machine. Tables are made from these files only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eval.compare.command import write_comparison  # noqa: E402
from eval.compare.comparison import compare  # noqa: E402
from eval.compare.references import read_references  # noqa: E402
from eval.compare.runs import read_runs  # noqa: E402
from eval.compare.tables import markdown  # noqa: E402
from eval.continual import sequence_metrics  # noqa: E402
from moram_dist.files import write_atomically  # noqa: E402
from moram_dist.reading import read_json  # noqa: E402
from moram_dist.tasks.readers import read_records  # noqa: E402

DIVERGED = 3
"""Exit code of a run whose loss became NaN or infinite."""

NEVER_LEARNED = 1000
"""Examples of a train.json from this index on serve to choose settings; no run trains on them."""

Train = Callable[[list[str]], int]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run."""

    name: str
    """The name of its folder, and its name in files of results."""

    flags: Mapping[str, Any]
    """Flags of launch/train.py, without the folder."""

    chooses: bool = False
    """Whether it is a cell of a grid, where a diverged run is a valid result."""

    @property
    def recalls(self) -> tuple[str, ...]:
        """The recalls of its evaluation; the first one chooses."""
        return tuple(str(self.flags.get("recall", "all")).split(","))


class Study:
    """Makes runs and records their results."""

    def __init__(self, *, out: Path, jobs: int, train: Train) -> None:
        """Store the arguments; no run starts yet.

        Args:
            out: parent of the run directories.
            jobs: number of runs at a time.
            train: runs launch/train.py with flags and returns its exit code.
        """
        self.out, self.jobs, self.train = out, jobs, train

    def best(
        self,
        grid: Mapping[str, Mapping[str, Sequence[Job]]],
        file: Path,
        by: Callable[[Mapping[str, Any]], float] | None = None,
    ) -> dict[str, str]:
        """For each row of a grid, the cell with the best mean, the first one in a tie.

        ``by`` gives the number of a line of results; default: AP.
        """
        by = by or ap_of
        self.do([job for row in grid.values() for cell in row.values() for job in cell], file)
        found = {_key(line): line for line in _lines(file)}
        best = {}
        for name, row in grid.items():
            aps = {
                choice: statistics.fmean(by(found[job.name, job.recalls[0]]) for job in cell)
                for choice, cell in row.items()
            }
            best[name] = max(aps, key=lambda choice: aps[choice])
            shown = ", ".join(f"{choice} {ap:.1f}" for choice, ap in aps.items())
            print(f"{name}: mean of each choice: {shown}", flush=True)
        return best

    def do(self, jobs: Sequence[Job], file: Path) -> None:
        """Make the runs that are missing in the file of results.

        Raises:
            RuntimeError: a run failed. Runs that were active then are recorded when they end.
        """
        done = {_key(line) for line in _lines(file)}
        missing = [job for job in jobs if {(job.name, one) for one in job.recalls} - done]
        print(f"{file.name}: {len(jobs) - len(missing)} of {len(jobs)} runs are there", flush=True)
        start, stopping = time.monotonic(), threading.Event()

        def one(job: Job) -> list[dict[str, Any]]:
            return [] if stopping.is_set() else self._one(job)

        failed: BaseException | None = None
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                running = [pool.submit(one, job) for job in missing]
                for count, future in enumerate(as_completed(running), start=1):
                    failed = failed or future.exception()
                    if failed:
                        stopping.set()
                    lines = [] if future.exception() else future.result()
                    _append(file, [line for line in lines if _key(line) not in done])
                    left = (time.monotonic() - start) / count * (len(missing) - count)
                    for line in lines:
                        print(
                            f"[{count}/{len(missing)}] {', recall '.join(_key(line))}: "
                            f"AP {ap_of(line):.1f}, {line['seconds']:.0f} s; "
                            f"about {left / 60:.0f} min left",
                            flush=True,
                        )
            finally:
                stopping.set()
        if failed:
            raise failed

    def _one(self, job: Job) -> list[dict[str, Any]]:
        folder = self.out / job.name
        flags = {"output_dir": folder, **job.flags}
        start = time.monotonic()
        code = self.train([word for k, v in flags.items() for word in (f"--{k}", str(v))])
        seconds = round(time.monotonic() - start, 1)
        if code == DIVERGED and job.chooses:
            diverged = {"name": job.name, "diverged": True, "seconds": seconds}
            return [diverged | {"recall": recall} for recall in job.recalls]
        if code:
            raise RuntimeError(f"{job.name} ended with code {code}; see {folder}.log")
        runs = read_runs([folder], recalls=job.recalls)
        return [json.loads(run.to_json()) | {"seconds": seconds} for run in runs]


def launch(flags: list[str]) -> int:
    """Run launch/train.py on one core, with its output in FOLDER.log. Returns the exit code."""
    log = Path(flags[flags.index("--output_dir") + 1] + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        return subprocess.run(
            [sys.executable, str(ROOT / "launch" / "train.py"), *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ).returncode


def held_out_splits(data_dir: Path, order: str, *, count: int, folder: Path) -> str:
    """A value of ``--splits`` whose test sets are training examples that no run trains on.

    Args:
        data_dir: the folder of Long Sequence.
        order: names of tasks, joined by commas.
        count: examples per task.
        folder: the test sets are written here.
    """
    splits = {}
    for task in order.split(","):
        content = read_json(data_dir / task / "train.json")
        content["Instances"] = content["Instances"][NEVER_LEARNED:][:count]
        path = folder / f"{task}.json"
        write_atomically(path, json.dumps(content, ensure_ascii=False))
        splits[task] = {"test": str(path)}
    return json.dumps(splits)


def write_table(file: Path, names: Iterable[str], folder: Path) -> str:
    """Compare runs of a file of results, in the order of ``names``; write and return the table."""
    runs = read_runs([file])
    comparison = compare([run for name in names for run in runs if run.name == name])
    text = markdown(comparison, read_references())
    write_comparison(folder, text, comparison)
    return text


def _lines(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_records(path)] if path.exists() else []


def _append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _key(line: Mapping[str, Any]) -> tuple[str, str]:
    """Run and recall. Lines older than recalls mean recall ``all``."""
    return line["name"], line.get("recall", "all")


def average_of(line: Mapping[str, Any]) -> float:
    """Mean of the whole matrix, or -1 for a run that diverged."""
    if line.get("diverged"):
        return -1.0
    average = sequence_metrics(line["scores"])["average"]
    assert average is not None, line["name"]
    return average


def ap_of(line: Mapping[str, Any]) -> float:
    """AP of a line, or the mean of the diagonal if only that was measured (``single_task``).

    -1 for a run that diverged, so that it is never chosen.
    """
    if line.get("diverged"):
        return -1.0
    metrics = sequence_metrics(line["scores"])
    ap = metrics["mean_diagonal"] if metrics["ap"] is None else metrics["ap"]
    assert ap is not None, line["name"]
    return ap
