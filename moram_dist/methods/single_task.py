"""A separate LoRA for each task: how well a task is learned on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from moram_dist.adapters.chosen_lora import ChosenLora
from moram_dist.config import EvalRows
from moram_dist.methods.method import METHODS
from moram_dist.methods.sequential_lora import SequentialLora


@METHODS.register("single_task")
class SingleTask(SequentialLora):
    """The reference for forward transfer and intransigence; not a continual learner.

    Source: Chaudhry et al. 2018, arXiv:1801.10112 (intransigence); Zhao et al. 2024,
    arXiv:2401.08295 (forward transfer against tasks learned by themselves).
    """

    eval_rows: EvalRows | None = "diagonal"
    keeps_prefixes = True
    keeps_apart = True
    one_answers = True
    layers: dict[str, ChosenLora]  # type: ignore[assignment]

    def _layer(self, base: nn.Module, **settings: Any) -> ChosenLora:
        return ChosenLora(base, **settings, prefix=self.prefix)

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """A new LoRA that starts without earlier tasks."""
        return self._fresh(i)

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        for name, layer in self.layers.items():
            A, B = (tensors[f"{name}.{part}"].to(layer.lora_A) for part in ("lora_A", "lora_B"))
            layer.kept.append((A, B))
