"""A new LoRA for each task, trained off the directions of older tasks' inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from moram_dist.adapters.directions import OlderInputs, direction_shapes
from moram_dist.atoms import by_input
from moram_dist.methods.inc_lora import IncLora
from moram_dist.methods.method import METHODS, ExampleLosses, Linears

ENERGY = 0.95
"""Part of the squared length of a task's inputs that its directions hold."""


@METHODS.register("gpm_lora")
class GpmLora(IncLora):
    """``inc_lora`` whose new A is orthogonal to the leading directions of older tasks' inputs.

    As ``inf_lora`` it hardly responds to older tasks' inputs, but A is trained. It is the
    counterpart of ``moram`` with ``quiet_keys``, and separates what that owes to atoms from what it
    owes to the projection.

    Source: gradient projection memory, Saha et al. 2021, arXiv:2103.09762, applied to a LoRA.
    """

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """As ``inc_lora``."""
        super().build(model, modules)
        self.model = model
        groups = [tuple(names) for names in by_input(self.layers)]
        self.older = OlderInputs(self.layers, groups, ENERGY)

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """New terms, kept off the directions of older tasks."""
        for names in self.older.groups:
            directions_KD = self.older.of(names).to(self.layers[names[0]].lora_A.device)
            for name in names:
                self.layers[name].directions_KD = directions_KD
        return super().begin_task(i)

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """Freeze the task's terms, and add the directions of its inputs."""
        tensors = self._trained()
        super().load_task(i, tensors)
        return tensors | self.older.add_task(self.model, look)

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """A, B, and the directions that the task adds."""
        return super().shapes(i, linears) | direction_shapes(linears, by_input(linears))

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Append task i's terms and directions."""
        super().load_task(i, tensors)
        self.older.load_task(tensors)
