"""Let a loaded memory recognise which of its tasks a prompt belongs to."""

from __future__ import annotations

from typing import Any

from torch import nn

from moram_dist.adapters.prefix import Prefix
from moram_dist.families import family_of_model
from moram_dist.recognise import PromptFeatures, Recogniser


class ByPrompt:
    """Recognises the rows of each new batch before its forward pass, and sets which tasks answer.

    A row is recognised by all of its tokens in that pass; the same tasks answer the passes that
    continue from the cache. ``answered_by`` overrides this.
    """

    def __init__(self, prefix: Prefix, recogniser: Recogniser, unknown: str) -> None:
        """``unknown``: who answers a prompt that resembles no task's (``EvalConfig.unknown``)."""
        self.prefix = prefix
        self.recogniser = recogniser
        self.unknown = unknown

    def watch(self, model: nn.Module) -> None:
        """Register the hook on ``model``."""
        self.model = model
        self.family = family_of_model(model)
        first = self.family.towers(model)[0].module
        first.register_forward_pre_hook(self._begin, with_kwargs=True)

    def _begin(self, module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        features = self.family.features_of_pass(self.model, arguments, named)
        if features is not None:
            self.prefix.default(self._tasks(features))

    def _tasks(self, prompts: PromptFeatures) -> list[int]:
        learned = len(self.recogniser.tasks)
        found = self.recogniser.recognise(prompts)
        numbers = [one.answered_by(learned, self.unknown) for one in found]
        return [learned if number is None else number for number in numbers]
