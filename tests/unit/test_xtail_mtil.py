"""X-TAIL and MTIL: orders, protocols, rules, shots, and mistakes in their files."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.tasks.mtil import ORDERS as MTIL_ORDERS
from moram_dist.tasks.pictures import lists
from moram_dist.tasks.pictures.picture_set import complete
from moram_dist.tasks.pictures.published_sets import IMAGE_SETS
from moram_dist.tasks.pictures.torch_permutation import torch_permutation
from moram_dist.tasks.xtail import ORDERS as XTAIL_ORDERS
from tests.helpers.picture_sets import class_folders, coop, idx, split_records, touch, write

EACH = {"train": 6, "val": 1, "test": 2}
NAMES = {"caltech101": ("face", "sea_horse", "pagoda"), "sun397": ("abbey", "pagoda")}


def read(benchmark, data_dir, **fields):
    return BENCHMARKS[benchmark](Source(data_dir=data_dir, **fields))


@pytest.fixture
def data_dir(tmp_path):
    """Two data sets with CoOp's lists, one of which lies beside its folder, and digits."""
    root = tmp_path / "data"
    for task, folder, images in (
        ("caltech101", "caltech-101", "101_ObjectCategories"),
        ("sun397", "sun397", "SUN397"),
    ):
        name = IMAGE_SETS[task].list_file
        path = coop(root / folder, split_records(NAMES[task], EACH), list_file=name, images=images)
        if task == "sun397":
            path.rename(root / name)
    idx(root / "MNIST" / "raw", "train", bytes(range(10)) * 6, packed=True)
    idx(root / "MNIST" / "raw", "t10k", bytes(range(10)), packed=True)
    return root


ORDER = "mnist,sun397,caltech101"


def test_xtail(data_dir):
    found = read("xtail", data_dir, order=ORDER, shots=4)
    assert (found.name, found.order, found.protocol) == ("xtail", ORDER, "default")
    assert (found.learning_rate, found.batch_size) == (5e-4, 64)
    mnist, sun, caltech = found.tasks
    assert mnist.labels == sun.labels == caltech.labels  # in the fixed order of the data sets
    assert mnist.labels[:4] == ("caltech101/face", "caltech101/sea_horse", "caltech101/pagoda",
                                "mnist/0 - zero")  # fmt: skip
    assert sun.train_labels == ("sun397/abbey", "sun397/pagoda") == sun.labels[-2:]
    assert caltech.texts[1] == ("a photo of a sea horse.",)
    assert [len(task.train) for task in found.tasks] == [40, 8, 12]
    assert [task.text_to_image for task in found.tasks] == [1 / 10, 1 / 2, 1 / 3]
    for task in found.tasks:
        assert (task.metric, task.steps, task.label_smoothing) == ("exact_match", 500, 0)
        assert (task.max_prompt_tokens, task.max_answer_tokens, task.separator) == (77, 1, "")
        assert {e.references[0] for e in task.train} == set(task.train_labels)
    assert mnist.pictures == data_dir / "MNIST" / "raw"
    assert mnist.test[3].prompt == "t10k-images-idx3-ubyte.gz#3"
    assert mnist.test[3].references == ("mnist/3 - three",)
    assert sun.test[0].id == "test-0" and sun.pictures == data_dir / "sun397" / "SUN397"


def test_notes_of_xtail(data_dir):
    notes = read("xtail", data_dir, order=ORDER).notes
    assert notes[1] == "sun397: 2 classes and 4 test pictures; published are 397 and 19,850"
    assert notes[-1] == (
        "'a photo of a pagoda.' is the text of caltech101/pagoda and sun397/pagoda: such a picture "
        "is always taken for the first"
    )


