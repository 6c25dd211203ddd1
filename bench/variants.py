"""One linear with a memory, in each of the compared implementations.

Every implementation gets the same tokens, the same frozen and active atoms and the same gradient of
its output. A LoRA has no routing, so its output differs for the same rows; each implementation
names the reference that it is checked against.

Shape letters: T tokens, N atoms, D inputs and outputs (square linears), K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import published
from bench.peft_lora import peft_leaves, peft_lora
from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Placement, Resident
from moram_dist.atoms.recall import recall_together
from moram_dist.atoms.routing import Routing
from moram_dist.comm.collectives import AtomGroup

CLEAR = 1e-6
"""Tokens are drawn again until their k-th relevance exceeds the next one by more than this: float32
cannot separate closer ones."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """The sizes of one linear and its memory."""

    num_tokens: int
    width: int
    num_atoms: int
    """Frozen and active together."""

    num_active: int = 16
    top_k: int = 16
    temperature: float = 0.03


@dataclass(frozen=True, kw_only=True)
class CaseInputs:
    """The inputs of all implementations."""

    case: Case
    x_TD: Tensor
    weight_DD: Tensor
    frozen: tuple[Tensor, Tensor]
    """Keys and values, (N, D) each."""

    active: tuple[Tensor, Tensor]
    upstream_TD: Tensor
    """Gradient of the output."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One implementation of the case, which can be called repeatedly."""

    forward: Callable[[], Tensor]
    wanted: Mapping[str, Tensor]
    """Tensors that get a gradient, by the names that references use."""

    held: tuple[Tensor, ...] = ()
    """Tensors that exist independently of a pass, so they do not count as saved by it: the bank,
    frozen weights."""

    kept_bytes: Callable[[], int] = lambda: 0
    """Bytes that an implementation keeps between passes, beyond weights and atoms."""


