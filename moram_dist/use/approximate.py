"""A MoRAM memory as a LoRA for one task: an approximation, since atoms weigh each token anew.

Each atom up to the task's gets one weight for all tokens. The weights of a linear are the least-
squares fit to what the memory adds on the tokens of the task's examples; docs/using.md compares
them with simpler ones. An atom's key and weighted value are a rank-1 term.

Shape letters: T tokens, N atoms, K atoms kept per token, D inputs, E outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear, bare
from moram_dist.adapters.lora import Terms
from moram_dist.atoms.routing import Routing, candidates, mixture
from moram_dist.families import TextFamily
from moram_dist.tasks.task import Example, Task
from moram_dist.use.compare import SeenAnswer, divergence, replaced, see_answers
from moram_dist.use.lora import Lora

RIDGE = 1e-6
"""As a multiple of the mean of the normal equations' diagonal: atoms may be alike."""


class TaskAsLora:
    """Fits a LoRA to a model that has a MoRAM memory, and compares the two."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        family: TextFamily,
        routing: Routing,
        atoms: Mapping[str, Terms],
    ) -> None:
        """``atoms``: keys and values of the memory of ``model``, by linear."""
        self.model = model
        self.tokenizer = tokenizer
        self.family = family
        self.routing = routing
        self.atoms = atoms
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, AdaptedLinear)
        }

    @torch.no_grad()
    def measure(self, task: Task, examples: Sequence[Example]) -> Lora:
        """The LoRA that does on these examples of the task what the memory does."""
        fits = {name: _Fit(*own) for name, own in self.atoms.items()}

        def look(name: str, x: Tensor) -> None:
            x_TD = x.reshape(-1, x.shape[-1])
            keys_ND, values_NE = (part.to(x) for part in self.atoms[name])
            score_TN = x_TD @ keys_ND.T
            update_TE = (
                mixture_weights(score_TN.float(), self.routing).to(x) * score_TN
            ) @ values_NE
            fits[name].add(x_TD, update_TE)

        with self._looking(look):
            for _ in self._see(task, examples):
                pass
        terms = {name: fit.terms() for name, fit in fits.items()}
        return Lora(terms=terms, alpha=float(len(next(iter(terms.values()))[0])))

    def divergences(
        self, task: Task, examples: Sequence[Example], lora: Lora
    ) -> tuple[float, float]:
        """Mean KL of the memory from the LoRA and from the bare base, per answer token, in nats."""
        routed = [*self._see(task, examples)]
        with replaced(self.model, lora):
            as_lora = [*self._see(task, examples)]
        with bare(self.model):
            of_base = [*self._see(task, examples)]
        return divergence(routed, as_lora), divergence(routed, of_base)

    def _see(self, task: Task, examples: Sequence[Example]) -> Iterator[SeenAnswer]:
        return see_answers(self.model, self.tokenizer, self.family, task, examples)

    @contextmanager
    def _looking(self, look: Callable[[str, Tensor], None]) -> Iterator[None]:
        handles = [
            layer.register_forward_pre_hook(lambda module, inputs, name=name: look(name, inputs[0]))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def mixture_weights(score_TN: Tensor, routing: Routing) -> Tensor:
    """Mixture weights of all atoms as the memory computes them, 0 for silenced ones: (T, N)."""
    num_atoms = score_TN.shape[1]
    kept = min(routing.top_k, num_atoms)
    found = candidates(score_TN, num_kept=kept, shard=0, num_shards=1, num_atoms=num_atoms)
    mix = mixture([found], num_atoms=num_atoms, routing=routing)
    return torch.zeros_like(score_TN).scatter_(1, mix.index_TK.long(), mix.spoken_TK)


class _Fit:
    """The weights c that minimise ``sum_t |update_t - sum_n c_n (k_n x_t) v_n|^2``, (N,)."""

    def __init__(self, keys_ND: Tensor, values_NE: Tensor) -> None:
        self.keys_ND = keys_ND
        self.values_NE = values_NE
        self.products_NN = torch.zeros(len(keys_ND), len(keys_ND), dtype=torch.float64)
        self.targets_N = torch.zeros(len(keys_ND), dtype=torch.float64)

    def add(self, x_TD: Tensor, update_TE: Tensor) -> None:
        """Count tokens and what the memory adds to them."""
        x_TD, update_TE = x_TD.cpu().double(), update_TE.cpu().double()
        score_TN, values_NE = x_TD @ self.keys_ND.double().T, self.values_NE.double()
        self.products_NN += (score_TN.T @ score_TN) * (values_NE @ values_NE.T)
        self.targets_N += (score_TN * (update_TE @ values_NE.T)).sum(0)

    def terms(self) -> Terms:
        """Keys, and values times their weight."""
        ridge = RIDGE * self.products_NN.diagonal().mean() + torch.finfo(torch.float64).tiny
        eye = torch.eye(len(self.keys_ND), dtype=torch.float64)
        weight_N = torch.linalg.solve(self.products_NN + ridge * eye, self.targets_N)
        return self.keys_ND, self.values_NE * weight_N[:, None].to(self.values_NE)
