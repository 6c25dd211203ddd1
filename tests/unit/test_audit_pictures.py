"""The audit of pictures: every kind of planted fault is found, and clean ones have none."""

from __future__ import annotations

import json
import shutil

import pytest

from eval.audit import picture_files
from eval.run import main
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.picture_files import encoded, noise, write_parquet
from tests.helpers.tiny_clip import save_tiny_clip


@pytest.fixture
def folder(tmp_path):
    """Two tasks without a fault: two classes, three pictures to train on and two to test."""
    seed = 0
    for task, classes in (("birds", ("robin", "wren")), ("signs", ("stop", "yield"))):
        for split, count in (("train", 3), ("test", 2)):
            for name in classes:
                place = tmp_path / "data" / task / split / name
                place.mkdir(parents=True)
                for i in range(count):
                    (place / f"{i}.jpg").write_bytes(encoded(noise(30, 20, seed), "JPEG"))
                    seed += 1
    return tmp_path / "data"


def audit(folder, capsys, *words):
    """Exit code, and the lines of findings."""
    code = main(["audit", "--benchmark", "images", "--data_dir", str(folder), "--strict", *words])
    printed = capsys.readouterr().out
    return code, [line for line in printed.splitlines() if line.startswith("- ")]


def test_no_fault(folder, capsys, tmp_path):
    out = tmp_path / "audit.json"
    assert audit(folder, capsys, "--shots", "2", "--out", str(out)) == (0, [])
    found = json.loads(out.read_text())
    assert found["splits"][0] == {
        "task": "birds",
        "split": "train",
        "pictures": 6,
        "used": 4,
        "classes": 2,
        "fewest": 3,
        "most": 3,
        "smallest": 20,
        "median": 20,
        "unreadable": 0,
    }


def test_a_damaged_picture_is_named(folder, capsys):
    path = folder / "birds" / "train" / "wren" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    code, lines = audit(folder, capsys, "--shots", "1")  # one that no run of this seed may draw
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith(
        f"- error: birds train: pictures that cannot be read: 1 of 6: {path}: cannot be read: image"
    )
    assert lines[0].endswith("(train/wren/1.jpg)")


def copy(folder, old, new):
    (folder / new).parent.mkdir(exist_ok=True)
    shutil.copy(folder / old, folder / new)


PLANTED = {
    ("birds/train/wren/0.jpg", "birds/test/wren/9.jpg"): (
        "- error: birds test: pictures that are in train too: 1 of 5, 1 in its class "
        "(test/wren/9.jpg)"
    ),
    ("birds/train/wren/0.jpg", "birds/test/robin/9.jpg"): (
        "- error: birds test: pictures that are in train too: 1 of 5, 0 in its class "
        "(test/robin/9.jpg)"
    ),
    ("birds/train/wren/0.jpg", "birds/train/wren/9.jpg"): (
        "- warning: birds train: pictures that repeat an earlier one of their class: 1 of 7 "
        "(train/wren/9.jpg)"
    ),
    ("birds/train/wren/0.jpg", "birds/train/robin/9.jpg"): (
        "- warning: birds train: pictures that are in several classes: 1 "
        "(train/robin/9.jpg, train/wren/0.jpg)"
    ),
    ("birds/test/wren/0.jpg", "birds/test/robin/9.jpg"): (
        "- error: birds test: pictures that are in several classes: 1 "
        "(test/robin/9.jpg, test/wren/0.jpg)"
    ),
    ("birds/test/wren/0.jpg", "signs/train/stop/9.jpg"): (
        "- warning: signs: pictures that task birds has too: 1 (train/stop/9.jpg)"
    ),
}


@pytest.mark.parametrize(("places", "expected"), PLANTED.items())
def test_the_same_picture_twice(folder, capsys, places, expected):
    copy(folder, *places)
    assert audit(folder, capsys) == (expected.startswith("- error"), [expected])


def test_the_same_picture_twice_in_rows(tmp_path, capsys):
    place = tmp_path / "data" / "rows"
    place.mkdir(parents=True)
    pictures = [encoded(noise(9, 8, seed)) for seed in range(4)]
    write_parquet(place / "train.parquet", pictures[:2])
    write_parquet(place / "test.parquet", [pictures[2], pictures[1]])
    (tmp_path / "data" / "tasks.yaml").write_text("[{name: rows, folder: rows, classes: [a, b]}]")
    code, lines = audit(tmp_path / "data", capsys)
    leak = "- error: rows test: pictures that are in train too: 1 of 2, 1 in its class"
    assert code == 1 and lines[0] == f"{leak} (test.parquet#1)"
    assert lines[1] == "- warning: rows train: classes with one picture: 2: 'a' (1), 'b' (1)"


def test_classes_with_few_pictures(folder, capsys):
    (folder / "birds" / "train" / "wren" / "1.jpg").unlink()
    (folder / "signs" / "train" / "stop" / "1.jpg").unlink()
    (folder / "signs" / "train" / "stop" / "2.jpg").unlink()
    shutil.rmtree(folder / "signs" / "test" / "yield")
    assert audit(folder, capsys, "--shots", "3") == (
        0,
        [
            "- warning: birds train: classes with fewer than 3 pictures: 1: 'wren' (2)",
            "- warning: signs train: classes with fewer than 3 pictures: 1: 'stop' (1)",
            "- note: signs test: classes without a test picture: 1: 'yield' (0)",
        ],
    )
    _, lines = audit(folder, capsys)
    assert lines[0] == "- warning: signs train: classes with one picture: 1: 'stop' (1)"


def test_names_and_texts_that_occur_twice(folder, capsys):
    for split in ("train", "test"):
        (folder / "birds" / split / "wren").rename(folder / "birds" / split / "stop")
    text = "1: 'a photo of a stop.' (birds/stop, signs/stop)"
    name = "- note: classes: class names that several tasks have: 1: 'stop' (birds, signs)"
    apart = "- note: classes: texts of classes of several tasks, which do not compete"
    assert audit(folder, capsys) == (0, [name, f"{apart}: {text}"])
    _, (first, _, last) = audit(folder, capsys, "--protocol", "all")
    joint = "- warning: classes: texts of several classes that compete, so the first one wins"
    assert (first, last) == (f"{joint}: {text}", name)


def test_texts_that_are_cut(folder, capsys, tmp_path):
    model = str(save_tiny_clip(tmp_path / "model"))
    _, lines = audit(folder, capsys, "--model", model)
    assert [line.partition(":")[0] for line in lines] == ["- warning"] * 2
    assert "birds: texts that are cut to 12 tokens: 2: 'a photo of a robin.'" in lines[0]


def test_a_base_that_reads_no_pictures(folder, capsys, tmp_path):
    words = ["audit", "--benchmark", "images", "--data_dir", str(folder), "--model", "demo"]
    assert main(words) == 2
    assert "--model demo: reads no pictures" in capsys.readouterr().err
    assert main(["audit", "--benchmark", "demo", "--model", str(save_tiny_clip(tmp_path))]) == 2
    assert "reads no texts, and the benchmark is of texts" in capsys.readouterr().err


def test_pictures_are_looked_at_in_portions(folder, monkeypatch):
    monkeypatch.setattr(picture_files, "AT_ONCE", 3)
    benchmark = BENCHMARKS["images"](Source(data_dir=folder))
    looked = picture_files.look_at_pictures(benchmark, print)
    assert len({seen.digest for seen in looked.values()}) == len(looked) == 20
