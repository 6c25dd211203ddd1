"""A loaded memory that finds out by itself which of its tasks a prompt belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from moram_dist.adapters.prefix import Prefix
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
        cache = named.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return
        ids_BP = named.get("input_ids", arguments[0] if arguments else None)
        if ids_BP is None:
            raise InputError(
                "recall by prefix recognises a prompt by its input_ids; load the memory with "
                "recall='all' to give inputs_embeds"
            )
        mask_BP = named.get("attention_mask")
        self.prefix.default(self._tasks(_prompts(ids_BP, mask_BP)))

    def _tasks(self, prompts: Sequence[Tensor]) -> list[int]:
        learned = len(self.recogniser.tasks)
        found = self.recogniser.recognise(
            prompt_features(self.embeddings.weight.detach(), prompts)  # type: ignore[arg-type]
        )
        numbers = [one.answered_by(learned, self.unknown) for one in found]
        return [learned if number is None else number for number in numbers]


def _prompts(ids_BP: Tensor, mask_BP: Any) -> list[Tensor]:
    """The tokens of each row, without padding where the mask says what is padding."""
    if not isinstance(mask_BP, Tensor) or mask_BP.shape != ids_BP.shape:
        return list(ids_BP)
    return [ids_P[mask_P.bool()] for ids_P, mask_P in zip(ids_BP, mask_BP, strict=True)]
