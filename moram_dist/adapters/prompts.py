"""The prompts of a batch, for methods that read each prompt as a whole.

A forward pass does not know its prompts: an answer may follow a prompt in the same row, and with a
key-value cache the pass gets only the newest tokens. Callers that know the prompts pass them here.

Shape letters: B rows, D size of the input embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

ATTRIBUTE = "moram_prompts"
"""Attribute of a model that reads prompts as a whole: its ``Prompts``."""


class Prompts:
    """Passes the mean input embedding of each prompt to ``then``, before each forward pass.

    If no caller gives the prompts, they are the whole rows of a pass with an empty cache, and
    passes with a filled cache keep the previous prompts. An encoder's prompts are its rows.
    """

    def __init__(self, model: Any, reader: nn.Module, then: Callable[[Tensor], None]) -> None:
        """Register a hook on ``reader``, the submodule of ``model`` that reads the prompts.

        ``then`` receives (B, D) in float32, inside the forward pass of ``model``.
        """
        self.embedding: Any = model.get_input_embeddings()
        self._then = then
        self._said: list[Tensor] | None = None
        self._is_new = False
        setattr(model, ATTRIBUTE, self)
        self.handle = reader.register_forward_pre_hook(self._begin_pass, with_kwargs=True)

    @contextmanager
    def of(self, prompts: Sequence[Sequence[int] | Tensor]) -> Any:
        """Context in which the rows of all passes have these prompts, given as token ids."""
        before = self._said, self._is_new
        self._said = [torch.as_tensor(ids, dtype=torch.int64) for ids in prompts]
        self._is_new = True
        try:
            yield
        finally:
            self._said, self._is_new = before

    def _begin_pass(self, module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        if self._said is not None:
            if self._is_new:
                self._then(self._means(self._said))
                self._is_new = False
            return
        rows = new_rows(arguments, named)
        if rows is not None:
            embedded = rows[0].is_floating_point()
            self._then(_mean_of(rows) if embedded else self._means(rows))

    def _means(self, prompts: list[Tensor]) -> Tensor:
        """Mean embeddings (B, D), with a single lookup: each call gathers a sharded embedding."""
        device = self.embedding.weight.device
        ids = torch.cat(prompts)[None].to(device)
        return _mean_of(self.embedding(ids)[0].split([len(prompt) for prompt in prompts]))


def new_rows(arguments: Any, named: Mapping[str, Any]) -> list[Tensor] | None:
    """The input of a forward pass for each row of a batch, without padding.

    Args:
        arguments: positional arguments of the pass, as its hook gets them.
        named: its keyword arguments.

    Returns:
        Token ids (P,) of each row, or embeddings (P, D) if the pass gets those. None if the pass
        continues from a filled cache.
    """
    cache = named.get("cache", named.get("past_key_values"))  # transformers 5.24 renamed it
    if cache is not None and cache.get_seq_length():
        return None
    ids = named.get("input_ids", arguments[0] if arguments else None)
    seen: Any = ids if ids is not None else named.get("inputs_embeds")
    mask = named.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != seen.shape[:2]:
        return list(seen)
    return [row[here.to(row.device).bool()] for row, here in zip(seen, mask, strict=True)]


def _mean_of(rows: Sequence[Tensor]) -> Tensor:
    """Mean of each row, computed separately, so that rows are independent; zeros if empty."""
    return torch.stack([row.double().sum(0) / max(1, len(row)) for row in rows]).float()


def asking(model: Any, prompts: Sequence[Sequence[int] | Tensor]) -> AbstractContextManager[None]:
    """``Prompts.of`` these prompts if ``model`` reads prompts; otherwise an empty context."""
    reader = getattr(model, ATTRIBUTE, None)
    return nullcontext() if reader is None else reader.of(prompts)


def reads_prompts(model: Any) -> bool:
    """Whether ``model`` reads prompts as a whole, so that it must not share their beginnings."""
    return hasattr(model, ATTRIBUTE)


def forget(model: Any) -> None:
    """Remove the hook and attribute of ``Prompts`` from a model, if it has them."""
    reader = getattr(model, ATTRIBUTE, None)
    if reader is not None:
        reader.handle.remove()
        delattr(model, ATTRIBUTE)
