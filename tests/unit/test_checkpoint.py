"""The files of progress within a task: what is kept, what is believed, when it is saved."""

from __future__ import annotations

import json

import pytest
import torch

from moram_dist.config import RecordConfig
from moram_dist.registry import InputError
from moram_dist.train import checkpoint
from moram_dist.train.checkpoint import Checkpoint, ProgressFiles, SaveTimer


def place(step, task=1, learned=("a",)):
    return Checkpoint(
        task=task,
        step=step,
        optimizer_steps=step,
        seed=0,
        learned=list(learned),
        tracking={"parent": "x"},
        world_size=2,
    )


def tensors(step):
    return {
        "q.keys/master": torch.full((2, 3), float(step)),
        "method.bf16": torch.ones(2).bfloat16(),
    }


@pytest.fixture
def files(tmp_path):
    files = ProgressFiles(tmp_path / "progress")
    for step in (2, 4, 16):
        files.write(place(step), tensors(step))
    return files


def names(files):
    return sorted(path.name for path in files.folder.iterdir())


def newest(files, task=1, learned=("a",)):
    """What is found, and what was said."""
    said: list[str] = []
    return files.newest(task=task, learned=list(learned), say=said.append), said


BOTH = [f"001_{step}.{kind}" for step in ("000004", "000016") for kind in ("json", "safetensors")]


def test_the_two_newest_are_kept_and_the_newest_is_read(files):
    assert names(files) == BOTH
    found, said = newest(files)
    assert (found.step, found.optimizer_steps, found.tracking) == (16, 16, {"parent": "x"})
    assert said == [] and names(files) == BOTH
    read = files.read(found)
    assert read.keys() == tensors(16).keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors(16).items())


@pytest.mark.parametrize("task", [999, 1_000])
def test_numbers_that_outgrow_their_zeros_stay_in_order(tmp_path, task):
    files = ProgressFiles(tmp_path / "progress")
    for step in (999_999, 1_000_000, 1_000_001, 10_000_000):
        files.write(place(step, task=task), tensors(step))
        assert newest(files, task=task)[0].step == step
    kept = {path.stem for path in files.folder.iterdir()}
    assert kept == {f"{task}_1000001", f"{task}_10000000"}


def test_tasks_are_ordered_as_numbers(tmp_path):
    files = ProgressFiles(tmp_path / "progress")
    for task in (999, 1_000):
        files.write(place(4, task=task), tensors(4))
    assert newest(files, task=1_000)[0].task == 1_000
    assert {path.stem for path in files.folder.iterdir()} == {"1000_000004"}


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def change(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("safetensors", cut),
        ("safetensors", change),
        ("safetensors", lambda path: path.unlink()),
        ("json", cut),
        ("json", lambda path: path.write_text("[]")),
        ("json", lambda path: path.write_text(json.dumps({"version": 1}))),
        ("json", lambda path: path.write_text(path.read_text().replace('on": 1', 'on": 2'))),
        ("json", lambda path: path.write_text(path.read_text().replace('"step": 16', '"step": 4'))),
        ("json", lambda path: path.write_text(path.read_text().replace(": 16", ': "16"'))),
    ],
)
def test_a_broken_newest_gives_way_to_the_older_one(files, name, spoil):
    path = files.folder / f"001_000016.{name}"
    spoil(path)
    found, said = newest(files)
    assert found.step == 4
    (line,) = said
    assert "001_000016" in line and line.endswith("not used") and "\n" not in line
    assert names(files) == BOTH[:2]


def test_a_state_without_its_record_does_not_count(files):
    """As when a save is cut short: the record is written last."""
    (files.folder / "001_000016.json").unlink()
    (files.folder / ".001_000018.json.partial").write_text("{")
    found, said = newest(files)
    assert (found.step, said, names(files)) == (4, [], BOTH[:2])


@pytest.mark.parametrize(("task", "learned"), [(2, ("a",)), (0, ("a",)), (1, ("b",)), (1, ())])
def test_what_belongs_to_another_task_or_memory_is_removed(files, task, learned):
    assert newest(files, task, learned) == (None, [])
    assert not files.folder.exists()


def test_clear(files):
    files.clear()
    assert not files.folder.exists()
    files.clear()
    assert newest(files) == (None, [])


def test_steps_or_minutes(monkeypatch):
    timer = SaveTimer(RecordConfig(save_every="3"), None)
    assert [step for step in range(1, 8) if timer.due(step)] == [3, 6]
    now = 100.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    timer = SaveTimer(RecordConfig(save_every="1.5m"), None)
    now += 89
    assert not timer.due(1)
    now += 1
    assert timer.due(2) and timer.due(3)
    timer.saved()
    assert not timer.due(4)


@pytest.mark.parametrize("save_every", ["3", "10m"])
def test_the_last_step_of_a_long_task_is_saved(monkeypatch, save_every):
    now = 100.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    timer = SaveTimer(RecordConfig(save_every=save_every), None)
    now += 59
    assert not timer.due(1) and not timer.due(2, ends=True)
    now += 1
    assert not timer.due(1) and timer.due(2, ends=True)
    timer.saved()
    assert not timer.due(4, ends=True)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "m", "0m", "-1m", "nanm", "infm", "5s", "x"]
)
def test_save_every_that_means_nothing(text):
    with pytest.raises(InputError, match=r"--save_every must be steps \(200\) or minutes \(10m\)"):
        RecordConfig(save_every=text)
