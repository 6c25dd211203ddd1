"""The prompts of a batch, for what looks at each of them as a whole.

A forward pass does not say what its prompts are: answers may stand behind them in the same row, and
with keys and values in a cache it is given the newest tokens alone. Whoever knows them says so.

Shape letters: B rows, D size of the input embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

ATTRIBUTE = "moram_prompts"
"""Of a model that reads prompts as a whole: its ``Prompts``."""


class Prompts:
    """Gives the mean input embedding of each prompt to ``then``, before each forward pass.

    Where nobody says what the prompts are, they are the whole rows of a pass that finds nothing in
    its cache; passes that go on from a cache go on with the prompts before. An encoder's are its
    rows.
    """

    def __init__(self, model: Any, reader: nn.Module, then: Callable[[Tensor], None]) -> None:
        """``then`` gets (B, D) in float32, inside the forward pass of ``model``.

        ``reader`` is the part of it whose call reads prompts.
        """
        self.embedding: Any = model.get_input_embeddings()
        self._then = then
        self._said: list[Tensor] | None = None
        self._is_new = False
        setattr(model, ATTRIBUTE, self)
        self.handle = reader.register_forward_pre_hook(self._begin_pass, with_kwargs=True)

    @contextmanager
    def of(self, prompts: Sequence[Sequence[int] | Tensor]) -> Any:
        """Within it, the rows of all passes have these prompts, by their token ids."""
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
        """All are looked up in one call, since that is what makes a sharded table whole."""
        device = self.embedding.weight.device
        ids = torch.cat(prompts)[None].to(device)
        return _mean_of(self.embedding(ids)[0].split([len(prompt) for prompt in prompts]))


def new_rows(arguments: Any, named: Mapping[str, Any]) -> list[Tensor] | None:
    """What a forward pass reads of each row of a batch, without padding.

    Args:
        arguments: of the pass, as its hook gets them.
        named: likewise.

    Returns:
        Token ids (P,) of each row, or embeddings (P, D) where it is given those. None where the
        pass goes on from a cache.
    """
    cache = named.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        return None
    ids = named.get("input_ids", arguments[0] if arguments else None)
    seen: Any = ids if ids is not None else named.get("inputs_embeds")
    mask = named.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != seen.shape[:2]:
        return list(seen)
    return [row[here.to(row.device).bool()] for row, here in zip(seen, mask, strict=True)]


def _mean_of(rows: Sequence[Tensor]) -> Tensor:
    """Each by itself, so that it does not depend on the others; zeros for a row of nothing."""
    return torch.stack([row.double().sum(0) / max(1, len(row)) for row in rows]).float()


def asking(model: Any, prompts: Sequence[Sequence[int] | Tensor]) -> AbstractContextManager[None]:
    """Within it, the rows of all passes have these prompts, where ``model`` reads them."""
    reader = getattr(model, ATTRIBUTE, None)
    return nullcontext() if reader is None else reader.of(prompts)


def reads_prompts(model: Any) -> bool:
    """Whether ``model`` looks at prompts as a whole, so that no two share a beginning."""
    return hasattr(model, ATTRIBUTE)


def forget(model: Any) -> None:
    """Undo what making ``Prompts`` did to a model, if it did."""
    reader = getattr(model, ATTRIBUTE, None)
    if reader is not None:
        reader.handle.remove()
        delattr(model, ATTRIBUTE)
