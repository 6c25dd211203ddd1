"""A loaded memory that finds out by itself which of its tasks a prompt belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from moram_dist.adapters.prefix import Prefix
from moram_dist.adapters.prompts import new_rows
from moram_dist.recognise import Recogniser, prompt_features
from moram_dist.registry import InputError


class ByPrompt:
    """Before each forward pass that begins a batch: recognise its rows, and choose who answers.

    A row is recognised by all of its tokens that the pass is given; what follows in the cache is
    answered by the same tasks. ``answered_by`` has the last word.
    """

    def __init__(self, prefix: Prefix, recogniser: Recogniser, unknown: str) -> None:
        """``unknown``: who answers a prompt that is like no task's, ``base`` or ``all``."""
        self.prefix = prefix
        self.recogniser = recogniser
        self.unknown = unknown

    def watch(self, model: Any) -> None:
        """From now on, at ``model``. Of an encoder-decoder, its encoder begins a batch."""
        self.embeddings = model.get_input_embeddings()
        begins = model.get_encoder() if model.config.is_encoder_decoder else model
        begins.register_forward_pre_hook(self._begin, with_kwargs=True)

    def _begin(self, model: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        rows = new_rows(arguments, named)
        if rows is None:
            return
        if rows[0].is_floating_point():
            raise InputError(
                "recall by prefix recognises a prompt by its input_ids; load the memory with "
                "recall='all' to give inputs_embeds"
            )
        self.prefix.default(self._tasks(rows))

    def _tasks(self, prompts: Sequence[Tensor]) -> list[int]:
        learned = len(self.recogniser.tasks)
        found = self.recogniser.recognise(
            prompt_features(self.embeddings.weight.detach(), prompts)  # type: ignore[arg-type]
        )
        numbers = [one.answered_by(learned, self.unknown) for one in found]
        return [learned if number is None else number for number in numbers]
