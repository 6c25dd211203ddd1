"""Level ``step``: one token of each row through a whole model, as in a step of generation.

The models are LLaMAs of 5 M and 57 M parameters with random weights, of which q, k, v and o are
adapted. A model has read a prompt; each call answers the same next token. As in ``decode``, all our
atoms are frozen, and PEFT's adapters are not merged.

Each implementation is called several times before the next one, as in a generation: if they took
turns, the smaller base could not stay in the processor's cache, which makes a memory look cheaper.

Shape letters: B rows, P tokens of the prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM

from bench.contest import (
    LINEAR,
    OURS,
    PEFT_ACTIVE,
    PUBLISHED,
    Entry,
    Settings,
    forward_contest,
)
from bench.models import draw_atoms, put_learned, put_plain_lora, put_published
from bench.peft_lora import peft_lora
from bench.results import Measurement
from bench.stack import ACTIVE, ATOMS, METHOD, TOLERANCE, llama
from bench.variants import Contender

PROMPT = 64

Adapt = Callable[[nn.Module], object]
"""Adapts a model in place."""


def run(settings: Settings) -> Iterator[list[Measurement]]:
    """Measure a single row and several, with each base."""
    sizes = [(2, 128)] if settings.quick else itertools.product((1, 16), (256, 1024))
    for num_rows, width in sizes:
        yield one_case(num_rows, width, settings)


def one_case(num_rows: int, width: int, settings: Settings) -> list[Measurement]:
    """All implementations on ``num_rows`` rows."""
    base = language_model(width)
    atoms = draw_atoms(base, METHOD, ATOMS - ACTIVE, ACTIVE)
    generator = torch.Generator().manual_seed(0)
    words_BP = torch.randint(base.config.vocab_size, (num_rows, PROMPT), generator=generator)
    memory = step(base, words_BP, lambda model: put_published(model, atoms, METHOD), double=True)
    lora = step(base, words_BP, lambda model: put_plain_lora(model, atoms), double=True)
    bare = step(base, words_BP, lambda model: None, double=True)
    ways: Mapping[str, tuple[Adapt, Contender]] = {
        LINEAR: (lambda model: None, bare),
        PUBLISHED: (lambda model: put_published(model, atoms, METHOD), memory),
        PEFT_ACTIVE: (lambda model: peft_lora(model, atoms, apart=True), lora),
        OURS: (lambda model: put_learned(model, atoms, METHOD), memory),
    }
    return forward_contest(
        "step",
        {"rows": num_rows, "width": width, "atoms": ATOMS},
        {
            name: Entry(
                make=lambda adapt=adapt: step(base, words_BP, adapt),  # type: ignore[misc]
                reference={"y": exact.forward()},
            )
            for name, (adapt, exact) in ways.items()
        },
        settings,
        tolerance=TOLERANCE,
    )


def language_model(width: int) -> Any:
    """A model of four blocks, in evaluation mode."""
    return llama(LlamaForCausalLM, width, vocab_size=8192, tie_word_embeddings=True).eval()


def step(base: nn.Module, words_BP: Tensor, adapt: Adapt, *, double: bool = False) -> Contender:
    """The logits of the last word, with those before it in a cache."""
    model: Any = deepcopy(base)
    adapt(model)
    model = model.eval().double() if double else model.eval()
    cache = DynamicCache(config=model.config)

    @torch.no_grad()
    def read(words: Tensor) -> Tensor:
        return model(input_ids=words, past_key_values=cache, use_cache=True).logits[:, -1]

    def forward() -> Tensor:
        y_BV = read(words_BP[:, -1:])
        cache.crop(-1)
        return y_BV

    read(words_BP[:, :-1])
    return Contender(forward=forward, wanted={})
