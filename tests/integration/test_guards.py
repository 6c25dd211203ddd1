"""Faults that a long run meets: each is planted, named in one line, and nothing published is lost.

Runs of two tasks on warm ranks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from moram_dist import files
from moram_dist.tracking import MetricsFile
from moram_dist.train.run_dir import RunDir
from tests.integration.launching import train

pytestmark = pytest.mark.integration

FLAGS = ("--limit_train", "16", "--limit_eval", "4", "--epochs", "1", "--batch_size", "8")
FLAGS += ("--log_every", "1", "--tracking", "none", "--order", "topic,mood")
FLAGS += ("--preset", "published")


def command(
    folder: Path, *flags: str, before: Callable[[int], None] | None = None
) -> tuple[int, str, list[str]]:
    """Exit code, what was printed, and lines of complaint."""
    done = train(*FLAGS, *flags, "--output_dir", folder, before=before)
    assert "Traceback" not in done.err
    return done.code, done.out, [line for line in done.err.splitlines() if line[:5] == "error"]


def refused(folder: Path, *flags: str, code: int = 2) -> str:
    """The one line of a command that does no work and changes nothing."""
    before = contents(folder)
    found, out, (complaint,) = command(folder, *flags)
    assert found == code, complaint
    assert "step 1/" not in out and "all 2 tasks are done" not in out
    assert contents(folder) == before
    return complaint


def contents(folder: Path) -> dict[str, bytes]:
    """Everything that is a result of training or evaluation, by name."""
    paths = [*folder.glob("memory/*"), *folder.glob("predictions/*/*"), folder / "scores.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.exists()}


def curve(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, out, complaints = command(folder)
    assert (code, complaints) == (0, []) and "AP " in out
    return folder


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(whole, tmp_path / "finished")


@pytest.fixture
def unfinished(whole, tmp_path) -> Path:
    """One that stopped after its first task."""
    copy = shutil.copytree(whole, tmp_path / "unfinished")
    change(copy, tasks=manifest(copy)["tasks"][:1])
    return copy


@pytest.fixture(params=["finished", "unfinished"])
def run(request) -> Path:
    """Each of them."""
    return request.getfixturevalue(request.param)


def manifest(folder: Path) -> dict:
    return json.loads((folder / "memory" / "memory.json").read_text())


def change(folder: Path, **values: object) -> None:
    path = folder / "memory" / "memory.json"
    path.write_text(json.dumps({**manifest(folder), **values}))


# A disk that is full. Root is refused nothing else on it, so the faults are planted.

FULL = "/dev/full"


def no_room_for(rank: int, *, full: Path) -> None:
    """The disk has no room for one file."""
    created = files.create

    def create(path: Path, **kwargs: bool) -> BinaryIO:
        file = created(path, **kwargs)
        return Path(FULL).open("wb") if path == full.with_name(f".{full.name}.partial") else file

    files.create = create


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("inputs.json", marks=pytest.mark.nightly),
        pytest.param("environment.json", marks=pytest.mark.nightly),
        "memory/001_mood.safetensors",
        "memory/memory.json",
        "predictions/after_001/on_000_topic.jsonl",
        pytest.param("scores.json", marks=pytest.mark.nightly),
        pytest.param("report/index.html", marks=pytest.mark.nightly),
    ],
)
def test_a_full_disk(whole, tmp_path, name):
    folder = tmp_path / "run"
    path = folder / name
    code, _, (complaint,) = command(folder, before=partial(no_room_for, full=path))

    assert code == 4
    assert complaint.startswith(f"error: {path} cannot be written: No space left on device; ")
    assert not path.exists()
    expected = contents(whole)
    for other, content in contents(folder).items():  # these two grow
        assert other in ("memory/memory.json", "scores.json") or content == expected[other]
    assert command(folder)[0] == 0
    assert contents(folder) == expected
    assert curve(folder) == curve(whole)
    assert not list(folder.rglob("*.partial"))


def no_room_for_metrics(rank: int) -> None:
    opened = MetricsFile.open

    def open_(self, run, from_step=None):
        opened(self, run, from_step)
        self._file = open(FULL, "ab", buffering=0)

    MetricsFile.open = open_


def test_a_full_disk_under_the_metrics(whole, tmp_path):
    folder = tmp_path / "run"
    code, _, (complaint,) = command(folder, before=no_room_for_metrics)
    assert code == 4
    path = folder / "metrics.jsonl"
    assert complaint.startswith(f"error: {path} cannot be written: No space left on device; ")
    assert command(folder)[0] == 0
    assert contents(folder) == contents(whole)
    assert curve(folder) == curve(whole)


# What is on disk is not what this command left there.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 7}, "memory.json has version 7; this program reads 1"),
        ({"method": "sequential_lora"}, "(method: sequential_lora -> moram)"),
        ({"settings": {"top_k": 3}}, "(top_k: 3 -> 8)"),
        (
            {"settings": {"threshold": 0.5, "alpha": 2}},
            "(alpha: 2.0 -> 16.0; threshold: 0.5 -> 0.2)",
        ),
    ],
)
def test_a_memory_of_other_settings(run, changes, expected):
    if "settings" in changes:
        changes = {"settings": {**manifest(run)["settings"], **changes["settings"]}}
    change(run, **changes)
    complaint = refused(run)
    assert str(run / "memory" / "memory.json") in complaint and expected in complaint


def test_a_memory_of_other_linears(unfinished):
    *others, last = manifest(unfinished)["modules"]
    change(unfinished, modules=others)
    complaint = refused(unfinished)
    assert f"do not name the same linears: only one of them has {last}" in complaint


@pytest.mark.parametrize("name", ["memory/000_topic.safetensors", "memory/memory.json", "run.yaml"])
def test_a_file_that_is_cut_short(run, name):
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    assert str(run / name) in refused(run)


def test_damage_to_what_is_made_anew_stops_nothing(unfinished, whole):
    (unfinished / "progress").mkdir()
    for name in ("benchmark.json", "ds_config.json", "environment.json", "tracking.json"):
        (unfinished / name).write_bytes(b"")
    for name in ("001_000001.json", "001_000001.safetensors"):
        (unfinished / "progress" / name).write_bytes(b"\0" * 40)
    for path in unfinished.glob("predictions/after_001/*"):
        path.write_bytes(b"{")
    (unfinished / "scores.json").unlink()  # and with it the scores
    first = (whole / "metrics.jsonl").read_bytes().split(b"\n")[0]
    (unfinished / "metrics.jsonl").write_bytes(b"\0\0\n" + first + b"\n[]\n{\xe5")
    code, out, complaints = command(unfinished, "--save_every", "1")
    assert (code, complaints) == (0, [])
    assert "001_000001.json, line 1, column 1: malformed JSON" in out
    assert contents(unfinished) == contents(whole)
    for name in ("benchmark.json", "ds_config.json"):
        assert (unfinished / name).read_bytes() == (whole / name).read_bytes()


def test_scores_that_are_cut_short(run):
    path = run / "scores.json"
    path.write_text(path.read_text()[:50])
    assert f"{path}, line" in refused(run)


def test_scores_of_other_tasks(run):
    path = run / "scores.json"
    path.write_text(path.read_text().replace("topic", "stars"))
    assert f"{path}: its tasks are not those of this run" in refused(run)


def test_predictions_that_are_cut_short(run):
    path = run / "predictions" / "after_001" / "on_000_topic.jsonl"
    path.write_text(path.read_text()[:-20])
    code, _, (complaint,) = command(run)
    assert (code, str(path) in complaint) == (2, True), complaint


def test_a_second_run(unfinished):
    with RunDir(unfinished).locked():
        complaint = refused(unfinished)
    assert f"{unfinished} is in use by another run (process {os.getpid()} on " in complaint


def spoil_a_frozen_atom(rank: int) -> None:
    """In rank 1's memory, at the second task's first step: one bit of what the first learned."""
    from moram_dist.train.trainer import Trainer

    whole_step = Trainer._step

    def step(trainer, i, step, total):
        if rank == 1 and (i, step.index) == (1, 0):
            memory = next(iter(trainer.method.memories.values()))
            memory.bank.copy_F.view(torch.int32)[5] ^= 1
        return whole_step(trainer, i, step, total)

    Trainer._step = step  # type: ignore[method-assign]


def test_a_frozen_atom_that_changes(whole, tmp_path):
    code, _, (complaint,) = command(tmp_path / "run", before=spoil_a_frozen_atom)
    assert code == 4
    assert complaint.startswith("error (rank 1): frozen atoms of model.layers.0.self_attn.q_proj")
    published = contents(tmp_path / "run")
    assert set(published) < set(contents(whole)) and "memory/001_mood.safetensors" not in published

    code, out, complaints = command(tmp_path / "run")
    assert (code, complaints) == (0, []) and "task 1/2" not in out
    assert contents(tmp_path / "run") == contents(whole)
