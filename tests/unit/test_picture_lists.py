"""Data sets by lists of pictures: CoOp's, FGVC's and torchvision's, and mistakes in them."""

from __future__ import annotations

import copy
import json
import os
import random

import pytest

from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Benchmark, Source
from moram_dist.tasks.pictures.picture_set import Picture, complete
from moram_dist.tasks.pictures.shapes import read_shape
from tests.helpers.picture_sets import ANIMALS, coop, split_records, touch, write

RECORDS = split_records(ANIMALS, {"train": 2, "val": 1, "test": 2})


@pytest.mark.parametrize("images", ["", "images", "deep/images"])
def test_a_coop_list(tmp_path, images):
    coop(tmp_path, RECORDS, images=images)
    found = complete(read_shape(tmp_path))
    assert (found.folder, found.names) == (tmp_path / images, ANIMALS)
    assert found.train[2] == Picture("dog/train_0.jpg", 1)
    assert [len(found.train), len(found.val), len(found.test)] == [4, 2, 4]


def test_the_list_of_the_known_name_is_taken_from_several(tmp_path):
    coop(tmp_path, RECORDS)
    coop(tmp_path, split_records(("owl",), {"train": 1, "test": 1}), list_file="split_zhou_X.json")
    assert read_shape(tmp_path, list_file="split_zhou_X.json").names == ("owl",)
    with pytest.raises(InputError, match=r"expected one split\*.json; found: split.json, split_z"):
        read_shape(tmp_path)


def changed(place, value):
    """The list with one record's field, or the whole of what a path leads to, replaced."""
    out = copy.deepcopy(RECORDS)
    inner = out
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return out


BAD_LISTS = [
    ([], "expected a JSON object"),
    ({"test": []}, "train must be a list of records, got null"),
    (changed(["test"], {}), "test must be a list of records, got an object"),
    (changed(["test"], []), "holds no test pictures"),
    ({"train": [], "test": []}, "lists no pictures"),
    (changed(["train", 1], ["a", 0]), r"train record 1: expected \[picture, label, class name\]"),
    (changed(["train", 1, 0], 7), "train record 1: expected a picture's path, got 7"),
    (changed(["train", 1, 1], True), "a label must be a whole number from 0, got True"),
    (changed(["train", 1, 1], -1), "a label must be a whole number from 0, got -1"),
    (changed(["train", 1, 2], None), "train record 1: a class name must be a text, got None"),
    (changed(["train", 1, 2], " "), "a class name must be a text"),
    (changed(["train", 1, 2], "\ud800"), "holds control characters or bytes"),
    (changed(["train", 1, 2], "cow"), "label 0 is named 'cow', but 'cat' before"),
    (changed(["train", 0, 0], "cat/none.jpg"), r"no such picture: 'cat/none.jpg', in .* below"),
    (changed(["train", 1, 0], "cat/none.jpg"), r"train, record 1: no such picture: 'cat/none.jpg'"),
    (changed(["test", 3, 0], "cow/none.jpg"), "test, record 3: no such picture: 'cow/none.jpg'"),
    (changed(["test", 3, 0], "../x.jpg"), r"record 3: no picture can be named '../x.jpg'"),
    (changed(["test", 3, 0], "/x.jpg"), "no picture can be named '/x.jpg'"),
    (changed(["test", 3, 0], "x.bin#1"), "no picture can be named 'x.bin#1'"),
    (changed(["test", 3, 0], "x\0"), "no picture can be named"),
    (changed(["test", 3, 0], "x" * 5000), "no such picture"),
]