def test_protocols_of_xtail(data_dir):
    mine, moram, rail = (
        read("xtail", data_dir, order=ORDER, protocol=protocol, shots=4)
        for protocol in ("default", "moram", "rail")
    )
    assert [task.text_to_image for task in moram.tasks] == [1 / 10, 1 / 12, 1 / 15]
    assert [task.text_to_image for task in rail.tasks] == [1 / 10, 1 / 2, 1 / 3]
    assert moram.tasks[0].texts[1] == ("a photo of a sea_horse.",)
    assert rail.tasks[0].texts[3] == ('a photo of a number: "0 - zero".',)
    for one, other in zip(mine.tasks, moram.tasks, strict=True):
        assert (one.train, one.labels) == (other.train, other.labels)


def test_what_a_sample_depends_on(data_dir):
    def sample(**fields):
        return {t.name: t.train for t in read("xtail", data_dir, shots=3, **fields).tasks}

    found = sample(order=ORDER)
    assert found == sample(order="caltech101,mnist,sun397")
    other = sample(order=ORDER, seed=1)
    assert all(found[name] != other[name] for name in found)
    few = sample(order=ORDER, limit_train=3, limit_eval=1)["caltech101"]
    assert [e.references[0].partition("/")[2] for e in few] == list(NAMES["caltech101"])
    assert set(few) < set(found["caltech101"])


@pytest.mark.parametrize(("task", "train", "test"), [
    ("caltech101", 4128, 2465), ("dtd", 2820, 1692), ("eurosat", 13500, 8100),
    ("oxford_flowers", 4093, 2463), ("oxford_pets", 2944, 3669), ("stanford_cars", 6509, 8041),
])  # fmt: skip
def test_published_lists(shared, tmp_path, monkeypatch, task, train, test):
    """Counts as in the papers; 16 shots of each class, none twice, all from the training split."""
    data = IMAGE_SETS[task]
    path = shared / "data" / "vision" / "published_splits" / data.list_file
    first = json.loads(path.read_text())["train"][0][0]
    folder = tmp_path / data.folders[0]
    touch(folder, (first,))
    (folder / data.list_file).symlink_to(path)
    monkeypatch.setattr(lists, "check_present", lambda *_: None)
    found = read("xtail", tmp_path, order=task)
    assert found.notes == ()
    (own,) = found.tasks
    assert (len(own.train), len(own.test), len(own.labels)) == (
        16 * data.classes,
        test,
        data.classes,
    )
    assert set(Counter(e.references for e in own.train).values()) == {16}
    assert len({e.prompt for e in own.train}) == len({e.id for e in own.train}) == len(own.train)
    listed = complete(lists.read_split_list(path, folder)).train
    assert len(listed) == train and {e.prompt for e in own.train} <= {p.name for p in listed}


