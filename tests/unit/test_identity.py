"""Who a base model is: its content counts, names of folders and files do not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from moram_dist.models import digests
from moram_dist.models.identity import (
    changes,
    fingerprint_of,
    identify,
    is_base,
    older_fingerprints,
)
from moram_dist.models.language_model import DEMO_BASE
from moram_dist.registry import InputError


@pytest.fixture
def base(tmp_path):
    return shutil.copytree(DEMO_BASE, tmp_path / "base")


def change_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x55
    path.write_bytes(content)


def set_rope(path):
    values = json.loads(path.read_text())
    values["rope_parameters"]["rope_theta"] = 500.0
    path.write_text(json.dumps(values))


def shard(folder, names=("a", "b")):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink(missing_ok=True)
    where = {}
    for part, name in enumerate(names):
        own = {key: t for i, (key, t) in enumerate(sorted(tensors.items())) if i % 2 == part}
        save_file(own, folder / f"{name}.safetensors", metadata={"format": "pt"})
        where |= dict.fromkeys(own, f"{name}.safetensors")
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_name_of_the_folder_and_who_saved_it_do_not_count(base):
    first = identify(str(base))
    values = json.loads((base / "config.json").read_text())
    values |= {"transformers_version": "9.9", "dtype": "float16", "_name_or_path": "x"}
    (base / "config.json").write_text(json.dumps(values, indent=7))
    (base / "README.md").write_text("other")
    (base / "generation_config.json").unlink()
    moved = base.rename(base.with_name("moved"))
    now = identify(str(moved))
    assert now.fingerprint == first.fingerprint == identify(str(DEMO_BASE)).fingerprint
    assert (first.name, now.name) == ("base", "moved") and changes(first, now) == []
    assert fingerprint_of(str(moved)) == {"name": "moved", "fingerprint": first.fingerprint}


@pytest.mark.parametrize(
    ("file", "spoil"), [("model.safetensors", change_last_byte), ("config.json", set_rope)]
)
def test_content_counts_and_is_named(base, file, spoil):
    first = identify(str(base))
    spoil(base / file)
    assert changes(first, identify(str(base))) == [f"{file} is another file"]
    assert not is_base(first.saved, str(base)) and is_base(first.saved, str(DEMO_BASE))


def test_names_of_shards_do_not_count_but_their_content_does(base, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    shard(base)
    shard(other, names=("one", "two"))
    save_file({"x": torch.zeros(1)}, other / "consolidated.safetensors")  # nobody reads it
    first, renamed = identify(str(base)), identify(str(other))
    assert first.fingerprint == renamed.fingerprint and changes(first, renamed) == []
    change_last_byte(other / "two.safetensors")
    assert changes(first, identify(str(other))) == [
        "b.safetensors is gone",
        "two.safetensors is new",
    ]
    (other / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"two\.safetensors does not exist"):
        identify(str(other))


def test_code_counts_where_the_model_brings_its_own(base):
    first = identify(str(base))
    (base / "modeling.py").write_text("a = 1")
    assert identify(str(base)) == first
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(values | {"auto_map": {"AutoModel": "modeling.M"}})
    )
    own = identify(str(base))
    (base / "modeling.py").write_text("a = 2")
    assert changes(own, identify(str(base))) == ["modeling.py is another file"]


def test_a_fingerprint_of_an_older_version_is_known(base):
    for architecture in (AutoConfig.from_pretrained(base), None):
        older = older_fingerprints(str(base), AutoConfig.from_pretrained(base))
        assert all(
            is_base({"name": "x", "fingerprint": each}, str(base), architecture=architecture)
            for each in older
        )
    assert not is_base({"name": "base", "fingerprint": "0" * 64}, str(base))
    assert not is_base({"name": "base"}, str(base))


def test_an_id_of_the_hub_is_the_folder_of_its_commit(base, tmp_path, monkeypatch):
    commit = "a" * 40
    repository = tmp_path / "hub" / "models--some--model"
    shutil.copytree(base, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = identify("some/model")
    assert (found.name, found.commit) == ("some/model", commit)
    assert found.fingerprint == identify(str(base)).fingerprint
    with pytest.raises(InputError, match=r"--model some/other: config\.json cannot be obtained"):
        identify("some/other")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A large file, old enough to be remembered; what was said of reading it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.setattr(digests, "SETTLED_S", -1.0)
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    return path


def test_a_large_file_is_read_once(kept):
    said: list[str] = []
    first = digests.content_digest(kept, said.append)
    assert digests.content_digest(kept, said.append) == first and len(said) == 1
    before = kept.stat()
    kept.write_bytes(b"two")
    os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p and rsync -t do
    assert digests.content_digest(kept, said.append) != first and len(said) == 2


def test_a_damaged_or_unwritable_cache_costs_time_only(kept, tmp_path, monkeypatch):
    first = digests.content_digest(kept, print)
    (entry,) = digests.cache_folder().iterdir()
    entry.write_text("{}")
    assert digests.content_digest(kept, print) == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file
    assert digests.content_digest(kept, print) == first


def test_a_file_that_has_just_changed_is_not_remembered(kept, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_S", 1e9)
    digests.content_digest(kept, print)
    assert not digests.cache_folder().exists()


def test_without_a_home_nothing_is_cached(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(digests.os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(b"12")
    before = digests.content_digest(tmp_path / "weights", print)
    assert before == hashlib.sha256(b"12").hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
