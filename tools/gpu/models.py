"""Whole models with random weights and atoms, as bare, with PEFT's LoRA and with a memory.

They share one set of frozen weights, so that three of 7 B parameters fit beside each other.
"""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench.contest import OURS
from bench.models import Atoms, draw_atoms, put_ours, put_published
from bench.peft_lora import peft_lora
from moram_dist.methods.moram import MoramConfig
from moram_dist.models.attention import leave_out_cudnn
from tools.gpu.record import How

BARE, PEFT = "bare", "PEFT LoRA"

ATOMS, ACTIVE = 240, 16
"""Of a linear: in all, and of them those that a task trains."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a LLaMA."""

    width: int
    inner: int
    layers: int
    heads: int
    vocabulary: int


LLAMA_7B = Shape(width=4096, inner=11008, layers=32, heads=32, vocabulary=32000)
SMALL = Shape(width=64, inner=176, layers=2, heads=2, vocabulary=256)


def shape_for(how: How, *, layers: int = LLAMA_7B.layers) -> Shape:
    """LLaMA-2-7B's, with as many layers; on a CPU a small one."""
    return SMALL if how.tiny else replace(LLAMA_7B, layers=layers)


def method_config(dropout: float = 0.0) -> MoramConfig:
    """Recall over q, k, v and o, with the atoms of this module."""
    return MoramConfig(
        method="moram",
        atoms_per_task=ACTIVE,
        alpha=ACTIVE,
        top_k=16,
        temperature=0.03,
        threshold=0.0,
        dropout=dropout,
    )


def base_of(shape: Shape, how: How, dtype: torch.dtype | None = None) -> LlamaForCausalLM:
    """Frozen random weights, in bf16 on a GPU and in float32 on a CPU unless ``dtype`` is given."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    leave_out_cudnn()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or (torch.bfloat16 if how.device == "cuda" else torch.float32))
    try:
        torch.manual_seed(0)
        with torch.device(how.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def copy_of(model: nn.Module) -> Any:
    """A copy that shares its weights, so that it can be adapted apart."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return deepcopy(model, shared)


def atoms_of(model: nn.Module) -> Atoms:
    """Random atoms for every linear that is adapted."""
    return draw_atoms(model, method_config(), ATOMS - ACTIVE, ACTIVE)


def has_peft() -> bool:
    """Whether PEFT is installed."""
    return importlib.util.find_spec("peft") is not None


def left_out() -> dict[str, str]:
    """What to record where PEFT is not installed."""
    return {} if has_peft() else {"left_out": f"{PEFT}: peft is not installed"}


def answering(model: nn.Module, atoms: Atoms) -> dict[str, Any]:
    """Name -> a model that answers with all atoms. PEFT's rows are not merged into the weights.

    Merged, they are the bare model.
    """
    ways = {BARE: copy_of(model), OURS: copy_of(model)}
    put_learned(ways[OURS], atoms)
    if has_peft():
        ways[PEFT] = copy_of(model)
        peft_lora(ways[PEFT], atoms, apart=False)
    return {name: way.eval() for name, way in ways.items()}


def put_learned(model: nn.Module, atoms: Atoms) -> None:
    """A memory that has learned all atoms and trains none."""
    memories, _ = put_ours(model, all_frozen(atoms), method_config())
    for memory in memories.values():
        memory.learning = False


def put_learned_published(model: nn.Module, atoms: Atoms) -> None:
    """The same by the published formulation."""
    put_published(model, atoms, method_config())


def all_frozen(atoms: Atoms) -> Atoms:
    """All atoms frozen, and active ones that are zero."""

    def joined(frozen: Any, active: Any) -> tuple[Tensor, Tensor]:
        keys, values = (torch.cat(pair) for pair in zip(frozen, active, strict=True))
        return keys, values

    return {
        name: (joined(*both), (torch.zeros_like(both[1][0]), torch.zeros_like(both[1][1])))
        for name, both in atoms.items()
    }


def check(how: How) -> float:
    """Error of our logits on two layers in float32, relative to float64 by formula, in norms.

    Not the largest error: one token for which two all but equal atoms change places would decide.
    """
    shape = replace(shape_for(how), layers=2)
    model = base_of(shape, how, torch.float32)
    atoms = atoms_of(model)
    ids = tokens(2, 32, shape, how)
    ours, published = copy_of(model), deepcopy(model)
    put_learned(ours, atoms)
    put_learned_published(published, atoms)
    with torch.no_grad():
        found = ours(input_ids=ids).logits
        exact = published.double()(input_ids=ids).logits
    return float((found.double() - exact).norm() / exact.norm())


def tokens(rows: int, length: int, shape: Shape, how: How) -> Tensor:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, shape.vocabulary, (rows, length), generator=generator).to(how.device)
