"""Drop, prune, merge and branch, by the files that they write and the formula of the memory."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.files import sha256
from moram_dist.methods import METHODS
from moram_dist.methods.restore import load_memory
from moram_dist.models.language_model import DEMO_BASE
from moram_dist.registry import InputError
from moram_dist.use.editing import branch, check_prunable, drop, merge, prune
from moram_dist.use.source import read_source
from tests.helpers.drawn_runs import draw_run
from tests.helpers.oracle import recall

THREE = ("topic", "mood", "place")
LINEAR = "model.layers.0.self_attn.q_proj"
FEW = {"target_modules": r"model\.layers\.0\.self_attn\.[qv]_proj"}
APART = ("moram", "inc_lora", "o_lora", "gpm_lora", "inf_lora", "single_task", "any_ssr")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return draw_run(tmp_path_factory.mktemp("three") / "run", tasks=THREE, **FEW)


def update(folder, x, upto=None, **named):
    """What the memory adds to one linear's output, without the base."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32)
    layer = load_memory(model, folder, upto, recall="all", **named).get_submodule(LINEAR)
    with torch.no_grad():
        return layer(x) - layer.base(x)


def inputs():
    return torch.randn(3, 128, generator=torch.Generator().manual_seed(5))


def atoms(folder, *tasks):
    """Keys and values of one linear, of these tasks."""
    files = MemoryFiles(folder / "memory")
    stored = [task for task in files.manifest().tasks if task.name in tasks]
    found = [files.read(task) for task in sorted(stored, key=lambda task: tasks.index(task.name))]
    return [torch.cat([one[f"{LINEAR}.{part}"] for one in found]) for part in ("keys", "values")]


def by_formula(folder, x, *tasks):
    keys, values = atoms(folder, *tasks)
    return recall(x, keys, values, top_k=8, temperature=0.03, threshold=0.2)


def test_a_dropped_task_is_not_among_the_atoms(run, tmp_path):
    edited = drop(read_source(run), "mood")
    manifest = edited.write(tmp_path / "memory")
    assert edited.names == [task.name for task in manifest.tasks] == ["topic", "place"]
    x = inputs()
    found = update(tmp_path, x)
    torch.testing.assert_close(found, by_formula(run, x, "topic", "place"), atol=1e-4, rtol=1e-4)
    assert (found - by_formula(run, x, *THREE)).abs().max() > 0.01
    assert torch.equal(update(tmp_path, x, 1), update(run, x, 1))


def test_files_are_copied_verified_and_named_by_their_place(run, tmp_path):
    manifest = drop(read_source(run), "mood").write(tmp_path / "memory")
    last = manifest.tasks[1]
    assert last.file == "001_place.safetensors"
    assert last.recogniser.file == "001_place.recogniser.safetensors"
    assert sha256(tmp_path / "memory" / last.file) == last.sha256
    assert last.sha256 == sha256(run / "memory" / "002_place.safetensors")
    recogniser = run / "memory" / "002_place.recogniser.safetensors"
    assert sha256(tmp_path / "memory" / last.recogniser.file) == sha256(recogniser)
    assert MemoryFiles(tmp_path / "memory").manifest() == manifest


def test_the_manifest_says_what_was_done_to_what(run, tmp_path):
    manifest = drop(read_source(run), "mood").write(tmp_path / "memory")
    (edit,) = manifest.edits
    assert (edit.command, edit.what) == ("drop", "mood dropped")
    assert edit.caution == (
        "not a memory that never learned mood: place was trained beside what it added"
    )
    assert edit.sources == (sha256(run / "memory" / "memory.json"),)
    source = dataclasses.replace(read_source(run), files=None, manifest=manifest)
    again = dataclasses.replace(source, files=MemoryFiles(tmp_path / "memory"))
    assert [each.command for each in branch(again, "topic").manifest.edits] == ["drop", "branch"]


