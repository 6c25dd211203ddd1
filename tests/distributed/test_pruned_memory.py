"""A memory whose tasks have unlike numbers of atoms, asked and trained on, on one and two ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.comm import env
from moram_dist.methods.restore import load_memory
from moram_dist.models.identity import fingerprint_of
from tests.helpers.life import METHOD, Life, Setting
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import save_tiny_model, tokens

ATOMS = (3, 1)
"""Of the two published tasks; a task learns four."""

SETTINGS = {
    1: [Setting("zero2.json", 2, "fp32")],
    2: [
        Setting("zero3.json", 3, "fp32", shard_all=True, placement=placement)
        for placement in ("resident", "gathered", "stationary")
    ],
}


def publish(folder: Path, base: Path) -> None:
    """A memory that was drawn and then pruned."""
    model = AutoModelForCausalLM.from_pretrained(base)
    linears = {
        f"model.layers.{layer}.self_attn.{name}_proj": model.get_submodule(
            f"model.layers.{layer}.self_attn.{name}_proj"
        )
        for layer in range(len(model.model.layers))
        for name in "qkvo"
    }
    files = MemoryFiles(folder)
    manifest = Manifest(
        method="moram",
        settings=dataclasses.asdict(METHOD),
        base=fingerprint_of(str(base)),
        modules=[*linears],
    )
    generator = torch.Generator().manual_seed(0)
    for i, count in enumerate(ATOMS):
        tensors = {}
        for name, linear in linears.items():
            for part, size in (("keys", linear.in_features), ("values", linear.out_features)):
                drawn = torch.randn(count, size, generator=generator)
                tensors[f"{name}.{part}"] = 0.5 * drawn
        manifest = files.publish(manifest, f"task {i}", tensors, atoms=count)


def live(rank: int, world_size: int, tmp_path: Path) -> None:
    """Load the memory, answer by all of it and by its first task, and learn one more task."""
    files = MemoryFiles(tmp_path / "memory")
    manifest = files.manifest()
    assert manifest is not None
    for setting in SETTINGS[world_size]:
        life = Life(tmp_path / "base", setting, world_size)
        for i, task in enumerate(manifest.tasks):
            files.check(task, life.method.stored_shapes(i, task, life.method.layers))
            life.method.load_task(i, files.read(task))
        found = {"all": life.logits()}
        with life.method.prefix.of([1, 1]):
            found["first"] = life.logits()
        life.begin(2)
        life.train(2, 0, 3)
        found |= life.method.end_task(2, lambda limit: (0, iter(())))
        found["learned"] = life.logits()
        if env.is_main():
            own = {name: tensor.contiguous() for name, tensor in found.items()}
            save_file(own, tmp_path / f"{world_size}-{setting.placement}.safetensors")
        life.engine.destroy()


@pytest.mark.distributed
def test_unlike_numbers_of_atoms_on_one_and_two_ranks(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    publish(tmp_path / "memory", base)
    for world_size in SETTINGS:
        meeting = tmp_path / f"{world_size} ranks"
        meeting.mkdir()
        run_ranks(live, world_size=world_size, tmp_path=meeting, args=(tmp_path,))
    alone = load_file(tmp_path / "1-resident.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = load_memory(plain, tmp_path / "memory")
    with torch.no_grad():
        expected = model(input_ids=tokens(2, 12)).logits
    torch.testing.assert_close(alone["all"], expected, atol=1e-5, rtol=1e-5)
    assert (alone["all"] - alone["first"]).abs().max() > 1e-3
    assert (alone["all"] - alone["learned"]).abs().max() > 1e-3
    assert alone["model.layers.0.self_attn.q_proj.keys"].shape[0] == 4
    for setting in SETTINGS[2]:
        found = load_file(tmp_path / f"2-{setting.placement}.safetensors")
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
