"""Run directories on the demo's base whose memory is drawn by hand, made in a second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from moram_dist import config_io
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.families.targets import find_linears
from moram_dist.methods import METHODS
from moram_dist.models import language_model
from moram_dist.recognise import TaskStatistics
from moram_dist.tasks import BENCHMARKS, Benchmark, Source
from moram_dist.train import inputs
from moram_dist.train.run_dir import RunDir

TASKS = ("topic", "mood")
TRAIN, TEST = 40, 6
HIDDEN = 128
"""Of the demo's base, for sizes that the memory's settings leave free."""


def demo_benchmark(tasks: Sequence[str] = TASKS) -> Benchmark:
    return BENCHMARKS["demo"](Source(order=",".join(tasks), limit_train=TRAIN, limit_eval=TEST))


def save_tiny_gpt2(folder: Path) -> Path:
    """A GPT-2 with 256 positions and the demo's tokenizer, as a folder that a run takes."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 1024, "n_positions": 256}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(language_model.DEMO_BASE / name, folder)
    return folder


def draw_run(
    folder: Path, method: str = "moram", *, tasks: Sequence[str] = TASKS, **flags: Any
) -> Path:
    """A run of tasks of the demo that was never trained: its tensors are random numbers."""
    benchmark = demo_benchmark(tasks)
    flags = {"atoms_per_task": 4, "dtype": "fp32"} | flags
    flags |= {"order": ",".join(tasks), "limit_train": TRAIN, "limit_eval": TEST}
    config = config_io.build({"method": method, **flags})
    run = RunDir(folder)
    run.describe(config, benchmark, {}, 1)
    tokenizer = language_model.load_tokenizer(config.model)
    found = inputs.gather(config, benchmark, {}, tokenizer, say=lambda line: None)
    (folder / "inputs.json").write_text(json.dumps(asdict(found)))

    source = language_model.source(config.model)
    family = language_model.family_of(language_model.check(config.model))
    model = family.auto_class().from_pretrained(source)
    asked = getattr(config.method, "target_modules", None)
    targets = find_linears(model, asked) if asked else []
    linears: dict[str, nn.Module] = {name: model.get_submodule(name) for name in targets}
    kind = METHODS[method](config.method, seed=0, num_tasks=len(tasks))
    files = MemoryFiles(folder / "memory")
    manifest = Manifest(
        method=method,
        settings=asdict(config.method),
        base=found.base.saved,
        modules=list(linears),
    )
    for i, task in enumerate(benchmark.tasks):
        generator = torch.Generator().manual_seed(i)
        tensors = {
            name: 0.2 * torch.randn([HIDDEN if n < 0 else n for n in shape], generator=generator)
            for name, shape in sorted(kind.shapes(i, linears).items())
        }
        features = family.features(model, tokenizer, task.train, task)
        statistics = TaskStatistics.of(features).tensors()
        manifest = files.publish(manifest, task.name, tensors, statistics)
    return folder
