"""A person's own pictures: folders, YAML lists, and mistakes in them."""

from __future__ import annotations

import shutil

import pytest

from launch import settings
from moram_dist.config import DataConfig, RunConfig
from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.configs import config_of
from tests.helpers.picture_sets import (
    ANIMALS,
    class_folders,
    coop,
    idx,
    parquet,
    split_records,
    touch,
    write,
)


def images(data_dir, **fields):
    return BENCHMARKS["images"](Source(data_dir=data_dir, **fields))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "mine"
    class_folders(root / "pets", ("cat", "guinea_pig"), train=4)
    coop(root / "dtd", split_records(("banded", "a_b"), {"train": 3, "test": 1}))
    (root / "dtd" / "split.json").rename(root / "dtd" / "split_mine.json")
    touch(root, ("notes.txt", ".cache/x.jpg", "lists/split_a.json", "lists/split_b.json"))
    return root


def test_a_folder(folder):
    found = images(folder)
    assert (found.name, found.order, found.protocol) == ("images", "default", "default")
    assert (found.learning_rate, found.batch_size) == (5e-4, 64)
    assert found.notes == ("lists: no pictures, so it is no task",)
    dtd, pets = found.tasks
    assert dtd.texts == (("banded texture.",), ("a b texture.",))  # known by its folder's name
    assert pets.texts == (("a photo of a cat.",), ("a photo of a guinea pig.",))
    assert (pets.labels, pets.train_labels) == (("cat", "guinea_pig"), ())
    assert (len(pets.train), pets.pictures) == (8, folder / "pets")
    assert pets.test[3].prompt == "test/guinea_pig/1.jpg"
    assert pets.test[3].references == ("guinea_pig",)
    assert (pets.epochs, pets.steps, pets.text_to_image) == (20, None, 1 / 2)


def test_many_pictures_are_seen_less_often(tmp_path):
    idx(tmp_path / "mnist", "train", bytes(range(10)) * 6400)
    idx(tmp_path / "mnist", "t10k", bytes(range(10)))
    (task,) = images(tmp_path).tasks
    assert len(task.train) == 64_000 and task.epochs == 500 * 64 / 64_000
    assert images(tmp_path, shots=16).tasks[0].epochs == 20
    assert task.labels[9] == "9 - nine" and '"9 - nine"' in task.texts[9][0]


def test_all_classes_compete(folder):
    found = images(folder, protocol="all", order="pets,dtd", shots=1)
    pets, dtd = found.tasks
    assert pets.labels == dtd.labels
    assert pets.labels == ("dtd/banded", "dtd/a_b", "pets/cat", "pets/guinea_pig")
    assert pets.train_labels == pets.labels[2:] and len(pets.texts) == 4
    assert dtd.train[0].references == ("dtd/banded",)


def test_only_the_tasks_of_an_order_are_read(folder):
    touch(folder, ("broken/trian/cat/1.jpg",))
    assert len(images(folder, order="pets").tasks) == 1
    with pytest.raises(InputError, match="broken: no pictures in a known form"):
        images(folder)


def test_a_folder_of_one_task(folder):
    with pytest.raises(InputError, match="is one task; give the folder that holds a folder per ta"):
        images(folder / "pets")


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds neither task folders nor tasks.yaml"):
        images(tmp_path)
    with pytest.raises(InputError, match="--data_dir: no such file or folder"):
        images(tmp_path / "none")
    with pytest.raises(InputError, match="images needs --data_dir"):
        images(None)


FULL = """
- name: signs
  folder: pets
  classes: {guinea_pig: guinea pig}
  texts:
    cat: it meows
    guinea pig: [it whistles, "a pig, nearly"]
  epochs: 2.5
- name: two
  train: pets/train
  test: pets/test
  template: ["a {}.", "the {}."]
  classes: [feline, rodent]
"""


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_list(folder, as_folder):
    write(folder / "tasks.yaml", FULL)
    signs, two = images(folder if as_folder else folder / "tasks.yaml").tasks
    assert signs.labels == ("cat", "guinea pig") and signs.epochs == 2.5
    assert signs.texts == (("it meows",), ("it whistles", "a pig, nearly"))
    assert two.labels == ("feline", "rodent")
    assert two.texts[1] == ("a rodent.", "the rodent.")
    assert two.train[-1].prompt == "train/guinea_pig/3.jpg"


def test_a_list_of_parquet_files(folder):
    parquet(folder / "a.parquet", [0, 1])
    parquet(folder / "b.parquet", [1])
    write(folder / "tasks.yaml", "- {name: t, train: a.parquet, test: b.parquet}")
    (task,) = images(folder).tasks
    assert (task.labels, task.pictures) == (ANIMALS, folder)
    assert task.test[0].prompt == "b.parquet#0"
    shutil.move(folder / "b.parquet", folder.parent)
    write(folder / "tasks.yaml", "- {name: t, train: a.parquet, test: ../b.parquet}")
    with pytest.raises(InputError, match="must be below"):
        images(folder)


