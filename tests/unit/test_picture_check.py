"""What is looked at before a run: every training picture, or a spread sample of many."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moram_dist.data import picture_check
from moram_dist.data.picture_check import check_pictures
from moram_dist.data.picture_files import PictureFolder
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Example
from tests.helpers.tiny_clip import draw_task


@pytest.fixture
def benchmark(tmp_path):
    tasks = tuple(draw_task(tmp_path, name, count=2) for name in ("one", "two"))
    return Benchmark(name="images", order="default", protocol="default", tasks=tasks)


def check(benchmark, *, trained=True):
    check_pictures(benchmark, trained=trained, say=print)


def cut(benchmark, name):
    """Cut a picture of the last task short, behind its header."""
    path = benchmark.tasks[-1].pictures / name
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_good_pictures(benchmark):
    check(benchmark)


def test_a_truncated_training_picture(benchmark):
    path = cut(benchmark, "train_blue_1.png")
    with pytest.raises(InputError, match=f"^{path}: cannot be read: "):
        check(benchmark)
    check(benchmark, trained=False)  # for a method that does not train


def test_only_headers_of_test_pictures(benchmark):
    path = cut(benchmark, "test_blue_1.png")
    check(benchmark)
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=f"^{path}: not a picture, or damaged"):
        check(benchmark)


def test_only_some_headers_of_many(benchmark, monkeypatch):
    monkeypatch.setattr(picture_check, "DECODED", 3)
    monkeypatch.setattr(picture_check, "OPENED", 4)
    looked = []
    seen = PictureFolder.check

    def recorded(folder, name):
        looked.append(f"{folder.folder.name}/{name}")
        seen(folder, name)

    monkeypatch.setattr(PictureFolder, "check", recorded)
    cut(benchmark, "train_blue_1.png")
    check(benchmark)
    assert sorted(looked) == sorted(
        f"{task}/{split}_{one}.png"
        for task in ("one", "two")
        for split in ("train", "test")
        for one in ("red_0", "red_1")
    )


def test_a_picture_drawn_twice_is_read_once(benchmark, monkeypatch):
    task = benchmark.tasks[0]
    twice = replace(task, train=(*task.train, Example("train-0", task.train[0].prompt, ("red",))))
    opened = []
    monkeypatch.setattr(PictureFolder, "open", lambda folder, name: opened.append(name))
    check(replace(benchmark, tasks=(twice,)))
    assert sorted(opened) == sorted(example.prompt for example in task.train)


def test_tasks_without_files_of_pictures_are_passed_over(benchmark):
    texts = replace(benchmark.tasks[0], pictures=None)
    check(replace(benchmark, tasks=(texts,)))
