"""One LoRA per task with InfLoRA's subspaces, and gates that shield older tasks from new LoRAs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.adapters.gated_lora import (
    HIDDEN,
    GatedLora,
    GateWeights,
    PromptGates,
    RowGates,
    gate_inputs,
)
from moram_dist.adapters.prompts import Prompts
from moram_dist.adapters.subspaces import leading, new_directions, without
from moram_dist.comm import env
from moram_dist.comm.zero3 import whole
from moram_dist.families import family_of_model
from moram_dist.methods.inf_lora import InfLora
from moram_dist.methods.method import METHODS, ExampleLosses, Linears
from moram_dist.registry import InputError

GATE = "gate."
"""Prefix of the gate's tensor names in a task's memory file."""


@METHODS.register("gain_lora")
class GainLora(InfLora):
    """``inf_lora`` with one gate per task, which reads the mean input embedding of a row's prompt.

    A new task's gate starts from the last one's weights, with a key orthogonal to their outputs on
    older tasks' prompts, so there it is 0. In training its weights change only orthogonally to the
    subspaces of older tasks' prompts, so there it stays 0. Older gates and LoRAs are frozen.

    Differences from the authors' code: gradients are projected too, not only the optimizer's steps;
    weights are not rescaled to their old norm after a projection, which would change the outputs
    that it preserves; in a causal model too, a gate reads only the prompt, never the answer.

    Source: GainLoRA, Liang and Li 2025, arXiv:2505.15424.
    """

    reads_texts = True
    keeps_apart = False  # a gate is 0 on the prompts of the tasks before it
    as_lora = None  # what is added depends on the input
    layers: dict[str, GatedLora]  # type: ignore[assignment]

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """As ``inf_lora``, and add the gates as a submodule of the first layer."""
        self.row_gates = RowGates()
        super().build(model, modules)
        self.prompts = Prompts(model, family_of_model(model).reader(model), self._read)
        self.size = self.prompts.embedding.embedding_dim
        name, first = next(iter(self.layers.items()))
        self.gates = PromptGates(self.size, first.like)
        first.add_module("prompt_gates", self.gates)
        self.gate_name = f"{name}.prompt_gates"
        self._prepared_key: Tensor | None = None
        self._features: list[Tensor] = []

    def _layer(self, base: nn.Module, **settings: Any) -> GatedLora:
        return GatedLora(base, **settings, prefix=self.prefix, gates=self.row_gates)

    def prepare_task(self, i: int, look: ExampleLosses) -> None:
        """Design A, and the initial key of the task's gate."""
        super().prepare_task(i, look)
        out_ND = gate_inputs(self._looked_at(), self._start()).out.double()
        key = leading(without(out_ND.T @ out_ND, self.gates.seen.key), 1)
        # The mean norm of a key drawn from [-1, 1]: it affects the optimizer's steps, not gates.
        self._prepared_key = (key * math.sqrt(self.size / 3)).float().cpu()

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """New terms, and a new gate whose trained change is zero."""
        key, self._prepared_key = self._prepared_key, None
        start = self._start() if key is None else self._start()._replace(key=key)
        self._start_from(start)
        self.gates.learning = True
        changes = {n: torch.zeros_like(w) for n, w in start._asdict().items()}
        return super().begin_task(i) | {f"{self.gate_name}.{n}": w for n, w in changes.items()}

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """As ``inf_lora``, and the gate and the directions that its inputs add."""
        gate = {"hidden": (HIDDEN, -1), "out": (-1, HIDDEN), "key": (1, -1)}
        seen = {f"{n}_subspace": (-1, HIDDEN if n == "out" else -1) for n in gate}
        return super().shapes(i, linears) | {
            f"{GATE}{n}": size for n, size in (gate | seen).items()
        }

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Append task i's terms and gate. InputError: the gate has another embedding size."""
        gate, seen = _parts(tensors)
        sizes = {gate.hidden.shape[1], len(gate.out), gate.key.shape[1]}
        if sizes | {seen.hidden.shape[1], seen.key.shape[1]} != {self.size}:
            raise InputError(
                f"the memory's gates do not fit a model whose input embedding has {self.size} "
                "elements"
            )
        super().load_task(i, tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """A, and the initial key of the task's gate."""
        return super().state_dict() | {f"{GATE}key": self.gates.start.key.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore A and the initial key."""
        super().load_state_dict(state)
        self._start_from(self.gates.start._replace(key=state[f"{GATE}key"]))

    def _start_from(self, weights: GateWeights) -> None:
        device = self.gates.key.device
        self.gates.start = GateWeights(*(weight.to(device) for weight in weights))

    def _start(self) -> GateWeights:
        """Initial weights of a new gate: the last gate's, or drawn at random for the first."""
        if self.gates.tasks:
            return GateWeights(*(w.cpu() for w in self.gates.tasks[-1]))
        generator = self.generator(self.num_tasks)  # no task has this number
        hidden, out = torch.empty(HIDDEN, self.size), torch.empty(self.size, HIDDEN)
        for weights in (hidden, out):
            nn.init.kaiming_uniform_(weights, a=math.sqrt(5), generator=generator)
        key = torch.empty(1, self.size).uniform_(-1, 1, generator=generator)
        return GateWeights(hidden, out, key)

    def _trained(self) -> dict[str, Tensor]:
        tensors = super()._trained()
        with whole([self.gates.hidden, self.gates.out, self.gates.key]), torch.no_grad():
            weights = self.gates.weights()
        return tensors | {f"{GATE}{n}": w.clone() for n, w in weights._asdict().items()}

    def _freeze(self, tensors: Mapping[str, Tensor]) -> None:
        super()._freeze(tensors)
        device = self.gates.key.device
        weights, _ = _parts(tensors)
        self.gates.tasks.append(GateWeights(*(w.to(device, torch.float32) for w in weights)))
        self.gates.learning = False

    def _directions(self, energy: float, look: ExampleLosses) -> dict[str, Tensor]:
        found = super()._directions(energy, look)
        inputs = gate_inputs(self._looked_at(), self._start())
        for name, x_ND, seen in zip(GateWeights._fields, inputs, self.gates.seen, strict=True):
            added = new_directions(x_ND.double().T @ x_ND.double(), seen, energy)
            found[f"{GATE}{name}_subspace"] = added.float()
        return found

    def _remember(self, tensors: Mapping[str, Tensor]) -> None:
        super()._remember(tensors)
        _, added = _parts(tensors)
        here = self.gates.key.device
        both = zip(self.gates.seen, added, strict=True)
        self.gates.seen = GateWeights(
            *(torch.cat([old.to(here), new.to(here, torch.float32)]) for old, new in both)
        )

    def _read(self, features_BD: Tensor) -> None:
        """Compute the gates of a forward pass from its prompts, before it reaches any layer."""
        self._features_now = features_BD
        self.row_gates.now_BT = self.gates(features_BD)

    def _seen(self) -> None:
        self._features.append(self._features_now.cpu())

    def _looked_at(self) -> Tensor:
        """Features (N, D) of the examined prompts, in their order, the same on all ranks.

        All ranks must call it together. Clears the collected features.
        """
        of_ranks, self._features = env.gather_objects(self._features), []
        turns = zip_longest(*of_ranks)
        rows = [one for turn in turns for one in turn if one is not None]
        return torch.cat([torch.zeros(0, self.size), *rows])


def _parts(tensors: Mapping[str, Tensor]) -> tuple[GateWeights, GateWeights]:
    """The gate's weights in a memory file, and the directions that its inputs add, if present."""
    names = GateWeights._fields
    none = torch.zeros(0, 0)
    return (
        GateWeights(*(tensors[f"{GATE}{n}"] for n in names)),
        GateWeights(*(tensors.get(f"{GATE}{n}_subspace", none) for n in names)),
    )
