"""A new LoRA for each task that reads a subspace nearly orthogonal to older inputs: InfLoRA."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import sizes
from moram_dist.adapters.moments import of_inputs
from moram_dist.adapters.subspaces import leading, new_directions, without
from moram_dist.comm.zero3 import whole
from moram_dist.methods.inc_lora import IncLora
from moram_dist.methods.method import METHODS, ExampleLosses, Linears

EXAMPLES = 64
"""Examples of a task whose inputs are recorded before it is learned and again at its end."""

ENERGY = 0.995
"""Energy of the first task's inputs that its subspace holds; it rises linearly towards 1 for later
tasks. As in the scripts that the authors of GainLoRA published."""


@METHODS.register("inf_lora")
class InfLora(IncLora):
    """``inc_lora`` whose A is designed before each task and then frozen; only B is trained.

    A's rows are the leading directions of the new task's inputs, without their component in the
    subspace of older tasks' inputs. So the update for older tasks' inputs is almost 0. At a task's
    end the leading directions of its inputs are added to that subspace, as in gradient projection
    memory (Saha et al. 2021, arXiv:2103.09762).

    Here the subspace of old inputs is stored, as in the authors' code for language models; their
    code for images stores its complement once that is smaller (DualGPM), which is equivalent.
    Moments are over all tokens of ``EXAMPLES`` examples, prompt and answer; they take 8 D^2 bytes
    for a linear whose input has D elements.

    Source: InfLoRA, Liang and Li 2024, arXiv:2404.00228.
    """

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """As ``inc_lora``, with A frozen."""
        super().build(model, modules)
        self.model = model
        self.subspaces: dict[str, Tensor] = {}
        """Subspace of each linear's inputs in older tasks: orthonormal rows, on the CPU."""
        self._designed: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            layer.lora_A.requires_grad_(False)
            self.subspaces[name] = torch.zeros(0, layer.in_features)

    def prepare_task(self, i: int, look: ExampleLosses) -> None:
        """Design A from the task's inputs in the current model."""
        for together, A in self._of_inputs(look, self._design):
            for name in together:
                self._designed[f"{name}.lora_A"] = A

    def _design(self, together: list[str], moment_DD: Tensor) -> Tensor:
        A = leading(without(moment_DD, self.subspaces[together[0]]), self.config.atoms_per_task)
        # Scaled to the norm of rows drawn Kaiming-uniform.
        return (A / math.sqrt(3)).float().cpu()

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """New terms: A as designed (drawn at random without ``prepare_task``), B zero."""
        designed, self._designed = self._designed, {}
        return super().begin_task(i) | designed

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """Freeze the task's terms, and compute the directions that its inputs add."""
        tensors = self._trained()
        self._freeze(tensors)
        energy = ENERGY + (1 - ENERGY) * i / self.num_tasks
        tensors |= self._directions(energy, look)
        self._remember(tensors)
        return tensors

    def _directions(self, energy: float, look: ExampleLosses) -> dict[str, Tensor]:
        """The directions that the newly frozen task adds to the subspaces."""
        found = {
            f"{name}.subspace": torch.zeros(0, layer.in_features)
            for name, layer in self.layers.items()
        }

        def compute(together: list[str], moment_DD: Tensor) -> Tensor:
            added_KD = new_directions(moment_DD, self.subspaces[together[0]], energy)
            return added_KD.float().cpu()

        for together, added_KD in self._of_inputs(look, compute):
            for name in together:
                found[f"{name}.subspace"] = added_KD.clone()  # a file's tensors share no memory
        return found

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """Shapes of A, B, and any number of new directions of the subspace."""
        found = {f"{name}.subspace": (-1, sizes(linear)[0]) for name, linear in linears.items()}
        return super().shapes(i, linears) | found

    def state_dict(self) -> dict[str, Tensor]:
        """A of the task being learned."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            with whole([layer.lora_A]):
                found[f"{name}.lora_A"] = layer.lora_A.detach().float().cpu().clone()
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore A."""
        for name, layer in self.layers.items():
            with whole([layer.lora_A], write=True), torch.no_grad():
                layer.lora_A.copy_(state[f"{name}.lora_A"])

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        self._freeze(tensors)
        self._remember(tensors)

    def _freeze(self, tensors: Mapping[str, Tensor]) -> None:
        """Append a task's terms to the frozen ones."""
        super()._keep(tensors)

    def _remember(self, tensors: Mapping[str, Tensor]) -> None:
        """Add a task's directions to the subspaces."""
        for name in self.layers:
            added = tensors[f"{name}.subspace"].cpu().float()
            self.subspaces[name] = torch.cat([self.subspaces[name], added])

    def _seen(self) -> None:
        """Called after each counted example has passed through the model."""

    def _of_inputs(
        self, look: ExampleLosses, compute: Callable[[list[str], Tensor], Tensor]
    ) -> Iterator[tuple[list[str], Tensor]]:
        return of_inputs(self.model, self.layers, look, EXAMPLES, compute, self._seen)
