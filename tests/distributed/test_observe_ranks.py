"""Whose atoms answer: two ranks count what one counts, wherever the atoms are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eval.measure.observe import Observer
from eval.routing import read_routing, routing_path
from moram_dist.atoms import Placer
from moram_dist.comm.collectives import AtomGroup, make_atom_group
from moram_dist.config import ModelConfig, RunConfig
from moram_dist.methods import METHODS
from moram_dist.models import language_model
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.configs import config_of
from tests.helpers.context import make_context
from tests.helpers.ranks import run_ranks

TASKS = ["topic", "mood", "place"]
PLACEMENTS = ("resident", "gathered", "stationary")


def observe(group: AtomGroup, placement: str, folder: Path) -> None:
    """Observe a drawn memory of three tasks with five examples each, so one rank has one more."""
    base = language_model.load(ModelConfig(dtype="fp32"))
    placer = Placer(group, placement, num_tasks=3)
    method = METHODS["moram"](config_of(atoms_per_task=5, dropout=0), 0, placer, num_tasks=3)
    method.build(base.model)
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        shapes = method.shapes(i, method.layers).items()
        method.load_task(i, {n: 0.2 * torch.randn(s, generator=generator) for n, s in shapes})
    benchmark = BENCHMARKS["demo"](Source(order=",".join(TASKS), limit_train=4, limit_eval=5))
    context = make_context(
        config=RunConfig(method=config_of()),
        method=method,
        engine=None,
        base=base,
        folder=folder,
    )
    Observer(context, benchmark)(2, base.model.eval(), "after place")


def _observe_everywhere(rank: int, world_size: int, folder: Path) -> None:
    for placement in PLACEMENTS:
        observe(make_atom_group("world"), placement, folder / placement)


@pytest.mark.distributed
def test_ranks_count_what_one_counts(tmp_path):
    observe(AtomGroup(), "resident", tmp_path / "one")
    one = routing_path(tmp_path / "one", 2).read_bytes()
    run_ranks(_observe_everywhere, world_size=2, tmp_path=tmp_path, args=(tmp_path,))
    for placement in ("resident", "gathered"):
        assert routing_path(tmp_path / placement, 2).read_bytes() == one, placement
    # Stationary atoms are summed in another order.
    expected = read_routing(tmp_path / "one", TASKS, 2)
    found = read_routing(tmp_path / "stationary", TASKS, 2)
    for row, other in zip(found.shares, expected.shares, strict=True):
        assert row == pytest.approx(other, abs=0.01)
    assert found.atoms == expected.atoms and found.cosine == expected.cosine
    assert sum(found.linears[0].tokens) == sum(expected.linears[0].tokens)
    assert found.unanswered == pytest.approx(expected.unanswered, abs=0.1)
