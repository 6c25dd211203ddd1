"""A linear layer with a memory: frozen atoms in a bank, the current task's atoms as parameters.

Active atoms are parameters that are reused from task to task, so one engine serves the whole
sequence. Linears that share an input (q, k, v) share a bank and are asked together: one collective
serves them all.

Shape letters: R active atoms, D inputs, E outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.atoms.bank import Atoms, Bank
from moram_dist.atoms.placer import Placer
from moram_dist.atoms.recall import recall_together
from moram_dist.atoms.routing import Routing
from moram_dist.comm.zero3 import also_needs

SHARE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Last names of linears that most models call with one and the same tensor."""


class MemoryLinear(AdaptedLinear):
    """``base(x) + recall(dropout(x))`` over frozen and active atoms together.

    Source: Lu et al. 2026, arXiv:2506.21035.
    """

    together: Together

    def __init__(
        self,
        base: nn.Linear,
        *,
        routing: Routing,
        num_active: int,
        scale: float,
        dropout: nn.Module,
    ) -> None:
        """To be made part of a ``Together`` before it is used."""
        super().__init__(base)
        self.routing = routing
        self.scale = scale
        self.dropout = dropout
        self.learning = False
        """Whether active atoms take part. They do from a task's beginning to its end."""
        like = base.weight
        self.active_keys_RD = nn.Parameter(like.new_zeros(num_active, base.in_features))
        self.active_values_RE = nn.Parameter(like.new_zeros(num_active, base.out_features))

    def stored_values(self, active_values_RE: Tensor) -> Tensor:
        """Active values as they are frozen: with the scale alpha / R folded in."""
        return active_values_RE * self.scale

    def active(self) -> Atoms:
        """Active atoms as they answer; none unless learning."""
        if self.learning:
            return self.active_keys_RD, self.stored_values(self.active_values_RE)
        like = self.base.weight
        return like.new_empty(0, self.in_features), like.new_empty(0, self.out_features)

    def update(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E)."""
        return self.together.update(self, x)


class Together(nn.Module):
    """Linears that are asked together, and the bank of their frozen atoms.

    The first of them to be called asks for all; the others find their answers waiting. One that
    is called with another tensor asks for itself alone, and from then on all do.
    """

    def __init__(self, layers: Sequence[MemoryLinear], placer: Placer) -> None:
        super().__init__()
        self.layers = tuple(layers)  # a tuple: they are no children of this module
        self.placer = placer
        first = layers[0]
        self.bank = Bank(
            [(layer.in_features, layer.out_features) for layer in layers],
            placer.group,
            like=first.base.weight,
        )
        self.apart = len(layers) == 1
        self._asked: Tensor | None = None
        self._waiting: dict[MemoryLinear, Tensor] = {}
        first.together = self  # its child: ``model.to`` finds the bank there
        for layer in layers[1:]:
            layer.__dict__["together"] = self

    def prepare(self) -> None:
        """To be called once the engine is there: whoever asks for all needs all active atoms."""
        first, *others = self.layers
        also_needs(first, [p for layer in others for p in layer.parameters(recurse=False)])

    def grow(self, atoms: Sequence[Atoms]) -> None:
        """Append frozen atoms, values as stored, one pair a linear. All ranks call together."""
        self.placer.growing()
        self.bank.grow(atoms)

    def update(self, layer: MemoryLinear, x: Tensor) -> Tensor:
        """What is added to the output of ``layer`` for its input ``x``."""
        if self.apart:
            return self._ask([layer], x)[0]
        if layer in self._waiting and _same(x, self._asked):
            answer = self._waiting.pop(layer)
        elif layer is self.layers[0]:
            self._asked = x
            answer, *others = self._ask(self.layers, x)
            self._waiting = dict(zip(self.layers[1:], others, strict=True))
        else:
            self.apart = True
            answer = self._ask([layer], x)[0]
        if not self._waiting or self.apart:
            self._asked, self._waiting = None, {}
        return answer

    def _ask(self, layers: Sequence[MemoryLinear], x: Tensor) -> list[Tensor]:
        keys, values = zip(*(layer.active() for layer in layers), strict=True)
        routing = layers[0].routing
        return recall_together(
            self.bank,
            self.placer.now,
            replace(routing, threshold=0.0) if self.training else routing,
            [layer.dropout(x) for layer in layers],
            keys,
            values,
            members=[self.layers.index(layer) for layer in layers],
        )


def _same(x: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are one: ZeRO-3 gives each module an alias of its input."""
    return (
        other is not None
        and x.data_ptr() == other.data_ptr()
        and x.shape == other.shape
        and x.stride() == other.stride()
        and (x.is_inference() or x._version == other._version)
    )


def share_inputs(names: Iterable[str]) -> list[list[str]]:
    """Full names of linears, in the model's order, grouped by the input they share."""

    def key(name: str) -> tuple[str, object]:
        parent, _, last = name.rpartition(".")
        return parent, next((group for group in SHARE_INPUT if last in group), last)

    return [list(group) for _, group in groupby(names, key)]


def put_together(layers: Mapping[str, MemoryLinear], placer: Placer) -> list[Together]:
    """Give each linear its bank; the banks in the model's order."""
    return [Together([layers[name] for name in group], placer) for group in share_inputs(layers)]