TASK = "- {name: t, folder: pets"  # left open, for one more key

BAD_LISTS = [
    ("[]", "expected a list of tasks"),
    ("- t", "task 0: expected keys and values"),
    ("- {folder: pets}", "task 0: name is missing"),
    ("- {name: t}", "task 0: give folder, or both train and test"),
    ("- {name: t, train: pets/train}", "give folder, or both train and test"),
    ("- {name: a/b, folder: pets}", "task name 'a/b' cannot be a file name"),
    (TASK + ", train: x, test: y}", "give folder, or both train and test"),
    (TASK + ", metric: choice}", "unknown key 'metric'"),
    (TASK + ", folders: x}", "unknown key 'folders'; did you mean 'folder'?"),
    (TASK + "}\n" + TASK + "}", "task 1: name 't' is taken already"),
    (TASK + ", template: a photo}", "template 'a photo' has no {} for the class name"),
    (TASK + ", template: 5}", "template must be a text or a list of texts, got 5"),
    (TASK + ", template: 'a {}', texts: {cat: c}}", "give template or texts, not both"),
    (TASK + ", texts: [cat]}", "texts must be class names with a text each, got ['cat']"),
    (TASK + ", texts: {cat: c}}", "task t: texts has none for class 'guinea_pig'"),
    (TASK + ", texts: {cot: c}}", "task t: unknown class in texts 'cot'; did you mean 'cat'?"),
    (TASK + ", texts: {cat: []}}", "text of 'cat' must be a text or a list of texts, got []"),
    (TASK + ", classes: cat}", "classes must be a list of names, got 'cat'"),
    (TASK + ", classes: [No, Yes]}", "a class name must be a text, got False"),
    (TASK + ", classes: [a, b, c]}", "2 classes, but 3 names for them"),
    (TASK + ", classes: [a, a]}", "two classes are named 'a'"),
    (TASK + ", classes: {dog: hound}}", "no class 'dog' that could be renamed"),
    (TASK + ", epochs: 0}", "epochs must be a number above 0, got 0"),
    (TASK + ", epochs: true}", "epochs must be a number above 0, got True"),
    ("- {name: t, folder: none}", "none: cannot be listed: No such file"),
    ("- {name: t, train: a, test: b}", "a: no such folder; train and test are folders of classes"),
    ("- {name: t, train: pets, test: pets}", "class without pictures; found: cat, guinea_pig"),
]


@pytest.mark.parametrize(("text", "message"), BAD_LISTS)
def test_bad_lists(folder, text, message):
    write(folder / "tasks.yaml", text)
    with pytest.raises(InputError) as caught:
        images(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_sets_here(shared):
    """Small real data sets in the layouts that users have, beside lists and other files."""
    data_dir = shared / "data" / "vision"
    found = images(data_dir, shots=16)
    names = ["cifar10", "dtd", "eurosat", "gtsrb", "mnist", "shapes", "sign_digits"]
    assert [task.name for task in found.tasks] == names
    assert [len(task.train) for task in found.tasks] == [
        16 * n for n in (10, 10, 10, 16, 10, 16, 10)
    ]
    assert [len(task.test) for task in found.tasks] == [600, 500, 600, 640, 600, 800, 500]
    assert found.notes == ("published_splits: no pictures, so it is no task",)
    assert found.tasks[2].pictures == data_dir / "eurosat" / "2750"
    together = images(data_dir, protocol="all").tasks[0]
    assert len(together.labels) == len(set(together.texts)) == 82


def test_shots_are_of_pictures_only(folder):
    def benchmark(**fields):
        return settings.resolve(RunConfig(data=DataConfig(**fields), method=config_of()))[1]

    assert len(benchmark(benchmark="images", data_dir=folder, shots=2).tasks[1].train) == 4
    with pytest.raises(InputError, match=r"--shots counts training .* no task of demo has"):
        benchmark(benchmark="demo", shots=2)


def test_validation_pictures_in_place_of_the_test(shared):
    data_dir = shared / "data" / "vision"
    splits = {"dtd": {"test": "val"}}
    dtd, shapes = images(data_dir, order="dtd,shapes", splits=splits).tasks
    plain, _ = images(data_dir, order="dtd,shapes").tasks
    assert len(dtd.test) == 100 and len(shapes.test) == 800
    assert dtd.test[0].id == "val-0" and dtd.train == plain.train
    assert not {e.prompt for e in dtd.test} & {e.prompt for e in plain.test + plain.train}
    with pytest.raises(InputError, match="has no validation pictures for --splits"):
        images(data_dir, order="mnist", splits={"mnist": {"test": "val"}})
