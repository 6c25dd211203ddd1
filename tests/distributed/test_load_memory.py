"""``load_memory`` where it must refuse. What it restores is compared in ``test_growth``."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from moram_dist import load_memory
from moram_dist.atoms.memory_files import Manifest, MemoryFiles
from moram_dist.config import MethodConfig
from moram_dist.methods import METHODS
from moram_dist.registry import InputError
from tests.helpers.tiny import tiny_model, tokens

CONFIG = MethodConfig(atoms_per_task=4, alpha=10, dropout=0, target_modules="q_proj")


@pytest.fixture
def run(tmp_path):
    """A run of two tasks, its atoms drawn by hand."""
    model = tiny_model()
    method = METHODS["moram"](CONFIG, seed=0)
    method.build(model)
    files = MemoryFiles(tmp_path / "run" / "memory")
    manifest = Manifest(
        method="moram",
        settings=dataclasses.asdict(CONFIG),
        base={"name": "tiny", "fingerprint": "f"},
        modules=list(method.layers),
    )
    for i in range(2):
        with torch.no_grad():
            for name, value in method.begin_task(i).items():
                model.get_parameter(name).copy_(value + 0.1 * i + 0.1)
        manifest = files.publish(manifest, f"task {i}", method.end_task(i, lambda: []))
    return tmp_path / "run"


def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens(2, 8)).logits


def test_upto_is_a_prefix(run):
    found = [logits(load_memory(tiny_model(), run, upto=upto)) for upto in (0, 1, 2)]
    assert torch.equal(found[0], logits(tiny_model()))
    assert not torch.equal(found[1], found[0]) and not torch.equal(found[2], found[1])
    assert torch.equal(logits(load_memory(tiny_model(), run / "memory")), found[2])


def test_the_restored_model_is_ready_to_answer(run):
    model = load_memory(tiny_model().train().bfloat16(), run)
    assert not model.training
    assert not any(p.requires_grad and p.abs().max() > 0 for p in model.parameters())
    assert model.get_submodule("model.layers.0.self_attn.q_proj.memory.bank").num_atoms == 8
    assert logits(model).dtype == torch.bfloat16
    assert model.generate(tokens(1, 4), max_new_tokens=2, eos_token_id=None).shape == (1, 6)


def test_no_memory(tmp_path):
    with pytest.raises(InputError, match=r"memory\.json does not exist: no memory was published"):
        load_memory(tiny_model(), tmp_path)


@pytest.mark.parametrize("upto", [3, -1])
def test_not_so_many_tasks(run, upto):
    with pytest.raises(InputError, match=rf"upto={upto}, but .*memory\.json holds 2 tasks"):
        load_memory(tiny_model(), run, upto=upto)


def test_a_changed_file(run):
    path = run / "memory" / "001_task_1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"001_task_1\.safetensors has 2,447 bytes"):
        load_memory(tiny_model(), run)
    load_memory(tiny_model(), run, upto=1)  # what is not asked for is not read


def test_another_model(run):
    with pytest.raises(InputError, match=r"belongs to tiny: this Sequential has no linear model\."):
        load_memory(nn.Sequential(nn.Linear(4, 4)), run)


def test_a_model_of_the_same_names_and_other_sizes(run):
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.q_proj = nn.Linear(16, 32)
    complaint = (
        r"000_task_0\.safetensors: model\.layers\.0\.self_attn\.q_proj\.keys is \[4, 32\], and the "
        r"model and the memory's settings ask for \[4, 16\]"
    )
    with pytest.raises(InputError, match=complaint):
        load_memory(model, run)
    assert isinstance(model.model.layers[0].self_attn.k_proj, nn.Linear)  # it is untouched


def test_a_memory_of_a_method_that_is_not_here(run):
    manifest = run / "memory" / "memory.json"
    manifest.write_text(manifest.read_text().replace('"moram"', '"moran"'))
    with pytest.raises(InputError, match="unknown method 'moran'; did you mean 'moram'"):
        load_memory(tiny_model(), run)
