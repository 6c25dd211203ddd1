"""Recall by prefix on several ranks: the same statistics, and the answers of earlier memories."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from eval.measure.harness import Evaluator
from moram_dist.atoms import Placer
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.comm import env
from moram_dist.comm.collectives import make_atom_group
from moram_dist.config import EvalConfig, ModelConfig, RunConfig
from moram_dist.methods import METHODS
from moram_dist.models import language_model
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.train import ds_config
from moram_dist.train.engine import make_engine, start_fresh
from moram_dist.train.recognition import statistics_of
from tests.helpers.configs import config_of
from tests.helpers.context import make_context
from tests.helpers.ranks import run_ranks

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
BENCHMARK = BENCHMARKS["demo"](Source(order="topic,mood,place", limit_train=9, limit_eval=7))
LAST = len(BENCHMARK.tasks) - 1
MEASURED = {  # number of ranks -> method, file of DeepSpeed, placement, --eval_gather
    1: [("moram", "zero2", "resident", "true")],
    2: [("moram", "zero3", "stationary", "true"), ("inc_lora", "zero3", "resident", "false")],
    3: [("moram", "zero2", "gathered", "true")],
}


def measure(rank: int, world_size: int, tmp_path: Path) -> None:
    """A memory of three tasks, drawn by hand, measured after each with each recall."""
    for name, stage, placement, gather in MEASURED[world_size]:
        path = DS_CONFIGS / f"{stage}.json"
        file = ds_config.resolve(
            ds_config.read(path),
            path=path,
            batch_size=world_size,
            world_size=world_size,
            clip=1.0,
            bf16=False,
        )
        base = language_model.load(ModelConfig(), file)
        config = config_of(method=name, atoms_per_task=4, alpha=40, temperature=0.3)
        method = METHODS[name](
            config, seed=0, placer=Placer(make_atom_group("world"), placement), num_tasks=3
        )
        method.build(base.model)
        engine = make_engine(base.model, file, weight_decay=0.0)
        folder = tmp_path / f"{name}-{stage}-{placement}-{gather}-{world_size}"
        files = MemoryFiles(folder / "memory")
        manifest = Manifest(
            method=name,
            settings=asdict(config),
            base={"name": "demo", "fingerprint": "f"},
            modules=list(method.layers),
        )
        asking = EvalConfig(
            answers="labels", recall="prefix,oracle,all", eval_gather=gather, eval_batch_size=4
        )
        context = make_context(
            config=RunConfig(method=config_of(), eval=asking),
            benchmark=BENCHMARK,
            method=method,
            engine=engine,
            base=base,
            folder=folder,
        )
        evaluate = Evaluator(context, BENCHMARK)
        for i, task in enumerate(BENCHMARK.tasks):
            generator = torch.Generator().manual_seed(i)
            fresh = method.begin_task(i)
            start_fresh(
                engine, {n: torch.randn(t.shape, generator=generator) for n, t in fresh.items()}
            )
            learned = method.end_task(i, lambda limit: (0, iter(())))
            statistics = statistics_of(base, task).tensors()
            if env.is_main():
                manifest = files.publish(manifest, task.name, learned, statistics)
            env.barrier()
            evaluate(i)
        engine.destroy()


def lines(folder: Path, row: int, column: int, recall: str) -> list[dict]:
    ending = "" if recall == "prefix" else f".{recall}"
    name = f"on_{column:03d}_{BENCHMARK.tasks[column].name}{ending}.jsonl"
    text = (folder / "predictions" / f"after_{row:03d}" / name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def same(a: dict, b: dict, within: float = 2e-4) -> bool:
    """Whether two memories answered alike."""
    return a["log_likelihoods"] == pytest.approx(b["log_likelihoods"], abs=within)


@pytest.mark.distributed
def test_recalls_on_one_two_and_three_ranks(tmp_path):
    for world_size in MEASURED:
        meeting = tmp_path / f"{world_size} ranks"
        meeting.mkdir()
        run_ranks(measure, world_size=world_size, tmp_path=meeting, args=(tmp_path,))
    alone, *folders = [
        tmp_path / f"{'-'.join(setting)}-{world_size}"
        for world_size, settings in MEASURED.items()
        for setting in settings
    ]
    for i, task in enumerate(BENCHMARK.tasks):
        file = f"memory/{i:03d}_{task.name}.recogniser.safetensors"
        assert len({(folder / file).read_bytes() for folder in (alone, *folders)}) == 1
    for folder in (alone, *folders):
        recognised = [
            (line["recognised"], task.name, k, line)
            for column, task in enumerate(BENCHMARK.tasks)
            for k, line in enumerate(lines(folder, LAST, column, "prefix"))
        ]
        assert sum(found == name for found, name, *_ in recognised) > 12  # of 21
        assert len({found for found, *_ in recognised}) == 3
        order = [task.name for task in BENCHMARK.tasks]
        for found, name, k, line in recognised:
            # What all tasks answered when the recognised one was the newest, if it is not
            # older than the prompt's own: that cell was not measured.
            column, row = order.index(name), order.index(found)
            row = LAST if line.get("rejected") else row
            if row >= column:
                assert same(line, lines(folder, row, column, "all")[k])
        for column in range(LAST + 1):
            then = lines(folder, column, column, "all")
            told = lines(folder, LAST, column, "oracle")
            assert all(same(a, b) for a, b in zip(told, then, strict=True))
            assert "recognised" not in told[0]
        changed = zip(lines(folder, LAST, 0, "all"), lines(folder, 0, 0, "all"), strict=True)
        assert any(not same(a, b) for a, b in changed)
    for folder in folders:
        if "moram" not in folder.name:
            continue
        for column in range(LAST + 1):
            pairs = zip(
                lines(folder, LAST, column, "prefix"),
                lines(alone, LAST, column, "prefix"),
                strict=True,
            )
            for a, b in pairs:
                assert a["recognised"] == b["recognised"]
                assert same(a, b, within=1e-2)  # sums over other shares