def test_a_memory_that_was_learned_is_written_as_before(run):
    content = json.loads((run / "memory" / "memory.json").read_text())
    assert "edits" not in content and "atoms" not in content["tasks"][0]


@pytest.mark.parametrize(
    ("method", "task", "caution"),
    [
        ("moram", "place", "the memory before place: no task was learned after it"),
        ("inc_lora", "topic", "not a memory that never learned topic: mood, place were trained"),
        ("any_ssr", "topic", "the same as if topic had never been learned: each task was learned"),
    ],
)
def test_what_a_dropped_task_leaves(tmp_path, method, task, caution):
    source = read_source(draw_run(tmp_path / "run", method, tasks=THREE, **FEW))
    assert drop(source, task).edit.caution.startswith(caution)


@pytest.mark.parametrize("method", ["inc_lora", "o_lora"])
def test_a_dropped_lora_is_not_in_the_sum(tmp_path, method):
    run = draw_run(tmp_path / "run", method, tasks=THREE, **FEW)
    drop(read_source(run), "mood").write(tmp_path / "new" / "memory")
    files = MemoryFiles(run / "memory")
    x, expected = inputs(), 0
    for task in files.manifest().tasks:
        if task.name != "mood":
            A, B = (files.read(task)[f"{LINEAR}.lora_{part}"] for part in "AB")
            expected = expected + x @ A.T @ B
    torch.testing.assert_close(update(tmp_path / "new", x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", sorted({*METHODS} - {*APART, "rail", "in_context"}))
def test_methods_that_mix_their_tasks_are_refused(tmp_path, method):
    source = read_source(draw_run(tmp_path / "run", method, **FEW))
    for edit in (lambda: drop(source, "mood"), lambda: merge(source, source)):
        with pytest.raises(InputError, match=f"{method} mixes what its tasks learned, so no task"):
            edit()
    with pytest.raises(InputError, match=f"{method} has no atoms that answer more or less often"):
        check_prunable(source, 1)
    if method == "multitask":
        with pytest.raises(InputError, match="multitask learned all tasks together"):
            branch(source, "topic")
    else:
        assert branch(source, "topic").names == ["topic"]


def test_methods_that_do_not_mix_them_are_known():
    assert {name for name in METHODS if METHODS[name].keeps_apart} == {*APART}


def test_drop_refuses(run, tmp_path):
    with pytest.raises(InputError, match="unknown task 'moo'; did you mean 'mood'"):
        drop(read_source(run), "moo")
    one = draw_run(tmp_path / "one", tasks=["topic"], **FEW)
    with pytest.raises(InputError, match="one task only: nothing would be left without it"):
        drop(read_source(one), "topic")


def used(run, *numbers):
    """How much 12 atoms of each linear answer; the numbers are those of one of them."""
    other = torch.arange(12)
    return {
        name: torch.tensor(numbers) if name == LINEAR else other
        for name in read_source(run).manifest.modules
    }


def test_the_atoms_used_most_are_kept_in_their_order(run, tmp_path):
    weights = used(run, *(5, 0, 9, 1), *(2, 2, 2, 2), *(0, 1, 0, 3))
    manifest = prune(read_source(run), 2, weights).write(tmp_path / "memory")
    assert [task.atoms for task in manifest.tasks] == [2, 2, 2]
    for part, whole in zip(atoms(tmp_path, *THREE), atoms(run, *THREE), strict=True):
        assert torch.equal(part, whole[[0, 2, 4, 5, 9, 11]])
    x = inputs()
    torch.testing.assert_close(
        update(tmp_path, x), by_formula(tmp_path, x, *THREE), atol=1e-4, rtol=1e-4
    )
    assert update(tmp_path, x, 2).shape == (3, 128)


def test_a_pruned_task_that_is_small_enough_is_copied(run, tmp_path):
    source = read_source(run)
    prune(source, 2, used(run, *range(12))).write(tmp_path / "memory")
    small = dataclasses.replace(
        source,
        files=MemoryFiles(tmp_path / "memory"),
        manifest=MemoryFiles(tmp_path / "memory").manifest(),
    )
    merged = prune(small, 3, {})
    assert all(one.tensors is None for one in merged.tasks)
    (last,) = [task for task in merged.write(tmp_path / "m").tasks if task.name == "place"]
    assert last.atoms == 2


@pytest.mark.parametrize(
    ("keep", "match"), [(0, "--keep must be at least 1, got 0"), (4, "has more than 4 atoms per")]
)
def test_nothing_to_prune(run, keep, match):
    with pytest.raises(InputError, match=match):
        check_prunable(read_source(run), keep)


@pytest.mark.parametrize("atoms", [3, 1, 0])
def test_a_file_with_other_atoms_than_the_manifest_says_is_refused(run, tmp_path, atoms):
    prune(read_source(run), 2, used(run, *range(12))).write(tmp_path / "memory")
    path = tmp_path / "memory" / "memory.json"
    path.write_text(path.read_text().replace('"atoms": 2', f'"atoms": {atoms}', 1))
    complaint = r"keys is \[2, 128\], and" if atoms else "tasks.0.atoms: should be at least 1"
    with pytest.raises(InputError, match=complaint):
        update(tmp_path, inputs())


def test_a_method_without_atoms_has_none_to_prune(tmp_path):
    run = draw_run(tmp_path / "run", "inc_lora", **FEW)
    path = run / "memory" / "memory.json"
    path.write_text(path.read_text().replace('"name": "topic"', '"name": "topic", "atoms": 4', 1))
    with pytest.raises(InputError, match="atoms: inc_lora has none to prune"):
        update(run, inputs())


def test_two_memories_are_one_after_the_other(run, tmp_path):
    second = draw_run(tmp_path / "second", tasks=["job", "time"], **FEW)
    edited = merge(read_source(run), read_source(second))
    assert edited.names == [*THREE, "job", "time"]
    edited.write(tmp_path / "new" / "memory")
    keys, values = zip(atoms(run, *THREE), atoms(second, "job", "time"), strict=True)
    x = inputs()
    expected = recall(
        x, torch.cat(keys), torch.cat(values), top_k=8, temperature=0.03, threshold=0.2
    )
    torch.testing.assert_close(update(tmp_path / "new", x), expected, atol=1e-4, rtol=1e-4)
    assert len(edited.edit.sources) == 2


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"method": "inc_lora"}, "method of .*run is moram, of .*second inc_lora"),
        ({"temperature": 0.5}, r"temperature of .*run is 0\.03, of .*second 0\.5"),
        ({"target_modules": "q_proj"}, "target_modules of .* is model"),
        ({}, "both .*run and .*second learned task mood"),
    ],
)
def test_merge_refuses(run, tmp_path, flags, match):
    tasks = ["job", "time"] if flags else ["job", "mood"]
    second = draw_run(tmp_path / "second", tasks=tasks, **(FEW | flags))
    with pytest.raises(InputError, match=match):
        merge(read_source(run), read_source(second))


def test_merge_refuses_another_base(run):
    source = read_source(run)
    base = {"name": "other", "fingerprint": "a" * 64}
    other = dataclasses.replace(source, manifest=dataclasses.replace(source.manifest, base=base))
    with pytest.raises(InputError, match=r"base of .* is f66e86c767da, of .* aaaaaaaaaaaa"):
        merge(source, other)


def test_branch_keeps_the_first_tasks(run, tmp_path):
    edited = branch(read_source(run), "mood")
    manifest = edited.write(tmp_path / "memory")
    assert edited.names == ["topic", "mood"]
    assert manifest.tasks == read_source(run).manifest.tasks[:2]
    with pytest.raises(InputError, match="unknown task 'moo'"):
        branch(read_source(run), "moo")
