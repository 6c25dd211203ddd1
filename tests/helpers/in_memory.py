"""A whole run in this process, on a model in memory, without DeepSpeed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval.measure.harness import Evaluator
from moram_dist.atoms.manifest import Manifest
from moram_dist.config import EvalConfig, MethodConfig, RunConfig, TrainConfig
from moram_dist.families import family_of_model
from moram_dist.methods import METHODS
from moram_dist.models.language_model import Base
from moram_dist.tasks.task import Benchmark
from moram_dist.train.stop import StopSignals
from moram_dist.train.trainer import Trainer
from tests.helpers.context import make_context


class Engine:
    """Does for one process what DeepSpeed's engine does."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        learned = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=0.0, weight_decay=0.0)
        self.train, self.eval, self.modules = module.train, module.eval, module.modules
        self.at_boundary = True

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.at_boundary = is_boundary

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.at_boundary

    def zero_optimization_partition_weights(self) -> bool:
        return False

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    def step(self) -> None:
        if self.at_boundary:
            self.optimizer.step()
            self.optimizer.zero_grad()


def run_in_memory(
    folder: Path,
    model: nn.Module,
    tokenizer: Any,
    benchmark: Benchmark,
    method_config: MethodConfig,
    *,
    learning_rate: float,
    asking: EvalConfig,
) -> dict[str, Any]:
    """Train on all tasks and evaluate; the contents of ``scores.json``.

    ``folder`` then holds the memory, the predictions and the scores of the run.
    """
    config = RunConfig(
        train=TrainConfig(learning_rate=learning_rate), eval=asking, method=method_config
    )
    method = METHODS[method_config.method](method_config, seed=0, num_tasks=len(benchmark.tasks))
    method.build(model)
    manifest = Manifest(
        method=method_config.method,
        settings=asdict(method_config),
        base={"name": "made in memory", "fingerprint": "f"},
        modules=[*method.layers],
    )
    context = make_context(
        config=config,
        benchmark=benchmark,
        method=method,
        engine=Engine(model),
        base=Base(model, tokenizer, None, family_of_model(model)),
        folder=folder,
    )
    evaluate = Evaluator(context, benchmark)
    with StopSignals("SIGTERM") as stop:
        Trainer(context, manifest=manifest, evaluate=evaluate, stop=stop).run()
    saved: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return saved
