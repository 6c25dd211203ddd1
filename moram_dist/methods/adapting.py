"""What methods share that adapt the linears of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from moram_dist.adapters.adapter import AdaptedLinear, sizes
from moram_dist.adapters.dropout import TokenDropout
from moram_dist.adapters.inject import adapt
from moram_dist.config import MethodConfig
from moram_dist.families.targets import find_linears
from moram_dist.methods.method import Method
from moram_dist.section import section


@section
class AdapterConfig(MethodConfig):
    """Settings of all methods that adapt linears."""

    target_modules: str = "attention"
    """Linears to adapt: attention, all-linear, names joined by commas, or a regex of full names."""

    atoms_per_task: Annotated[int, Field(ge=1, le=2**20)] = 8
    """Atoms that a task adds to each adapted linear; for methods with a LoRA, its rank."""

    alpha: Annotated[float, Field(gt=0, ge=1e-30, le=1_000_000)] = 16.0
    """Active values are scaled by alpha / atoms_per_task; freezing folds the scale in."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on the input of the scores, in training."""


class AdaptingMethod(Method):
    """Base of all methods that adapt linears."""

    Config = AdapterConfig
    config: AdapterConfig

    def _adapt(
        self,
        model: nn.Module,
        modules: Sequence[str] | None,
        make: Callable[[str, nn.Module], AdaptedLinear],
    ) -> None:
        """Common part of ``build``: replace each target linear by ``make(name, linear)``."""
        self.layers = adapt(model, modules or find_linears(model, self.config.target_modules), make)

    def _dropout(self, name: str, base: nn.Module) -> TokenDropout:
        """Dropout for the input of the adapted linear ``name``."""
        dropout = TokenDropout(self.config.dropout, self.token_keys, name=name, size=sizes(base)[0])
        # Under ZeRO-3, DeepSpeed moves parameters to the device, but no buffers.
        weight: Any = base.weight
        return dropout.to(weight.device)
