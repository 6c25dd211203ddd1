"""What is known of the published data sets: prompts, folders, lists, and how shots are drawn."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from moram_dist.registry import InputError
from moram_dist.tasks.mtil import SETS
from moram_dist.tasks.pictures.mtil_splits import FULL_SETS
from moram_dist.tasks.pictures.picture_set import Picture
from moram_dist.tasks.pictures.published_sets import IMAGE_SETS, PROMPTS, find_folder, known_set
from moram_dist.tasks.pictures.shots import draw_shots, spread
from moram_dist.tasks.pictures.templates import CALTECH_NAMES, ENSEMBLES, EUROSAT_NAMES
from moram_dist.tasks.pictures.torch_permutation import torch_permutation

TEXTS = {  # data set, class -> text by protocol
    ("aircraft", "707-320"): {
        "default": "a photo of a 707-320, a type of aircraft.",
        "moram": "a photo of a 707-320, a type of aircraft.",
        "rail": "a photo of a 707-320.",
    },
    ("caltech101", "soccer_ball"): {
        "default": "a photo of a soccer ball.",
        "moram": "a photo of a soccer_ball.",
        "rail": "a photo of a soccer ball.",
    },
    ("dtd", "banded"): {"default": "banded texture.", "moram": "banded texture."},
    ("eurosat", "Annual Crop Land"): {
        "default": "a centered satellite photo of Annual Crop Land.",
        "moram": "a centered satellite photo of the Annual Crop Land satellite location.",
        "rail": "a photo of a Annual Crop Land satellite location.",
    },
    ("mnist", "0 - zero"): {
        "default": 'a photo of the number: "0 - zero".',
        "moram": 'a photo of the number: "number: "0 - zero"".',
        "rail": 'a photo of a number: "0 - zero".',
    },
    ("food101", "apple_pie"): {"moram": "a photo of a apple_pie, a type of food."},
    ("oxford_pets", "american_bulldog"): {
        "default": "a photo of a american bulldog, a type of pet.",
        "moram": "a photo of a american_bulldog, a type of pet.",
    },
    ("sun397", "{}"): {"default": "a photo of a {}."},
}


@pytest.mark.parametrize(("data", "name"), TEXTS)
def test_texts(data, name):
    for protocol, text in TEXTS[data, name].items():
        assert PROMPTS[protocol](IMAGE_SETS[data], name) == text


@pytest.fixture
def class_names(shared):
    return json.loads((shared / "data" / "vision" / "class_names.json").read_text())


@pytest.mark.parametrize("protocol", ["default", "moram"])
def test_one_text_is_of_two_of_1100_classes(class_names, protocol):
    texts = [
        PROMPTS[protocol](IMAGE_SETS[data], name).lower()
        for data, names in class_names["xtail"].items()
        for name in names
    ]
    assert len(texts) == 1100
    assert [a for a, b in pairwise(sorted(texts)) if a == b] == ["a photo of a pagoda."]


def test_names_are_those_published(class_names):
    names = class_names["xtail"]
    assert list(names) == list(IMAGE_SETS)[:10]
    assert {data: len(own) for data, own in names.items()} == {
        data: IMAGE_SETS[data].classes for data in names
    }
    assert tuple(names["mnist"]) == IMAGE_SETS["mnist"].names
    assert tuple(class_names["mtil"]["Caltech101"]) == CALTECH_NAMES
    assert tuple(class_names["mtil"]["EuroSAT"]) == EUROSAT_NAMES


def test_ensembles():
    assert list(ENSEMBLES) == list(SETS) == list(FULL_SETS)
    assert [len(texts) for texts in ENSEMBLES.values()] == [2, 34, 18, 8, 3, 1, 1, 1, 1, 9, 2]
    for task, texts in ENSEMBLES.items():
        assert len(set(texts)) == len(texts) and all(text.count("{}") == 1 for text in texts)
        if task not in ("DTD", "StanfordCars"):  # whose first text X-TAIL words differently
            assert texts[0] == IMAGE_SETS[SETS[task]].template
    assert "a {} in a video game." in ENSEMBLES["Caltech101"]
    assert "the origami {}." in ENSEMBLES["Caltech101"]
    assert "a photo of the big {}." in ENSEMBLES["CIFAR100"]


FOLDERS = """
fgvc-aircraft-2013b fgvc_aircraft caltech101 caltech-101 dtd eurosat EuroSAT flowers-102
oxford_flowers food-101 MNIST oxford-iiit-pet oxford_pets stanford_cars SUN397 sun397
cifar-100-binary CIFAR100
""".split()


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_in_the_wild(tmp_path, folder):
    (tmp_path / folder).mkdir()
    data = known_set(folder)
    assert find_folder(tmp_path, "any", data) == tmp_path / folder


def test_a_missing_folder(tmp_path):
    (tmp_path / "cats").mkdir()
    assert known_set("cats") is None
    with pytest.raises(InputError, match="no folder for dtd, such as dtd; found: cats"):
        find_folder(tmp_path, "dtd", IMAGE_SETS["dtd"])


def drawn(*, shots=3, seed=0, task="t", sizes=(5, 9, 3), names=("a", "b", "c")):
    pictures = [
        Picture(f"{label}/{i}", label) for label, size in enumerate(sizes) for i in range(size)
    ]
    places = draw_shots(pictures, names, shots=shots, seed=seed, task=task)
    return [pictures[place] for place in places]


def test_shots():
    found = drawn()
    assert [sum(p.label == label for p in found) for label in (0, 1, 2)] == [3, 3, 3]
    assert len(set(found)) == 9 and found == sorted(found)
    assert found == drawn()
    assert found != drawn(seed=1) and found != drawn(task="u")
    assert {p for p in found if p.label == 1} != {p for p in drawn(names="axc") if p.label == 1}
    others = drawn(sizes=(7, 9, 3), names=("z", "b", "y"))
    assert [p for p in others if p.label == 1] == [p for p in found if p.label == 1]


def test_shots_of_a_small_class_repeat():
    found = drawn(shots=4, sizes=(5, 9, 2))
    assert sum(p.label == 2 for p in found) == 4
    assert len({p for p in found if p.label < 2}) == 8


def test_the_sample_never_changes():
    """Results that were published with a seed stay what they were."""
    assert [p.name for p in drawn(sizes=(100,), names="a", shots=5)] == [
        "0/16",
        "0/18",
        "0/24",
        "0/42",
        "0/84",
    ]


def test_spread():
    assert spread(range(10), None) == list(range(10)) == spread(range(10), 12)
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread([3, 5, 9], 1) == [3]


@pytest.mark.parametrize("size", [1, 2, 10, 8_677])
@pytest.mark.parametrize("seed", [0, 42])
def test_the_permutation_is_that_of_torch(size, seed):
    expected = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    assert torch_permutation(size, seed) == expected.tolist()
