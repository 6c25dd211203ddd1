"""Answers on two ranks under ZeRO-3: whole weights or in step, whatever the placement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eval.measure.harness import Evaluator
from moram_dist.atoms import Placer
from moram_dist.comm.collectives import make_atom_group
from moram_dist.config import EvalConfig, ModelConfig, RunConfig
from moram_dist.methods import METHODS
from moram_dist.models import language_model
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.train import ds_config
from moram_dist.train.engine import make_engine, start_fresh
from tests.helpers.configs import config_of
from tests.helpers.context import make_context
from tests.helpers.ranks import run_ranks

ZERO3 = Path(__file__).resolve().parents[2] / "ds_configs" / "zero3.json"
MODES = ("labels", "labels_mean", "constrained", "generate")
# 13 examples on two ranks: the last batch of one rank is made up.
BENCHMARK = BENCHMARKS["demo"](Source(order="topic,mood", limit_train=8, limit_eval=13))


def evaluate(rank: int, world_size: int, tmp_path: Path) -> None:
    """The same memory, evaluated under each setting."""
    model = ModelConfig()
    for placement in ("resident", "stationary"):
        file = ds_config.resolve(
            ds_config.read(ZERO3),
            path=ZERO3,
            batch_size=world_size,
            world_size=world_size,
            clip=1.0,
            bf16=False,
        )
        base = language_model.load(model, file)
        method = METHODS["moram"](
            config_of(atoms_per_task=4, alpha=40),
            seed=0,
            placer=Placer(make_atom_group("world"), placement),
        )
        method.build(base.model)
        engine = make_engine(base.model, file, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)
        for task in range(2):
            fresh = method.begin_task(task)
            # Larger atoms make attention so sharp that rounding decides where it looks.
            drawn = {n: 0.03 * torch.randn(t.shape, generator=generator) for n, t in fresh.items()}
            start_fresh(engine, drawn)
            method.end_task(task, lambda: [])
        for gather in ("true", "false"):
            asking = EvalConfig(answers=",".join(MODES), eval_gather=gather, eval_batch_size=4)
            context = make_context(
                config=RunConfig(method=config_of(), eval=asking),
                benchmark=BENCHMARK,
                method=method,
                engine=engine,
                base=base,
                folder=tmp_path / f"{placement}-{gather}",
            )
            Evaluator(context, BENCHMARK)(1)
        engine.destroy()


def predictions(folder: Path) -> dict[str, list[dict]]:
    return {
        path.name: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in sorted((folder / "predictions" / "after_001").iterdir())
    }


@pytest.mark.distributed
def test_answers_do_not_depend_on_how_ranks_work_together(tmp_path):
    run_ranks(evaluate, world_size=2, tmp_path=tmp_path, args=(tmp_path,))
    settings = [f"{p}-{g}" for p in ("resident", "stationary") for g in ("true", "false")]
    first, *others = [predictions(tmp_path / name) for name in settings]
    assert len(first) == 2 * len(MODES)
    assert len({line["prediction"] for lines in first.values() for line in lines}) > 4
    for other in others:
        assert other.keys() == first.keys()
        for name, lines in first.items():
            for a, b in zip(lines, other[name], strict=True):
                assert a["prediction"] == b["prediction"]
                assert a.get("log_likelihoods", {}) == pytest.approx(
                    b.get("log_likelihoods", {}), rel=1e-5
                )
