"""Directions of older inputs, after a task was dropped and after two memories were merged."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from moram_dist.adapters.directions import beyond
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.use.editing import drop, merge
from moram_dist.use.source import read_source
from tests.helpers.drawn_runs import draw_run
from tests.unit.test_editing import FEW, LINEAR, THREE, inputs, update


def rows(*numbers):
    """Unit vectors of R^6, by the place of their 1."""
    return torch.eye(6)[list(numbers)]


def test_beyond_by_hand():
    half = (torch.eye(6)[[0]] + torch.eye(6)[[3]]) / 2**0.5
    found = beyond(torch.cat([half, rows(4)]), rows(0, 1))
    assert found.shape == (2, 6) and found.dtype == torch.float32
    torch.testing.assert_close(found.T @ found, rows(3, 4).T @ rows(3, 4), atol=1e-6, rtol=0)
    assert beyond(rows(1, 0), rows(0, 1)).shape == (0, 6)
    assert torch.equal(beyond(rows(2), rows(0)).abs(), rows(2))


def with_spans(run, ending, *spans):
    """The run's memory with orthonormal directions, one tensor of them per task."""
    files = MemoryFiles(run / "memory")
    manifest = files.manifest()
    published = dataclasses.replace(manifest, tasks=())
    for task, rows_KD in zip(manifest.tasks, spans, strict=True):
        tensors = files.read(task)
        tensors |= {name: rows_KD.clone() for name in tensors if name.endswith(ending)}
        published = files.publish(published, task.name, tensors)
    return read_source(run)


def drawn_spans(seed, *counts):
    square = torch.randn(128, 128, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(square).Q.T[: sum(counts)].split(counts)


QUIET = pytest.mark.parametrize(
    ("method", "ending"),
    [("moram", ".directions"), ("gpm_lora", ".directions"), ("inf_lora", ".subspace")],
)


def spans_of(edited, ending):
    """The directions of each task of one linear, from what will be written."""
    name = f"{LINEAR}{ending}"
    return [(one.tensors or one.files.read(one.task))[name] for one in edited.tasks]


def flags_of(method):
    return FEW | ({"quiet_keys": 0.9} if method == "moram" else {})


@QUIET
def test_the_next_task_takes_over_the_directions_of_a_dropped_one(tmp_path, method, ending):
    run = draw_run(tmp_path / "run", method, tasks=THREE, **flags_of(method))
    spans = drawn_spans(0, 3, 2, 4)
    source = with_spans(run, ending, *spans)
    first, second = spans_of(drop(source, "mood"), ending)
    assert torch.equal(first, spans[0])
    assert torch.equal(second, torch.cat(spans[1:]))
    (only, _) = spans_of(drop(source, "place"), ending)
    assert torch.equal(only, spans[0])
    drop(source, "mood").write(tmp_path / "new" / "memory")
    update(tmp_path / "new", inputs())  # its shapes are those that the method reads


@QUIET
def test_directions_of_two_memories_stay_orthonormal(tmp_path, method, ending):
    one = draw_run(tmp_path / "one", method, tasks=THREE, **flags_of(method))
    two = draw_run(tmp_path / "two", method, tasks=["job", "time"], **flags_of(method))
    spans = drawn_spans(0, 3, 2, 4)
    later, new = drawn_spans(1, 3, 2)
    old = torch.cat(spans)
    # The first of the second memory's tasks stored a direction that the first memory has.
    later = torch.linalg.qr(torch.cat([old[:1], later]).T).Q.T
    first, second = with_spans(one, ending, *spans), with_spans(two, ending, later, new)
    edited = merge(first, second)
    found = spans_of(edited, ending)
    assert [len(rows) for rows in found] == [3, 2, 4, 3, 2]
    together = torch.cat(found)
    torch.testing.assert_close(together @ together.T, torch.eye(14), atol=1e-5, rtol=0)
    for row in torch.cat([old, later, new]):
        torch.testing.assert_close(together.T @ (together @ row), row, atol=1e-5, rtol=0)
    edited.write(tmp_path / "new" / "memory")
    update(tmp_path / "new", inputs())
