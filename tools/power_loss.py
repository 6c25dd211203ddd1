"""Simulate a power loss at every point of a recorded run, and resume from the remaining files.

    python tools/power_loss.py [--resumed 40] [--seed 0] [--folder DIR]

A small run is recorded: every folder, file, write, rename, removal and sync, in order. For each
point of it, the possible contents of a disk after a power loss are created (``tools.disk``): with
all unsynced data kept, all lost, and some lost or torn. In each case the run directory must keep
its guarantees (``problems``). At ``--resumed`` of the points, evenly over the kinds of files that
were being written, the same command must end with the same memory, predictions and scores, bit for
bit. A table is printed; the exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eval.predictions import predictions_path  # noqa: E402
from moram_dist.atoms.memory_files import MemoryFiles  # noqa: E402
from moram_dist.reading import read_json_lines, read_object, read_yaml  # noqa: E402
from moram_dist.registry import InputError  # noqa: E402
from tools.disk import Choose, Disk, Operation, record, recorded, write_down  # noqa: E402
from tools.kill_test import results  # noqa: E402
from tools.warm_ranks import WarmRanks  # noqa: E402

FLAGS: tuple[str, ...] = ("--limit_train", "16", "--limit_eval", "4", "--epochs", "1")
FLAGS += ("--batch_size", "8", "--log_every", "1", "--tracking", "none", "--eval_rows", "all")
FLAGS += ("--order", "topic,mood", "--save_every", "1")
RUN = "run"
RUNS_WITHIN_S = 300.0
KEEPS = ("all", "none", "some", "some", "some")

Point = tuple[int, str, int]
"""Number of operations done, which unsynced data the disk keeps, and the seed of its choices."""


def run(folder: Path, log: Path | None = None) -> str:
    """Run the command on one rank. Returns its errors or its exit code, or '' if it succeeded."""
    before = None if log is None else partial(_record, root=folder.parent, log=log)
    with WarmRanks((*FLAGS, "--output_dir", folder), ranks=1, before=before) as ranks:
        try:
            ranks.wait(timeout_s=RUNS_WITHIN_S)
        except TimeoutError as error:
            return str(error)
        return f"code {ranks.codes}: {ranks.said('err')}" if any(ranks.codes) else ""


def _record(rank: int, *, root: Path, log: Path) -> None:
    record(root, log)


def reference(folder: Path) -> tuple[list[Operation], Path]:
    """Make an undisturbed run. Returns its operations on files, and its run directory.

    Raises:
        RuntimeError: it failed, or a write was not recorded.
    """
    home = folder / "undisturbed"
    home.mkdir(parents=True)
    log = folder / "operations"
    if complaint := run(home / RUN, log):
        raise RuntimeError(complaint)
    operations = recorded(log)
    disk = _disk(operations)
    kept = {path: content for path, content in disk.after(Choose("all")) if content is not None}
    found = {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}
    if kept.keys() != found.keys():
        raise RuntimeError(f"not recorded: {sorted({*kept} ^ {*found})}")
    for path, content in found.items():
        if not content.startswith(kept[path]):  # a last write is recorded by the next operation
            raise RuntimeError(f"not all of {path} was recorded")
    return operations, home / RUN


def _disk(operations: Sequence[Operation]) -> Disk:
    disk = Disk()
    for operation in operations:
        disk.do(operation)
    return disk


def points(operations: Sequence[Operation], seed: int) -> Iterator[tuple[Point, Disk]]:
    """Every point, with the state of the disk there."""
    disk = Disk()
    for done, operation in enumerate(operations, start=1):
        disk.do(operation)
        for number, keeps in enumerate(KEEPS):
            yield (done, keeps, seed + number), disk


def results_in(folder: Path) -> tuple[int, int]:
    """Numbers of published tasks and of scored cells in a run directory."""
    manifest = MemoryFiles(folder / "memory").manifest()
    scores = read_object(folder / "scores.json") if (folder / "scores.json").exists() else {}
    rows = [scores.get("base", []), *scores.get("scores", [])]
    cells = sum(score is not None for row in rows for score in row)
    return (len(manifest.tasks) if manifest else 0, cells)


def problems(folder: Path, safe: tuple[int, int]) -> list[str]:
    """The guarantees that a run directory breaks; ``safe`` is the earlier ``results_in``."""
    names = {p.name for p in folder.glob("*") if not p.name.startswith(".")}
    if not names:
        return [f"{safe} tasks and scores were safe, all are lost"] if any(safe) else []
    if "run.yaml" not in names:
        return [f"{', '.join(sorted(names))} without run.yaml"]
    try:
        read_yaml(folder / "run.yaml")
        files = MemoryFiles(folder / "memory")
        manifest = files.manifest()
        tasks = manifest.tasks if manifest else ()
        for task in tasks:
            files.shapes(task)
        if (left := results_in(folder)) < safe or left[1] < safe[1]:
            return [f"{safe} tasks and scores were safe, {left} are left"]
        if "scores.json" in names:
            return [*_problems_of_scores(folder, len(tasks))]
    except InputError as error:
        return [str(error)]
    return []


def _problems_of_scores(folder: Path, published: int) -> Iterator[str]:
    """Find scores without their predictions, and scores of a task whose memory is lost."""
    saved = read_object(folder / "scores.json")
    rows = {-1: saved.get("base", []), **dict(enumerate(saved["scores"]))}
    for row, scores in rows.items():
        for column, (name, score) in enumerate(zip(saved["tasks"], scores, strict=False)):
            if score is None:
                continue
            if row >= published:
                yield f"a score after task {row}, and {published} tasks"
            lines = [*read_json_lines(predictions_path(folder, row, column, name))]
            values = [line["score"] for _, line in lines]
            if not values or None in values or sum(values) / len(values) != score:
                yield f"a score after task {row} on {name}, and other predictions"


def lost(operations: Sequence[Operation], seed: int) -> dict[str, list[str]]:
    """Description of each point at which guarantees are broken -> the broken guarantees."""
    found: dict[str, list[str]] = {}
    safe = (0, 0)
    with tempfile.TemporaryDirectory() as home:
        for number, ((done, keeps, dice), disk) in enumerate(points(operations, seed)):
            folder = Path(home) / f"{number}"
            write_down(disk.after(Choose(keeps, dice)), folder)
            if broken := problems(folder / RUN, safe):
                found[words((done, keeps, dice), operations)] = broken
            elif keeps == "all" and operations[done - 1].kind == "sync_folder":
                safe = results_in(folder / RUN)
            shutil.rmtree(folder)
    return found


def words(point: Point, operations: Sequence[Operation]) -> str:
    """Describe a point for people."""
    done, keeps, _ = point
    operation = operations[done - 1]
    return f"#{done} after {operation.kind} {operation.path}, {keeps} kept"


def kind(operation: Operation) -> str:
    """The kind of file that was being written."""
    inside = Path(operation.to or operation.path).parts[1:] or ("the run directory",)
    name = inside[-1].removeprefix(".").removesuffix(".partial")
    return inside[0] if len(inside) > 1 and inside[0] != "memory" else name


def draw(operations: Sequence[Operation], count: int, seed: int) -> list[Point]:
    """The points at which to resume; kinds of files and kinds of loss take turns."""
    dice = random.Random(seed)
    by_kind: dict[str, list[int]] = {}
    for done, operation in enumerate(operations, start=1):
        by_kind.setdefault(kind(operation), []).append(done)
    kinds = sorted(by_kind)
    dice.shuffle(kinds)
    ways = ("none", "some", "all")
    return [
        (dice.choice(by_kind[kinds[n % len(kinds)]]), ways[n % len(ways)], dice.randrange(2**31))
        for n in range(count)
    ]


def resumed(
    operations: Sequence[Operation], point: Point, folder: Path, expected: Path
) -> list[str]:
    """Lose power at a point and rerun the command. Returns the differences from ``expected``."""
    done, keeps, seed = point
    write_down(_disk(operations[:done]).after(Choose(keeps, seed)), folder)
    if complaint := run(folder / RUN):
        return [complaint]
    found, wanted = results(folder / RUN), results(expected)
    losses, all_losses = found.pop("losses"), wanted.pop("losses")
    differs = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    # Lines of the curve are not synced one by one: some may be missing, but none may be wrong.
    if losses != [loss for loss in all_losses if loss in losses]:
        differs.append("losses")
    return differs


def main() -> int:
    """Run the whole test. Returns 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--resumed", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/power_loss"))
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} exists")
    began = time.monotonic()
    operations, expected = reference(args.folder.absolute())
    print(f"{len(operations)} operations in {time.monotonic() - began:.0f} s", flush=True)
    broken = lost(operations, args.seed)
    for where, said in broken.items():
        print(f"{where}: {'; '.join(said)}")
    print(f"{len(operations) * len(KEEPS)} disks looked at, {len(broken)} broken", flush=True)
    outcomes: list[tuple[str, bool]] = []
    for number, point in enumerate(draw(operations, args.resumed, args.seed)):
        folder = args.folder.absolute() / f"{number:03d}"
        differs = resumed(operations, point, folder, expected)
        outcomes.append((kind(operations[point[0] - 1]), not differs))
        print(f"{number:3} {words(point, operations)}: {'; '.join(differs) or 'equal'}", flush=True)
        if not differs:
            shutil.rmtree(folder)
    print(f"\n{'while writing':30} {'resumed':>8} {'equal':>6}")
    for name in (*sorted({name for name, _ in outcomes}), "all"):
        equal = [same for other, same in outcomes if name in ("all", other)]
        print(f"{name:30} {len(equal):8} {sum(equal):6}")
    print(f"{time.monotonic() - began:.0f} s")
    return int(bool(broken) or not all(same for _, same in outcomes))


if __name__ == "__main__":
    sys.exit(main())
