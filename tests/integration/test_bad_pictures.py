"""Wrong input of tasks of pictures: one line that names it, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.helpers.picture_files import encoded, noise, write_parquet
from tests.helpers.tiny_clip import save_tiny_clip
from tests.integration.launching import launcher, run
from tests.integration.test_bad_input import complaint, one_line  # noqa: F401

pytestmark = pytest.mark.integration

TRAIN = [["a/0.jpg", 0, "robin"], ["b/0.jpg", 1, "wren"]]
TEST = [["a/1.jpg", 0, "robin"], ["b/1.jpg", 1, "wren"]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("model"))


@pytest.fixture
def birds(tmp_path):
    """A data set with a list, two pictures of each of two classes; it has no fault yet."""
    folder = tmp_path / "data" / "birds"
    for seed, name in enumerate(("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg")):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(encoded(noise(30, 20, seed), "JPEG"))
    write_list(folder)
    return folder


def write_list(folder, train=TRAIN, test=TEST):
    (folder / "split.json").write_text(json.dumps({"train": train, "test": test}))


@pytest.fixture
def refused(complaint, clip, birds):  # noqa: F811
    """Gives further flags to a run on the tiny CLIP; returns what it says."""

    def give(**flags):
        settled = {"model": clip, "benchmark": "images", "data_dir": birds.parent}
        return complaint(**{"target_modules": "all-linear", **settled, **flags})

    return give


LISTS = [
    (
        {"train": [*TRAIN, ["a/7.jpg", 0, "robin"]]},
        "split.json, train, record 2: no such picture: 'a/7.jpg' in {images}",
    ),
    ({"test": [["c/7.jpg", 0, "robin"]]}, "test, record 0: no such picture: 'c/7.jpg' in {images}"),
    ({"train": [["../a.jpg", 0, "robin"], *TRAIN]}, "split.json: no such picture: '../a.jpg'"),
    ({"train": [*TRAIN, ["a/0.jpg", 3, "owl"]]}, "labels must count from 0 without gaps"),
    ({"train": [["a/0.jpg", 0], *TRAIN]}, "record 0: expected [picture, label, class name]"),
    ({"train": [["a/0.jpg", 0, ""], *TRAIN]}, "split.json, train record 0: a class name"),
    ({"train": TRAIN[:1]}, "split.json: class 1, 'wren', has no training pictures"),
    ({"test": []}, "split.json: holds no test pictures"),
]


@pytest.mark.parametrize(("lists", "expected"), LISTS, ids=[said for _, said in LISTS])
def test_lists(refused, birds, lists, expected):
    write_list(birds, **lists)
    assert expected.format(images=birds / "images") in refused()


def test_damaged_pictures(refused, birds):
    path = birds / "images" / "b" / "0.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert f"{path}: cannot be read: image file is truncated" in refused()
    path.write_bytes(b"")
    assert refused() == f"{path}: is empty"
    path.write_bytes(b"<html>not found</html>")
    assert f"{path}: not a picture, or damaged" in refused()
    path.write_bytes(whole)
    tested = birds / "images" / "b" / "1.jpg"
    tested.write_bytes(whole[:10])
    assert f"{tested}: cannot be read: Truncated File Read" in refused(method="zero_shot")


@pytest.fixture
def shelf(birds):
    """An empty folder of another data set."""
    shutil.rmtree(birds)
    folder = birds.parent / "other"
    folder.mkdir()
    return folder


def test_a_class_without_pictures(refused, shelf):
    for split in ("train", "test"):
        for name in ("robin", "wren"):
            (shelf / split / name).mkdir(parents=True)
            (shelf / split / name / "0.png").write_bytes(encoded(noise(9, 9)))
    (shelf / "train" / "wren" / "0.png").unlink()
    assert f"{shelf / 'train' / 'wren'}: " in refused()


def test_a_label_without_a_name(refused, shelf):
    for split in ("train", "test"):
        write_parquet(shelf / f"{split}.parquet", [encoded(noise(9, 9, i)) for i in range(3)])
    assert f"{shelf}: holds no class names" in refused()
    (shelf.parent / "tasks.yaml").write_text("[{name: one, folder: other, classes: [a, b]}]")
    assert "train picture 2 has label 2, which has no name; there are 2 names" in refused()


def test_pickles_and_other_files(refused, shelf):
    (shelf / "data_batch_1").write_bytes(b"\x80\x04N.")
    assert f"{shelf / 'data_batch_1'}: a pickle is not read" in refused()
    (shelf / "data_batch_1").unlink()
    (shelf / "imagelabels.mat").touch()
    assert f"{shelf / 'imagelabels.mat'}: MATLAB files are not read" in refused()


@pytest.mark.parametrize("benchmark", ["xtail", "mtil"])
def test_published_benchmarks(refused, birds, benchmark):
    assert f"{birds.parent}: no folder for " in refused(benchmark=benchmark)
    assert "unknown protocol of" in refused(benchmark=benchmark, protocol="sapt")
    assert f"{birds.parent / 'none'}: cannot be listed" in refused(
        benchmark=benchmark, data_dir=birds.parent / "none"
    )


FLAGS = [
    ({"micro_batch_size": 4}, "--micro_batch_size 4: --model {clip} compares the pictures"),
    ({"micro_batch_tokens": 64}, "--micro_batch_tokens 64: --model {clip} compares the pictures"),
    ({"method": "in_context"}, "--method in_context reads prompts as texts, and --model {clip}"),
    ({"method": "gain_lora"}, "--method gain_lora reads prompts as texts, and --model {clip}"),
    ({"model": "demo"}, "--benchmark images is of pictures, and --model demo reads texts"),
    ({"shots": 0}, "--shots must be > 0, got 0"),
    ({"splits": "{birds: {train: test}}"}, "images: splits of task birds: the only other split"),
]


@pytest.mark.parametrize(("flags", "expected"), FLAGS, ids=[str(flags) for flags, _ in FLAGS])
def test_flags(refused, clip, flags, expected):
    assert expected.format(clip=clip) in refused(**flags)


def test_texts(complaint, clip):  # noqa: F811
    said = f"--model {clip} reads pictures, and the prompts of --benchmark demo are texts"
    assert said in complaint(model=clip, target_modules="all-linear")


def test_through_the_launcher(tmp_path, clip, birds):
    """No rank is left waiting for the one that reads the pictures."""
    path = birds / "images" / "a" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    words = ("--model", clip, "--benchmark", "images", "--data_dir", birds.parent)
    flags = ("--target_modules", "all-linear", "--tracking", "none", "--output_dir", "out")
    done = run(*launcher(*words, *flags), cwd=tmp_path)
    assert f"{path}: cannot be read: image file is truncated" in one_line(done)
    assert [found.name for found in tmp_path.iterdir()] == ["data"]
