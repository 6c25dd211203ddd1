"""Data sets of Hugging Face: folders of their form, and the hub, which is out of reach here."""

from __future__ import annotations

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source

README = """---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train-*.parquet}
  - {split: validation, path: en/validation.parquet}
- config_name: de
  data_files:
  - {split: train, path: de/*.parquet}
  - {split: test, path: de/*.parquet}
---
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """A folder as it is downloaded from the hub, of two subsets."""
    root = tmp_path / "mine" / "set"
    for name, answers in {
        "en/train-0": ["cat", "dog"],
        "en/train-1": ["cow", "hen"],
        "en/validation": ["owl"],
        "de/all": ["Uhu"],
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question": f"{name} {i}?", "label": text} for i, text in enumerate(answers)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), root / f"{name}.parquet")
    (root / "README.md").write_text(README)
    return root


def listed(folder, **keys):
    keys = {"name": "t", "prompt_field": "question", "answer_field": "label", **keys}
    text = ", ".join(f"{key}: {value!r}" for key, value in keys.items())
    (folder.parent / "tasks.yaml").write_text(f"- {{{text}}}\n")
    (task,) = BENCHMARKS["jsonl"](Source(data_dir=folder.parent)).tasks
    return [[(e.id, e.prompt, *e.references) for e in split] for split in (task.train, task.test)]


def test_a_subset_and_its_splits(folder):
    train, test = listed(folder, dataset="set", subset="en", test="validation")
    assert train == [
        ("train-0", "en/train-0 0?", "cat"),
        ("train-1", "en/train-0 1?", "dog"),
        ("train-2", "en/train-1 0?", "cow"),
        ("train-3", "en/train-1 1?", "hen"),
    ]
    assert test == [("test-0", "en/validation 0?", "owl")]
    assert listed(folder, dataset=str(folder), subset="de")[1] == [("test-0", "de/all 0?", "Uhu")]


def test_a_part_of_a_split(folder):
    train, test = listed(
        folder, dataset="set", subset="en", train="train[:75%]", test="train[75%:]"
    )
    assert [row[2] for row in train] == ["cat", "dog", "cow"]
    assert test == [("test-0", "en/train-1 1?", "hen")]


def test_labels_are_given_by_name(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["ok", "no"], "label": [1, 0]}, features=features)
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    train, _ = listed(
        tmp_path / "set", dataset="set", test="train", prompt_field="text", answer_field="label"
    )
    assert [row[1:] for row in train] == [("ok", "good"), ("no", "bad")]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"dataset": "set", "subset": "fr"}, "set fr train: the data set cannot be read: "),
        ({"dataset": "set", "subset": "fr"}, "'fr' not found. Available: ['en', 'de']"),
        ({"dataset": "set", "subset": "en"}, 'Unknown split "test". Should be one of [\'train'),
        ({"dataset": "set"}, "Config name is missing"),
        ({"dataset": "set", "subset": "de", "train": "train[:x]"}, "train[:x]"),
        ({"dataset": "set", "subset": "de", "prompt_field": "q"}, "record 0: no field 'q'; found:"),
        ({"dataset": "./none"}, "./none: no such folder, and no id of a data set on the hub"),
        ({"dataset": "a/b/c"}, "a/b/c: no such folder, and no id of a data set on the hub"),
        ({"subset": "en", "train": "a.json", "test": "b.json"}, "subset is a part of a data set"),
        ({"dataset": "set", "chat_field": "x"}, "chat_field names a whole chat; leave the other"),
        ({"dataset": "set", "subset": 3}, "subset must be a text (quote it), got 3"),
    ],
)
def test_what_is_refused(folder, keys, said):
    with pytest.raises(InputError) as error:
        listed(folder, **keys)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_file_is_refused(folder):
    (folder / "de" / "all.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError) as error:
        listed(folder, dataset="set", subset="de")
    assert "the data set cannot be read: " in str(error.value) and "\n" not in str(error.value)


def test_the_hub_is_not_asked_offline(folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as error:
        listed(folder, dataset="owner/name", subset="en")
    assert str(error.value) == (
        "owner/name: HF_HUB_OFFLINE is set, and the cache of data sets does not hold owner/name en "
        "train; unset it for the first start, or give a folder"
    )
