"""Kill a run at random moments, resume it, and compare it with an undisturbed run.

    python tools/kill_test.py [--runs 40] [--seed 0] [--folder DIR] [--placement stationary]
    python tools/kill_test.py --change_ranks

An undisturbed run is traced first: every moment of every rank at which something could be lost.
Then, for each of ``--runs`` fresh folders, one moment is drawn, evenly over the kinds. The process
of that rank gets SIGKILL at the moment, the other ranks must end by themselves, and the same
command must end with the same memory, predictions, scores, observed routing and losses, bit for
bit. Every third run is killed twice. A table is printed; the exit code is 1 if anything differed.
Other flags are those of launch/train.py.

With ``--change_ranks`` the command resumes on another number of ranks, from 2 to 1, 1 to 3 and 3 to
2 in turn. Then predictions and scores must be equal, and losses within 2e-6. All atoms answer each
token: if some were chosen, rounding would choose another one now and then.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.warm_ranks import WarmRanks  # noqa: E402

RANKS = 2
CHANGES = ((2, 1), (1, 3), (3, 2))
ALL_ANSWER = ("--top_k", "64")
CLOSE = 2e-6
"""Largest relative difference of losses; without choices of atoms, rounding makes it 4e-7."""

FLAGS: tuple[str, ...] = ("--limit_train", "32", "--limit_eval", "8", "--epochs", "1")
FLAGS += ("--batch_size", "8", "--log_every", "1", "--tracking", "none")
FLAGS += ("--order", "topic,mood,place", "--save_every", "1")
ENDS_WITHIN_S = 180.0
RUNS_WITHIN_S = 300.0


@dataclass(frozen=True)
class Moment:
    """The ``number``-th time, from 0, that a rank reaches a point of this kind."""

    rank: int
    kind: str
    number: int


@dataclass(frozen=True)
class UndisturbedRun:
    """The undisturbed run, which is the reference."""

    flags: tuple[str, ...]
    results: dict[str, Any]
    trace: list[Moment]


@dataclass
class Outcome:
    """The outcome of one disturbed run."""

    moments: list[Moment]
    kills: int = 0
    differs: list[str] = field(default_factory=list)
    """Differences from the reference, and errors."""


def undisturbed(folder: Path, *more_flags: str) -> UndisturbedRun:
    """Run to the end, and record every moment."""
    flags = (*FLAGS, *more_flags)
    trace = folder.with_name(f"{folder.name}.trace")
    trace.mkdir(parents=True)
    with WarmRanks(
        (*flags, "--output_dir", folder), ranks=RANKS, before=partial(_trace, folder=trace)
    ) as ranks:
        ranks.wait(timeout_s=RUNS_WITHIN_S)
        if any(ranks.codes):
            raise RuntimeError(ranks.said("err"))
    moments = []
    for rank in range(RANKS):
        seen: Counter[str] = Counter()
        for kind in (trace / f"{rank}").read_text().split("\n")[:-1]:
            moments.append(Moment(rank, kind, seen[kind]))
            seen[kind] += 1
    return UndisturbedRun(flags, results(folder), moments)


def disturbed(
    folder: Path,
    moments: Iterable[Moment],
    reference: UndisturbedRun,
    ranks_before: int = RANKS,
    ranks_after: int = RANKS,
) -> Outcome:
    """Run in a fresh folder, kill at each of the moments in turn, then run to the end."""
    outcome = Outcome([*moments])
    command: tuple[str | Path, ...] = (*reference.flags, "--output_dir", folder)
    for moment in outcome.moments:
        kill = partial(_kill, moment=replace(moment, rank=moment.rank % ranks_before))
        with WarmRanks(command, ranks=ranks_before, before=kill) as ranks:
            try:
                ranks.wait(timeout_s=ENDS_WITHIN_S)
            except TimeoutError as error:
                outcome.differs.append(f"ranks that do not end: {error}")
            *others, killed = sorted(ranks.codes, key=lambda code: code == -signal.SIGKILL)
            outcome.kills += killed == -signal.SIGKILL
            # Killing a rank after the others have exited does not disturb them.
            if not {*others} <= {0, 4} or "Traceback" in ranks.said("err"):
                outcome.differs.append(f"codes {ranks.codes}: {ranks.said('err')}")
    with WarmRanks(command, ranks=ranks_after) as ranks:
        ranks.wait(timeout_s=RUNS_WITHIN_S)
        if any(ranks.codes):
            outcome.differs.append(ranks.said("err"))
    found, expected = results(folder), dict(reference.results)
    if (ranks_before, ranks_after) != (RANKS, RANKS):  # equal to rounding
        losses, others = found.pop("losses"), expected.pop("losses")
        if not close(losses, others):
            outcome.differs.append("losses")
        found, expected = (
            {n: v for n, v in r.items() if not n.startswith(("memory/", "observe/"))}
            for r in (found, expected)
        )
    outcome.differs += [
        name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)
    ]
    return outcome


def close(losses: list[Any], others: list[Any]) -> bool:
    """Whether two curves have the same steps, and losses within ``CLOSE`` of each other."""
    return [point[:2] for point in losses] == [point[:2] for point in others] and all(
        math.isclose(a, b, rel_tol=CLOSE) for (*_, a), (*_, b) in zip(losses, others, strict=True)
    )


def results(folder: Path) -> dict[str, Any]:
    """The results of a run by name: bytes of files, and the losses in the order of their log."""
    paths = [*folder.glob("memory/*"), *folder.glob("predictions/*/*"), folder / "scores.json"]
    paths += [*folder.glob("progress/*"), *folder.glob("observe/*")]
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in paths if path.exists()
    }
    curve = folder / "metrics.jsonl"
    logged = [json.loads(line) for line in curve.read_text().split("\n")[:-1]]
    found["losses"] = [
        (line["task"], line["step"], line["train/loss"]) for line in logged if "train/loss" in line
    ]
    found["report"] = (folder / "report" / "index.html").exists()
    return found


def draw(reference: UndisturbedRun, runs: int, seed: int) -> list[list[Moment]]:
    """The moments of the kills, one list per run; kinds take turns."""
    dice = random.Random(seed)
    kinds = sorted({moment.kind for moment in reference.trace})
    dice.shuffle(kinds)
    drawn = []
    for run in range(runs):
        of_kind = [m for m in reference.trace if m.kind == kinds[run % len(kinds)]]
        moments = [dice.choice(of_kind)]
        if run % 3 == 2:  # the resumed run repeats less, so only an early moment is sure to come
            moments.append(dice.choice([m for m in reference.trace if m.number < 2]))
        drawn.append(moments)
    return drawn


# In the ranks.


def _trace(rank: int, *, folder: Path) -> None:
    descriptor = os.open(folder / f"{rank}", os.O_WRONLY | os.O_CREAT)
    _watch_for(lambda kind: os.write(descriptor, f"{kind}\n".encode()))


def _kill(rank: int, *, moment: Moment) -> None:
    seen: Counter[str] = Counter()

    def note(kind: str) -> None:
        if (rank, kind, seen[kind]) == (moment.rank, moment.kind, moment.number):
            os.kill(os.getpid(), signal.SIGKILL)
        seen[kind] += 1

    _watch_for(note)


def _watch_for(note: Callable[[str], object]) -> None:
    """Call ``note`` with the kind of each moment when it is reached."""
    import launch.session
    from eval.measure import harness, observe
    from eval.report import write
    from moram_dist import files
    from moram_dist.atoms.memory_files import MemoryFiles
    from moram_dist.methods import METHODS
    from moram_dist.train import trainer
    from moram_dist.train.forward import Forward

    def around(owner: Any, name: str, kind: str) -> None:
        wrapped = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            note(f"before {kind}")
            out = wrapped(*args, **kwargs)
            note(f"after {kind}")
            return out

        setattr(owner, name, wrapper)

    around(launch.session, "make_engine", "loading")
    around(trainer, "start_fresh", "a task's reset")
    around(trainer.Trainer, "_step", "a step")
    around(Forward, "__call__", "a forward pass")
    around(trainer.Trainer, "_log", "the losses' log")
    around(MemoryFiles, "publish", "publishing")
    around(harness, "answer_batch", "predicting")
    around(observe.Observer, "__call__", "observing")
    around(write, "write_report", "the report")
    for method in {cls for name in METHODS for cls in METHODS[name].__mro__[:-1]}:
        if "before_step" in vars(method):
            around(method, "before_step", "the optimizer's work")
        if "end_task" in vars(method):
            around(method, "end_task", "freezing")

    # Moments inside write_atomically: the temporary file, half of its bytes, its final name.
    created, replaced = files.create, Path.replace

    class HalfWritten:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> HalfWritten:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            half = len(content) // 2
            self.file.write(content[:half])
            self.file.flush()
            note("half of a file written")
            self.file.write(content[half:])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def create(path: Path, **kwargs: Any) -> Any:
        note("before a file")
        return HalfWritten(created(path, **kwargs))

    def replace(path: Path, target: Path) -> Path:
        note("before a file's rename")
        out = replaced(path, target)
        note("after a file's rename")
        return out

    files.create, Path.replace = create, replace  # type: ignore[assignment,method-assign]


def main() -> int:
    """Run the whole test. Returns 1 if anything differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--change_ranks", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_test"))
    args, more_flags = parser.parse_known_args()
    if args.folder.exists():
        parser.error(f"{args.folder} exists")
    began = time.monotonic()
    more_flags += ALL_ANSWER if args.change_ranks else ()
    reference = undisturbed(args.folder / "undisturbed", *more_flags)
    print(f"{len(reference.trace)} moments in {time.monotonic() - began:.0f} s", flush=True)
    outcomes = []
    for run, moments in enumerate(draw(reference, args.runs, args.seed)):
        folder = args.folder / f"{run:03d}"
        change = CHANGES[run % len(CHANGES)] if args.change_ranks else (RANKS, RANKS)
        outcome = disturbed(folder, moments, reference, *change)
        outcomes.append(outcome)
        when = ", then ".join(f"rank {m.rank} {m.kind} #{m.number}" for m in moments)
        when += f", {change[0]} to {change[1]} ranks" if args.change_ranks else ""
        print(f"{run:3} {when}: {'; '.join(outcome.differs) or 'equal'}", flush=True)
        if not outcome.differs:
            shutil.rmtree(folder)
    print(f"\n{'first killed':26} {'runs':>5} {'kills':>6} {'equal':>6}")
    for kind in (*sorted({o.moments[0].kind for o in outcomes}), "all"):
        of_kind = [o for o in outcomes if kind in ("all", o.moments[0].kind)]
        equal = sum(not outcome.differs for outcome in of_kind)
        print(f"{kind:26} {len(of_kind):5} {sum(o.kills for o in of_kind):6} {equal:6}")
    print(f"{(time.monotonic() - began) / max(1, args.runs):.1f} s a run")
    return int(any(outcome.differs or not outcome.kills for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
