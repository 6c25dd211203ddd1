"""Linear layers with a memory: frozen atoms in a bank, the current task's atoms as parameters.

All tasks train the same parameters as active atoms, so one engine serves the whole sequence.
Linears that share an input (q, k, v) query their memory together: one collective serves them all.

Shape letters: R active atoms, D inputs, E outputs, K directions of older tasks' inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.adapters.directions import off
from moram_dist.adapters.dropout import TokenDropout, TokenMask
from moram_dist.adapters.prefix import Prefix
from moram_dist.adapters.routed import Routed, Take, Weights
from moram_dist.atoms.bank import Atoms, Bank
from moram_dist.atoms.placer import Placer
from moram_dist.atoms.recall import recall_at_once, recall_together
from moram_dist.atoms.routing import Mixture, Routing
from moram_dist.atoms.shard import each

SHARE_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q", "k", "v"),  # T5, like the next line
    ("wi_0", "wi_1"),
)
"""Last names of linears that most models call with the same tensor."""

CROSS_ATTENTION = "EncDecAttention"
"""T5's decoder module in which k and v read the encoder's output, but q does not."""


class MemoryLinear(AdaptedLinear, Routed):
    """``base(x) + recall(dropout(x))`` over frozen and active atoms together.

    Source: Lu et al. 2026, arXiv:2506.21035.
    """

    def __init__(self, base: nn.Module, *, dropout: TokenDropout | nn.Dropout) -> None:
        """Call ``give_memory`` before the first use: it supplies the atoms."""
        super().__init__(base)
        self.dropout = dropout
        self.asked: SharedInputCache

    def update(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E)."""
        return self.asked.answer(self, x)

    @property
    def task_ends(self) -> Sequence[int]:
        """Frozen atoms after each number of tasks."""
        return self.asked.memory.ends

    def watch(self, take: Take | None) -> None:
        """See ``Routed``."""
        self.asked.memory.watch(self.asked.layers.index(self), take)

    def whole_keys(self) -> Tensor:
        """Keys of all frozen atoms, from all ranks."""
        return self.asked.memory.bank.gathered()[self.asked.layers.index(self)][0]


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Settings that all linears of a memory share."""

    routing: Routing
    num_active: int
    """R: atoms that a task adds to each linear."""

    scale: float
    """Factor applied to active values; freezing folds it in."""

    prefix: Prefix = field(default_factory=Prefix)
    """How many tasks answer each row."""


class Memory(nn.Module):
    """The atoms of linears that share an input: a bank of frozen ones, parameters for active ones.

    Parameters are its direct members, so that ZeRO-3 gathers them when it is called.
    """

    def __init__(
        self, layers: Sequence[MemoryLinear], settings: MemorySettings, placer: Placer
    ) -> None:
        super().__init__()
        self.settings = settings
        self._all_speak = replace(settings.routing, threshold=0.0)
        self.placer = placer
        self.learning = False
        """Whether active atoms contribute: true from the start of a task to its end."""
        self.ends = [0]
        """``ends[n]``: frozen atoms after n tasks."""
        self.reads_source = False
        """Whether the linears read the encoder's tokens, in a model whose decoder has others."""
        self.dropouts = tuple(layer.dropout for layer in layers)  # owned by the layers
        self.directions_KD: Tensor | None = None
        """Orthonormal rows to which active keys are kept orthogonal; None: no constraint."""
        self._watched: dict[int, Take] = {}
        """Linear to who gets its weights."""
        shapes = [(layer.in_features, layer.out_features) for layer in layers]
        like = layers[0].like
        self.bank = Bank(shapes, placer.group, like=like, num_active=settings.num_active)
        for i, sizes in enumerate(shapes):
            for kind, size in zip(("keys", "values"), sizes, strict=True):
                atoms = nn.Parameter(like.new_zeros(settings.num_active, size))
                self.register_parameter(f"{kind}_{i}", atoms)

    def active(self, i: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Keys (R, D) and values (R, E) that linear ``i`` trains."""
        return getattr(self, f"keys_{i}"), getattr(self, f"values_{i}")

    def stored(self, i: int) -> Atoms:
        """Active atoms of linear ``i`` as used and later frozen: with the scale folded in."""
        keys_RD, values_RE = self.active(i)
        return off(keys_RD, self.directions_KD), values_RE * self.settings.scale

    def grow(self, atoms: Sequence[Atoms]) -> None:
        """Append frozen atoms, one pair per linear. All ranks must call it together."""
        self.placer.growing()
        self.bank.grow(atoms)
        self.ends.append(self.bank.num_atoms)

    def watch(self, i: int, take: Take | None) -> None:
        """``Routed.watch`` of linear ``i``."""
        if take is None:
            self._watched.pop(i, None)
        else:
            self._watched[i] = take

    def forward(self, x: Tensor, members: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Updates of some of the linears for their input ``x``, (..., D) to (..., E) each."""
        return self.settings.prefix.each(x, lambda tasks: self._recall(x, members, tasks))

    def _recall(self, x: Tensor, members: tuple[int, ...], tasks: int | None) -> tuple[Tensor, ...]:
        """``tasks``: answer with the first tasks only; None: all, and the one being learned."""
        learns = self.learning and tasks is None
        placement = self.placer.of_source if self.reads_source else self.placer.now
        num_frozen = None if tasks is None else self.ends[tasks]
        if not (learns or self.training or self._watched or torch.is_grad_enabled()):
            asked = self.bank.num_atoms if num_frozen is None else num_frozen
            routing = self.settings.routing
            found = recall_at_once(self.bank, placement, routing, x, members, asked)
            if found is not None:
                return tuple(found)
        active = [self.stored(i) for i in members] if learns else []
        inputs, masks = self._dropped(x, members)
        return tuple(
            recall_together(
                self.bank,
                placement,
                self._all_speak if self.training else self.settings.routing,
                inputs,
                [keys for keys, _ in active],
                [values for _, values in active],
                members,
                num_frozen,
                masks,
                partial(self._show, members) if self._watched else None,
            )
        )

    def _show(self, members: tuple[int, ...], mix: Mixture) -> None:
        fields = (each(t, len(members)) for t in (mix.index_TK, mix.weight_TK, mix.spoken_TK))
        for i, *weights in zip(members, *fields, strict=True):
            if i in self._watched:
                self._watched[i](Weights(*weights))

    def _dropped(
        self, x: Tensor, members: Sequence[int]
    ) -> tuple[list[Tensor], list[TokenMask | None]]:
        """The input of each linear, and what is still to be dropped of it.

        The very same tensor where possible, not an alias as from a module that ZeRO-3 watches:
        shared inputs must be seen to be the same.
        """
        dropouts = [self.dropouts[i] for i in members]
        if not any(dropout.training and dropout.p > 0 for dropout in dropouts):
            return [x] * len(members), []
        rows_TD = x.reshape(-1, x.shape[-1])
        masks = [d.mask(rows_TD) if isinstance(d, TokenDropout) else None for d in dropouts]
        pairs = zip(dropouts, masks, strict=True)
        return [dropout(x) if mask is None else x for dropout, mask in pairs], masks


class SharedInputCache:
    """Evaluates linears that share an input once: the first call computes all outputs.

    Models call them in any order: CLIP declares k, v, q and calls q first. If one is called with
    another tensor than the first one, it is evaluated alone, and so are all of them from then on.
    """

    def __init__(self, layers: Sequence[MemoryLinear], memory: Memory) -> None:
        self.layers = tuple(layers)
        self.memory = memory
        self._all = tuple(range(len(layers)))
        self._apart = len(layers) == 1
        self._x: Tensor | None = None
        self._was: tuple = ()
        """Identity of ``_x`` at the first call. ``_x`` is kept so that none reuses its address."""
        self._waiting: dict[MemoryLinear, Tensor] = {}

    def answer(self, layer: MemoryLinear, x: Tensor) -> Tensor:
        """The update to add to the output of ``layer`` for its input ``x``."""
        if not self._apart and layer not in self._waiting:  # a new input, or a pass broke off
            found = self.memory(x, self._all)
            self._x, self._was = x, _identity(x)
            self._waiting = dict(zip(self.layers, found, strict=True))
        elif self._apart or _identity(x) != self._was:
            self._apart, self._waiting, self._x = True, {}, None
            return self.memory(x, (self.layers.index(layer),))[0]
        mine = self._waiting.pop(layer)
        if not self._waiting:
            self._x = None
        return mine


def _identity(x: Tensor) -> tuple:
    """A key that aliases of a tensor share: ZeRO-3 passes an alias of the input to each module."""
    return x.data_ptr(), x.shape, x.stride(), None if x.is_inference() else x._version


def by_input(names: Iterable[str]) -> list[list[str]]:
    """Full names of linears, in the model's order, grouped by the input that they share."""

    def key(name: str) -> tuple[str, object]:
        parent, _, last = name.rpartition(".")
        if last == "q" and _is_cross(parent):
            return parent, last
        return parent, next((group for group in SHARE_INPUT if last in group), last)

    return [list(group) for _, group in groupby(names, key)]


def reads_source(name: str) -> bool:
    """Whether a linear of T5, given its full name, reads the encoder's tokens."""
    parent, _, last = name.rpartition(".")
    return name.startswith("encoder.") or (_is_cross(parent) and last in ("k", "v"))


def _is_cross(attention: str) -> bool:
    return attention.rpartition(".")[2] == CROSS_ATTENTION


def give_memory(
    layers: Mapping[str, MemoryLinear], settings: MemorySettings, placer: Placer
) -> dict[tuple[str, ...], Memory]:
    """Attach memories to linears; returns the full names that share a memory -> that memory.

    The memory becomes the submodule ``memory`` of the first of them.
    """
    out = {}
    for names in by_input(layers):
        group = [layers[name] for name in names]
        memory = out[tuple(names)] = Memory(group, settings, placer)
        group[0].add_module("memory", memory)
        asked = SharedInputCache(group, memory)
        for layer in group:
            layer.asked = asked
    placer.plan(
        [memory.bank for memory in out.values()],
        settings.num_active * sum(memory.bank.atom_bytes for memory in out.values()),
    )
    return out
