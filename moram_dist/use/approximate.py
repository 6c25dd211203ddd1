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
from moram_dist.use.compare import AnswerMeans, SeenAnswer, replaced, see_answers
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
            # As in a recall: bf16 scores would change the chosen atoms of many tokens.
            precise = torch.promote_types(x.dtype, torch.float32)
            keys_ND, values_NE = (part.to(x.device, precise) for part in self.atoms[name])
            score_TN = x.reshape(-1, x.shape[-1]).to(precise) @ keys_ND.T
            fits[name].add(score_TN, mixture_weights(score_TN, self.routing), values_NE)

        with self._looking(look):
            for _ in self._see(task, examples):
                pass
        terms = {name: fit.terms() for name, fit in fits.items()}
        return Lora(terms=terms, alpha=float(len(next(iter(terms.values()))[0])))

    def divergences(
        self, task: Task, examples: Sequence[Example], lora: Lora
    ) -> tuple[float, float]:
        """Mean KL of the memory from the LoRA and from the bare base, per answer token, in nats."""
        as_lora, of_base = AnswerMeans(), AnswerMeans()
        for example in examples:
            (routed,) = self._see(task, [example])
            with replaced(self.model, lora):
                (its,) = self._see(task, [example])
            as_lora.add(routed, its)
            with bare(self.model):
                (its,) = self._see(task, [example])
            of_base.add(routed, its)
        return as_lora.divergence, of_base.divergence

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

    def add(self, score_TN: Tensor, weight_TN: Tensor, values_NE: Tensor) -> None:
        """Count tokens by their scores and mixture weights; sums stay on the device of these."""
        score_TN, values_NE = score_TN.double(), values_NE.double()
        alike_NN = values_NE @ values_NE.T
        # What the memory adds to a token, times each value.
        target_TN = (weight_TN.double() * score_TN) @ alike_NN
        device = score_TN.device
        self.products_NN = self.products_NN.to(device) + (score_TN.T @ score_TN) * alike_NN
        self.targets_N = self.targets_N.to(device) + (score_TN * target_TN).sum(0)

    def terms(self) -> Terms:
        """Keys, and values times their weight."""
        products_NN = self.products_NN.cpu()
        ridge = RIDGE * products_NN.diagonal().mean() + torch.finfo(torch.float64).tiny
        eye = torch.eye(len(self.keys_ND), dtype=torch.float64)
        weight_N = torch.linalg.solve(products_NN + ridge * eye, self.targets_N.cpu())
        return self.keys_ND, self.values_NE * weight_N[:, None].to(self.values_NE)