BAD = [
    ({"protocol": "published"}, "unknown protocol of xtail 'published'"),
    ({"order": "mnist,cifar100"}, "unknown task 'cifar100'"),
    ({"order": "1"}, "unknown order '1'"),
    ({"splits": {"mnist": {"train": "test"}}}, "xtail: splits of task mnist: the only other"),
    ({"shots": 0}, "--shots must be at least 1, got 0"),
    ({"limit_eval": 0}, "--limit_eval must be at least 1"),
    ({"data_dir": None}, "xtail needs --data_dir"),
    ({"order": "dtd"}, "no folder for dtd, such as dtd; found: MNIST, caltech-101, sun397"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_refusals(data_dir, fields, message):
    with pytest.raises(InputError, match=message):
        read("xtail", **{"data_dir": data_dir, "order": ORDER, **fields})


def test_a_missing_list(data_dir):
    touch(data_dir, ("dtd/images/banded/1.jpg",))
    with pytest.raises(InputError, match=r"split_zhou_DescribableTextures.json is missing; it is"):
        read("xtail", data_dir, order="dtd")


def test_orders():
    assert len(XTAIL_ORDERS["default"]) == 10 and "cifar100" not in XTAIL_ORDERS["default"]
    assert len(MTIL_ORDERS["1"]) == 11 and sorted(MTIL_ORDERS["1"]) == sorted(MTIL_ORDERS["2"])
    permuted = [MTIL_ORDERS["1"][i] for i in (9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2)]
    assert permuted == list(MTIL_ORDERS["2"])  # as in ZSCL's notebook


def test_mtil(data_dir):
    write(data_dir / "cifar-100-binary" / "fine_label_names.txt", "maple_tree\nsea\n")
    for name in ("train", "test"):
        rows = b"".join(bytes((0, label)) + bytes(3072) for label in (0, 1) * 6)
        write(data_dir / "cifar-100-binary" / f"{name}.bin", rows)
    found = read("mtil", data_dir, order="CIFAR100,SUN397,MNIST")
    assert (found.name, found.protocol) == ("mtil", "default")
    cifar, sun, mnist = found.tasks
    assert (cifar.labels, cifar.train_labels) == (("maple_tree", "sea"), ())
    assert cifar.texts == (("a photo of a maple tree.",), ("a photo of a sea.",))
    assert [len(task.train) for task in found.tasks] == [10, 10, 50]
    assert (sun.steps, sun.text_to_image, mnist.text_to_image) == (500, 1 / 2, 1 / 10)
    assert not any("is the text of" in note for note in found.notes)


def test_mtil_full(tmp_path):
    scenes = ["a/abbey/sun_1.jpg", "a/apse/indoor/sun_2.jpg", "a/abbey/sun_3.jpg"]
    scenes += [f"b/bar/sun_{i}.jpg" for i in range(9)] + ["a/apse/indoor/sun_9.jpg"]
    touch(tmp_path / "SUN397", scenes)
    cars = split_records(("2012 Audi TT Coupe", "2007 BMW M5"), EACH)
    coop(tmp_path / "stanford_cars", cars, list_file="split_zhou_StanfordCars.json")
    class_folders(tmp_path / "flowers-102", ("rose", "tiger_lily"))
    found = read("mtil", tmp_path, protocol="full", order="SUN397,StanfordCars,Flowers")
    sun, cars, flowers = found.tasks
    expected = [sorted(scenes)[place] for place in torch_permutation(13, 42)]
    assert [e.prompt for e in sun.train + sun.test] == expected
    assert (len(sun.train), sun.labels) == (10, ("abbey", "apse/indoor", "bar"))
    assert sun.texts[0] == ("a photo of a abbey.", "a photo of the abbey.")
    assert len(cars.train) == 14 and cars.labels == ("Audi TT Coupe 2012", "BMW M5 2007")
    assert (
        cars.texts[1][0] == "a photo of a BMW M5 2007, a type of car." and len(cars.texts[1]) == 9
    )
    assert flowers.labels == ("rose", "tiger lily")
    for task in found.tasks:
        assert (task.steps, task.label_smoothing, task.text_to_image) == (1000, 0.2, 0)
    assert "SUN397: files are sorted before they are split" in found.notes[0]


def test_mtil_full_of_folders_without_splits(tmp_path):
    root = tmp_path / "eurosat" / "2750"
    classes = """AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop
        Residential River SeaLake""".split()
    touch(root, (f"{name}/{name}_{i}.jpg" for name in classes for i in range(20)))
    (task,) = read("mtil", tmp_path, protocol="full", order="EuroSAT").tasks
    assert (len(task.train), len(task.test)) == (160, 40)
    assert all(task.labels[classes.index(e.prompt.split("/")[0])] == e.references[0]
               for e in task.train)  # fmt: skip
    assert task.labels[-1] == "lake or sea" and len(task.texts[0]) == 3
    (root / "River").rename(root / ".River")
    with pytest.raises(InputError, match="9 classes, but 10 names for them"):
        read("mtil", tmp_path, protocol="full", order="EuroSAT")


def test_mtil_full_refuses_matlab(tmp_path):
    touch(tmp_path / "flowers-102", ("imagelabels.mat", "jpg/image_00001.jpg"))
    with pytest.raises(InputError, match="MATLAB files are not read; use parquet or folders train"):
        read("mtil", tmp_path, protocol="full", order="Flowers")
