"""Level ``stack``: four LLaMA decoder blocks with adapted q, k, v and o, on packed tokens.

Several texts form one row, and attention keeps them apart, as when a step's micro-batches are
packed. The bare stack, frozen and unadapted, is the lower limit. The input needs a gradient, as if
there were more blocks below.

Shape letters: T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from bench.contest import (
    LINEAR,
    OURS,
    PEFT_ACTIVE,
    PEFT_ALL,
    PUBLISHED,
    Entry,
    Settings,
    contest,
)
from bench.measure import one_pass
from bench.models import Atoms, draw_atoms, put_ours, put_plain_lora, put_published
from bench.peft_lora import peft_leaves, peft_lora
from bench.results import Measurement
from bench.variants import Contender, kept_of
from moram_dist.methods.moram import MoramConfig

BLOCKS = 4
ATOMS, ACTIVE = 240, 16
METHOD = MoramConfig(
    method="moram",
    atoms_per_task=ACTIVE,
    alpha=ACTIVE,
    top_k=16,
    temperature=0.03,
    threshold=0.0,
    dropout=0.0,
)

TOLERANCE = 1e-3
"""Relative to float64. Each block computes the next block's tokens, so tokens whose k-th and next
atom are too close cannot be drawn again here; swapping the two is a larger error than rounding."""


def run(settings: Settings) -> Iterator[list[Measurement]]:
    """Measure one size."""
    width, text, texts = (256, 64, 4) if settings.quick else (512, 256, 8)
    yield one_case(width, text, texts, settings)


def one_case(width: int, text: int, texts: int, settings: Settings) -> list[Measurement]:
    """All implementations on ``texts`` texts of ``text`` tokens."""
    base = decoder(width)
    atoms = draw_atoms(base, METHOD, ATOMS - ACTIVE, ACTIVE)
    generator = torch.Generator().manual_seed(0)
    x_1TD = torch.randn(1, texts * text, width, generator=generator).requires_grad_()
    upstream_1TD = torch.randn(x_1TD.shape, generator=generator)
    shape = (x_1TD, text)
    memory = answers(published(deepcopy(base), atoms, *shape, double=True), upstream_1TD)
    lora = answers(plain_lora(deepcopy(base), atoms, *shape), upstream_1TD)
    bare = answers(unadapted(deepcopy(base), *shape, double=True), upstream_1TD)
    lora |= of_peft(lora)
    entries = {
        LINEAR: Entry(make=lambda: unadapted(deepcopy(base), *shape), reference=bare),
        PUBLISHED: Entry(make=lambda: published(deepcopy(base), atoms, *shape), reference=memory),
        PEFT_ALL: Entry(make=lambda: peft(deepcopy(base), atoms, *shape, False), reference=lora),
        PEFT_ACTIVE: Entry(make=lambda: peft(deepcopy(base), atoms, *shape, True), reference=lora),
        OURS: Entry(make=lambda: ours(deepcopy(base), atoms, *shape), reference=memory),
    }
    case = {"blocks": BLOCKS, "tokens": texts * text, "width": width, "atoms": ATOMS}
    return contest(
        "stack",
        case,
        entries,
        upstream_1TD,
        settings,
        top_k=METHOD.top_k,
        tolerance=TOLERANCE,
    )


def decoder(width: int) -> nn.Module:
    """The blocks, with random weights."""
    return llama(LlamaModel, width, vocab_size=8, use_cache=False)


def llama(kind: type[nn.Module], width: int, **more: Any) -> Any:
    """A frozen LLaMA of four blocks with random weights; ``more``: of its configuration."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=BLOCKS,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        **more,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).requires_grad_(False)


def forward_of(model: nn.Module, x_1TD: Tensor, text: int) -> Callable[[], Tensor]:
    """The forward pass of packed texts: each token attends to its own text up to itself."""
    places_T = torch.arange(x_1TD.shape[1], device=x_1TD.device)
    sees_TT = (places_T[:, None] >= places_T) & (places_T[:, None] // text == places_T // text)

    def forward() -> Tensor:
        found = model(
            inputs_embeds=x_1TD,
            attention_mask=sees_TT[None, None],
            position_ids=places_T[None] % text,
        )
        return found.last_hidden_state

    return forward


def way_of(model: nn.Module, leaves: dict[str, Tensor], x_1TD: Tensor, text: int) -> Contender:
    """A model that is ready to be called."""
    return Contender(
        forward=forward_of(model, x_1TD, text),
        wanted={"x": x_1TD, **leaves},
        held=(*model.parameters(), *model.buffers()),
    )


def unadapted(model: nn.Module, x_1TD: Tensor, text: int, *, double: bool = False) -> Contender:
    """The frozen blocks alone."""
    model, x_1TD = (model.double(), in_double(x_1TD)) if double else (model, x_1TD)
    return way_of(model, {}, x_1TD, text)


def published(
    model: nn.Module, atoms: Atoms, x_1TD: Tensor, text: int, *, double: bool = False
) -> Contender:
    """The published formulation in each adapted linear."""
    leaves = put_published(model, atoms, METHOD)
    model, x_1TD = (model.double(), in_double(x_1TD)) if double else (model, x_1TD)
    return way_of(model, leaves, x_1TD, text)


def ours(model: nn.Module, atoms: Atoms, x_1TD: Tensor, text: int) -> Contender:
    """The method's layers: q, k and v share one query of the memory."""
    memories, leaves = put_ours(model, atoms, METHOD)

    def kept_bytes() -> int:
        return sum(
            kept_of(
                memory.placer.now,
                memory.bank,
                range(len(memory.bank.shapes)),
                memory.settings.routing.top_k,
            )
            for memory in memories.values()
        )

    return replace(way_of(model.train(), leaves, x_1TD, text), kept_bytes=kept_bytes)


def peft(model: nn.Module, atoms: Atoms, x_1TD: Tensor, text: int, apart: bool) -> Contender:
    """PEFT's LoRA in each adapted linear."""
    leaves: dict[str, Tensor] = {}
    for name, layer in peft_lora(model, atoms, apart=apart).items():
        leaves |= peft_leaves(layer, f"{name} ")
    return way_of(model, leaves, x_1TD, text)


def plain_lora(model: nn.Module, atoms: Atoms, x_1TD: Tensor, text: int) -> Contender:
    """Its reference, in float64."""
    layers = put_plain_lora(model, atoms)
    model.double()
    leaves: dict[str, Tensor] = {}
    for name, layer in layers.items():
        leaves |= {f"{name} all keys": layer.keys, f"{name} all values": layer.values}
    return way_of(model, leaves, in_double(x_1TD), text)


def of_peft(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """A reference's gradients in the form of PEFT's layers: B transposed, or active rows only."""
    out: dict[str, Tensor] = {}
    for name, gradient in found.items():
        linear, _, what = name.rpartition(" all ")
        if what == "keys":
            out[f"{linear} active keys"] = gradient[-ACTIVE:]
        elif what == "values":
            out[f"{linear} all values^T"] = gradient.T
            out[f"{linear} active values^T"] = gradient[-ACTIVE:].T
    return out


def in_double(x_1TD: Tensor) -> Tensor:
    """The input of a reference."""
    return x_1TD.detach().double().requires_grad_()


def answers(way: Contender, upstream: Tensor) -> dict[str, Tensor]:
    """Output and gradients of a reference."""
    y, *gradients = one_pass(way, upstream.double())
    return {"y": y.detach(), **dict(zip(way.wanted, gradients, strict=True))}