def draw(
    case: Case,
    seed: int = 0,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CaseInputs:
    """Normal tokens, atoms and gradients, by seed."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, case.width, generator=generator, device=device).to(dtype)

    num_frozen = case.num_atoms - case.num_active
    frozen = normal(num_frozen), normal(num_frozen)
    active = normal(case.num_active), normal(case.num_active)
    x_TD = torch.empty(case.num_tokens, case.width, device=device, dtype=dtype)
    unclear = torch.arange(case.num_tokens, device=device)
    while len(unclear):
        x_TD[unclear] = normal(len(unclear))
        score_TN = torch.cat(
            [
                x_TD[unclear].double() @ some.double().T
                for some in (*frozen[0].split(4096), active[0])
            ],
            -1,
        )
        unclear = unclear[_unclear(score_TN, case.top_k)]
    return CaseInputs(
        case=case,
        x_TD=x_TD.requires_grad_(),
        weight_DD=normal(case.width) / case.width**0.5,
        frozen=frozen,
        active=(active[0].requires_grad_(), active[1].requires_grad_()),
        upstream_TD=normal(case.num_tokens),
    )


def _unclear(score_TN: Tensor, top_k: int) -> Tensor:
    """Whether the k-th relevance is too close to the next one, (T,)."""
    if top_k >= score_TN.shape[1]:
        return torch.zeros(len(score_TN), dtype=torch.bool, device=score_TN.device)
    best_TK = score_TN.topk(top_k + 1).values
    return best_TK[:, -2] - best_TK[:, -1] <= CLEAR * score_TN.norm(dim=-1)


def published_eager(inputs: CaseInputs) -> Contender:
    """The published formulation, not compiled."""
    return _published(inputs, published.recall)


def published_compiled(inputs: CaseInputs) -> Contender:
    """The published formulation through torch.compile, for this size only."""
    torch.compiler.reset()  # it refuses to compile one function for more than a few sizes
    return _published(inputs, torch.compile(published.recall, dynamic=False, fullgraph=True))


def _published(inputs: CaseInputs, recall: Callable[..., Tensor]) -> Contender:
    case = inputs.case

    def forward() -> Tensor:
        return recall(
            inputs.x_TD,
            inputs.frozen,
            inputs.active,
            top_k=case.top_k,
            temperature=case.temperature,
        )

    return Contender(
        forward=forward, wanted=_leaves(inputs), held=(*inputs.frozen, inputs.weight_DD)
    )


def ours(inputs: CaseInputs) -> Contender:
    """Frozen atoms in a bank on one rank, active ones outside it, as in training."""
    return _ours(inputs, inputs.frozen, inputs.active)


def ours_learned(inputs: CaseInputs) -> Contender:
    """All atoms frozen and in the bank, as when a learned memory answers."""
    keys, values = (torch.cat(pair).detach() for pair in zip(*_atoms(inputs), strict=True))
    return _ours(inputs, (keys, values), (keys[:0], values[:0]))


def _ours(
    inputs: CaseInputs, frozen: tuple[Tensor, Tensor], active: tuple[Tensor, Tensor]
) -> Contender:
    case = inputs.case
    bank = Bank([(case.width, case.width)], AtomGroup(), like=frozen[0], num_active=len(active[0]))
    bank.grow([frozen])
    placement = Resident(bank.group)
    routing = Routing(top_k=case.top_k, temperature=case.temperature)

    def forward() -> Tensor:
        keys, values = active
        return recall_together(bank, placement, routing, [inputs.x_TD], [keys], [values])[0]

    def kept_bytes() -> int:
        return kept_of(placement, bank, (0,), case.top_k)

    return Contender(
        forward=forward,
        wanted=_leaves(inputs),
        held=(*bank.buffers(), inputs.weight_DD),
        kept_bytes=kept_bytes,
    )


def kept_of(placement: Placement, bank: Bank, linears: Sequence[int], num_kept: int) -> int:
    """Make the tensors that are made of frozen atoms once per task. Returns their bytes."""
    images = placement.images(bank, linears) or []
    made = [*(placement.grams(bank, linears, num_kept) or []), *(image.key_NF for image in images)]
    return sum(tensor.nbytes for tensor in made)


def bare_linear(inputs: CaseInputs) -> Contender:
    """The frozen linear alone; no adapted linear can be faster."""
    return Contender(
        forward=lambda: F.linear(inputs.x_TD, inputs.weight_DD),
        wanted={"x": inputs.x_TD},
        held=(inputs.weight_DD,),
    )


def peft_all(inputs: CaseInputs) -> Contender:
    """PEFT's LoRA of all N rows, every row trained, on a base without cost."""
    return _peft(inputs, _Nothing(inputs.case.width), apart=False)


def peft_active(inputs: CaseInputs) -> Contender:
    """PEFT's LoRA as two adapters that are active together, the larger one frozen."""
    return _peft(inputs, _Nothing(inputs.case.width), apart=True)


def peft_active_layer(inputs: CaseInputs) -> Contender:
    """The same on the frozen linear."""
    return _peft(inputs, _linear(inputs.weight_DD), apart=True)


class _Nothing(nn.Linear):
    """A linear whose output is 0 at no cost, so that PEFT's addition can be timed alone."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, bias=False, device="meta")
        # PEFT puts its rows on the device of this.
        self.weight = nn.Parameter(torch.zeros(()).expand(width, width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(*x.shape[:-1], self.out_features)


def _linear(weight_DD: Tensor) -> nn.Linear:
    width = len(weight_DD)
    linear = nn.Linear(width, width, bias=False, device="meta")
    linear.weight = nn.Parameter(weight_DD, requires_grad=False)
    return linear


def _peft(inputs: CaseInputs, base: nn.Linear, *, apart: bool) -> Contender:
    model = nn.ModuleDict({"linear": base})
    layer = peft_lora(model, {"linear": (inputs.frozen, inputs.active)}, apart=apart)["linear"]
    return Contender(
        forward=lambda: layer(inputs.x_TD),
        wanted={"x": inputs.x_TD, **peft_leaves(layer)},
        held=(*layer.parameters(), inputs.weight_DD),
    )


def on_linear(make: Callable[[CaseInputs], Contender]) -> Callable[[CaseInputs], Contender]:
    """The layer: the frozen linear's output plus an implementation's update."""

    def layer(inputs: CaseInputs) -> Contender:
        way = make(inputs)

        def forward() -> Tensor:
            out = F.linear(inputs.x_TD, inputs.weight_DD)
            out += way.forward()
            return out

        return replace(way, forward=forward)

    return layer


def _atoms(inputs: CaseInputs) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return inputs.frozen, inputs.active


def _leaves(inputs: CaseInputs) -> dict[str, Tensor]:
    keys, values = inputs.active
    return {"x": inputs.x_TD, "active keys": keys, "active values": values}
