"""A memory is loaded and asked with the package's own dependencies, without those of extras."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launch import versions
from moram_dist import __version__, load_memory
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.command_line import EXTRAS
from moram_dist.methods import METHODS
from moram_dist.models.identity import fingerprint_of
from tests.helpers.configs import config_of
from tests.helpers.tiny import tiny_model, tokens

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HIDDEN = (*EXTRAS, "google", "pyarrow", "pandas", "scipy", "sklearn", "peft", "triton")

INSTALLED_AS = {"PIL": "pillow"}
"""Package, as it is imported -> the name under which it is installed, where they differ."""

CHILD = """
import sys

class Without:
    '''An import system in which some packages are not installed.'''
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] not in {hidden}:
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
import torch, warnings
from transformers import AutoModelForCausalLM
from moram_dist import load_memory
warnings.simplefilter('error')
model = load_memory(AutoModelForCausalLM.from_pretrained('base'), 'memory')
ids = torch.load('ids.pt')
with torch.no_grad():
    torch.save(model(input_ids=ids).logits, 'logits.pt')
assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (2, ids.shape[1] + 2)
assert not {hidden} & {{*sys.modules}}
"""


@pytest.fixture
def folder(tmp_path):
    """A base and a memory of one task for it, its atoms drawn by hand."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    config = config_of(atoms_per_task=4, alpha=10, dropout=0, target_modules="q_proj")
    method = METHODS["moram"](config, seed=0)
    method.build(model)
    with torch.no_grad():
        for name, value in method.begin_task(0).items():
            model.get_parameter(name).copy_(value + 0.1)
    manifest = Manifest(
        method="moram",
        settings=dataclasses.asdict(config),
        base=fingerprint_of(str(tmp_path / "base")),
        modules=list(method.layers),
    )
    MemoryFiles(tmp_path / "memory").publish(manifest, "task", method.end_task(0, lambda: []))
    torch.save(tokens(2, 8), tmp_path / "ids.pt")
    return tmp_path


@pytest.mark.slow
def test_a_memory_answers_without_any_extra(folder):
    child = CHILD.format(hidden=set(HIDDEN))
    done = subprocess.run(
        [sys.executable, "-c", child],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(folder / "logits.pt")
    with torch.no_grad():
        plain = tiny_model()(input_ids=tokens(2, 8)).logits
        here = load_memory(tiny_model(), folder / "memory", any_base=True)
        expected = here(input_ids=tokens(2, 8)).logits
    assert found.shape == (2, 8, plain.shape[-1]) and found.isfinite().all()
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain, atol=1e-3)


def asked(*extras):
    """Package -> its requirement, of the package itself and of extras, and of what they name."""
    texts = list(PROJECT["dependencies"]) if not extras else []
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    found = [Requirement(text) for text in texts]
    own = [each.extras for each in found if each.name == PROJECT["name"]]
    out = {canonicalize_name(each.name): each for each in found if each.name != PROJECT["name"]}
    for extras_of in own:
        out |= asked(*extras_of)
    return out


def pinned(name):
    return {canonicalize_name(k): v for k, v in versions.pins(ROOT / name).items()}


def test_pins_are_within_the_ranges():
    """So that what is tested is something that an installation may get."""
    ranges = asked() | asked("dev")
    pins = pinned("requirements.txt") | pinned("requirements-dev.txt")
    for name, version in pins.items():
        if name != "triton":  # of checkouts only
            assert ranges[name].specifier.contains(version), name
    assert ranges.keys() - {"numpy"} <= pins.keys()


def test_every_package_of_an_extra_is_told_when_it_is_missing():
    named = {
        canonicalize_name(INSTALLED_AS.get(name, name)): extra for name, extra in EXTRAS.items()
    }
    for extra in ("train", "track", "report", "eval", "data", "general", "serve"):
        own = PROJECT["optional-dependencies"][extra]
        for each in map(Requirement, own):
            # transformers imports protobuf, and says by itself what it lacks
            if each.name not in (PROJECT["name"], "protobuf"):
                assert named.pop(canonicalize_name(each.name)) == extra
    assert not named
    assert not {canonicalize_name(INSTALLED_AS.get(name, name)) for name in EXTRAS} & asked().keys()


def test_training_has_all_that_a_run_needs_to_its_end():
    """It scores and reports after hours, and must not find then that a package is missing."""
    assert asked("train").keys() >= asked("eval").keys() | asked("report").keys()


def test_files_about_the_project_are_of_its_version():
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{__version__}] - " in (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License\n")


def test_a_range_is_read_as_pip_reads_it():
    assert versions.is_within("2.13.0+cpu", ">=2.13,<3")
    assert not versions.is_within("3.0", ">=2.13,<3")
    assert versions.least_python(ROOT / "pyproject.toml") == "3.11"