@pytest.mark.parametrize(("content", "message"), BAD_LISTS)
def test_bad_lists(tmp_path, content, message):
    coop(tmp_path, RECORDS, images="images")
    write(tmp_path / "split.json", content)
    with pytest.raises(InputError, match=message) as caught:
        complete(read_shape(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_labels_with_gaps(tmp_path):
    coop(tmp_path, {"train": [["a.jpg", 0, "a"], ["c.jpg", 2, "c"]], "test": [["t.jpg", 0, "a"]]})
    with pytest.raises(InputError, match="count from 0 without gaps, but none of 2 is 1"):
        read_shape(tmp_path)


def test_a_class_without_training_pictures(tmp_path):
    coop(tmp_path, RECORDS | {"train": RECORDS["train"][:2]})
    with pytest.raises(InputError, match="class 1, 'dog', has no training pictures"):
        complete(read_shape(tmp_path))


def test_two_classes_of_one_name(tmp_path):
    coop(tmp_path, split_records(("a_b", "a b"), {"train": 1, "test": 1}))
    found = read_shape(tmp_path)
    with pytest.raises(InputError, match="two classes are named 'a b'"):
        complete(found, tuple(name.replace("_", " ") for name in found.names))


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    """Not asked for each of its pictures: there may be 90,000, on a file system far away."""
    coop(tmp_path, split_records(ANIMALS, {"train": 50, "test": 50}), images="images")
    listed, plain = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda place: listed.append(place) or plain(place))
    read_shape(tmp_path)
    assert 0 < len(listed) <= 2 * 3  # a class and a split


def test_aircraft(tmp_path):
    data = tmp_path / "data"
    write(data / "variants.txt", "A300B4\nF/A-18\nDC-9 30\n")
    write(data / "images_variant_train.txt", "001 A300B4\n002 F/A-18\n003 DC-9 30\n")
    write(data / "images_variant_test.txt", "004 DC-9 30\n")
    touch(data / "images", ("001.jpg", "002.jpg", "003.jpg", "004.jpg"))
    found = complete(read_shape(tmp_path))
    assert found.names == ("A300B4", "F/A-18", "DC-9 30")
    assert found.test == (Picture("004.jpg", 2),)
    write(data / "images_variant_test.txt", "004 DC-9 40\n")
    with pytest.raises(InputError, match=r"test.txt, line 1: variant 'DC-9 40' is not in variants"):
        read_shape(tmp_path)
    write(data / "images_variant_test.txt", "005 DC-9 30\n")
    with pytest.raises(InputError, match=r"record 0: no such picture: '005.jpg'"):
        read_shape(tmp_path)


TEXT_LISTS = [  # lists, pictures, names
    (
        {"labels/train1.txt": "b/b_1.jpg\na/a_1.jpg\n", "labels/test1.txt": "b/b_2.jpg\n"},
        ("b/b_1.jpg", "a/a_1.jpg", "b/b_2.jpg"),
        ("a", "b"),
    ),
    (
        {
            "annotations/trainval.txt": "# image class\nBengal_1 2 1 2\nbasset_hound_7 1 2 1\n",
            "annotations/test.txt": "basset_hound_9 1 2 1\n",
        },
        ("Bengal_1.jpg", "basset_hound_7.jpg", "basset_hound_9.jpg"),
        ("basset_hound", "Bengal"),
    ),
    (
        {"meta/train.txt": "apple_pie/1\nwaffles/2\n", "meta/test.txt": "waffles/3\n"},
        ("apple_pie/1.jpg", "waffles/2.jpg", "waffles/3.jpg"),
        ("apple_pie", "waffles"),
    ),
]


@pytest.mark.parametrize(("lists", "pictures", "names"), TEXT_LISTS)
@pytest.mark.parametrize("inside", ["", "archive"])
def test_lists_of_torchvision(tmp_path, lists, pictures, names, inside):
    root = tmp_path / inside
    for file, content in lists.items():
        write(root / file, content)
    touch(root / "images", pictures)
    found = complete(read_shape(tmp_path))
    assert (found.folder, found.names) == (root / "images", names)
    assert [p.name for p in found.train + found.test] == list(pictures)
    (root / "images" / pictures[-1]).unlink()
    with pytest.raises(
        InputError, match=rf"test\d?.txt, record 0: no such picture.*{pictures[-1]}"
    ):
        read_shape(tmp_path)


def mutated(text: str, rng: random.Random) -> str:
    """A list with some of its characters, or a value in it, replaced."""
    if rng.random() < 0.4:
        at = rng.randrange(len(text))
        return (
            text[:at]
            + rng.choice(['"', "[", "]", "9", "-", ",", "\\", "\x00", "é", ""])
            + text[at + rng.randrange(4) :]
        )
    content = json.loads(text)
    split = rng.choice(list(content))
    odd = rng.choice(
        [None, -1, 2**70, 1.5, "", "a/b", [], {}, True, "\ud800", "x#1", ["a", 0, "b"]]
    )
    place = rng.randrange(len(content[split]))
    if rng.random() < 0.3:
        content[split] = odd
    elif rng.random() < 0.3:
        content[split][place] = odd
    else:
        content[split][place][rng.randrange(3)] = odd
    return json.dumps(content)


def test_mutated_lists_give_a_benchmark_or_one_line(tmp_path):
    rng, outcomes = random.Random(0), []
    path = coop(tmp_path / "pets", RECORDS, images="images")
    text = path.read_text()
    for _ in range(200):
        path.write_bytes(mutated(text, rng).encode("utf-8", "surrogatepass"))
        try:
            found = BENCHMARKS["images"](Source(data_dir=tmp_path, shots=1))
            assert isinstance(found, Benchmark) and len(found.tasks[0].train) > 0
            outcomes.append(True)
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.append(False)
    assert 0 < sum(outcomes) < 200  # both occur
