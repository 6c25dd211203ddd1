"""The models of the server: one memory, under a name for each of its prefixes.

transformers' server loads a model for each name. Here all names share one model; a view of it sets
which tasks answer while it generates. Its classes are internal, so the pin of transformers and the
test belong together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from transformers import BatchEncoding, GenerationConfig
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import GenerateManager, GenerationState, Modality

from moram_dist.adapters.prompts import asking
from moram_dist.data.chat import ChatTemplate
from moram_dist.methods.restore import answered_by
from moram_dist.recognise import Recogniser
from moram_dist.use.answerer import Answerer
from moram_dist.use.source import ANY_LENGTH


class PrefixView:
    """A model with a memory, of which the first tasks answer. Everything else is the model's."""

    def __init__(self, answerer: Answerer, number: int) -> None:
        """``number``: how many tasks answer, or are known to the recogniser, if there is one."""
        self._answerer = answerer
        self._number = number
        tokenizer = answerer.tokenizer
        self.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=answerer.task.max_answer_tokens,
            **asdict(answerer.decoding),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answerer.model, name)

    @cached_property
    def _recogniser(self) -> Recogniser | None:
        """Made by the first request: there may be hundreds of views. They share statistics."""
        whole = self._answerer.recogniser
        return whole.of_first(self._number) if whole and self._number else None

    @torch.no_grad()
    def generate(self, **named: Any) -> Any:
        """Transformers' ``generate`` of a single prompt. The server calls it on one thread."""
        answerer = self._answerer
        model: Any = answerer.model
        named["tokenizer"] = answerer.tokenizer
        number = self._number
        if self._recogniser is not None:
            features = answerer.family.features_of_pass(model, (), named)
            assert features is not None  # there is no cache
            (found,) = self._recogniser.recognise(features)
            own = found.answered_by(number, answerer.unknown)
            number = number if own is None else own
        if number == answerer.upto:
            with asking(model, named["input_ids"]):
                return model.generate(**named)
        with answered_by(model, (number,)), asking(model, named["input_ids"]):
            return model.generate(**named)


class TokenizerView:
    """A tokenizer that encodes a prompt as the run's evaluation does; all else is unchanged."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._task = replace(answerer.task, max_prompt_tokens=ANY_LENGTH)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answerer.tokenizer, name)

    def __call__(self, text: str, **named: Any) -> BatchEncoding:
        """Token ids (1, P) and a mask. The prompt is whole: requests that are too long fail."""
        ids = torch.tensor([self.encode(text)])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def apply_chat_template(self, messages: Any, **named: Any) -> Any:
        """A chat as training writes it."""
        template = ChatTemplate.for_answers(self._answerer.tokenizer).source
        return self._answerer.tokenizer.apply_chat_template(
            messages, **named | {"chat_template": template}
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt."""
        answerer = self._answerer
        return answerer.family.encode_question(answerer.tokenizer, text, self._task)


class Served(ModelManager):
    """Gives out the views by name; it loads nothing and unloads nothing."""

    def __init__(self, name: str, answerer: Answerer) -> None:
        """``name`` stands for all tasks of ``answerer``; earlier states are ``name@after_000``."""
        super().__init__(model_timeout=-1)
        self.started = int(time.time())
        self.answerer = answerer
        self.tokenizer = TokenizerView(answerer)
        self.views: Mapping[str, PrefixView] = {
            each: PrefixView(answerer, number) for each, number in _names(name, answerer).items()
        }

    def load_model_and_processor(self, model_id_and_revision: str, *args: Any, **named: Any) -> Any:
        """The view with this name, and the tokenizer."""
        return self.views[model_id_and_revision], self.tokenizer

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """Names stay as they are: ``@`` is part of some."""
        return model_id

    @staticmethod
    def get_model_modality(*args: Any, **named: Any) -> Modality:
        """Text."""
        return Modality.LLM

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
        """The entries of /v1/models."""
        about = {"object": "model", "created": self.started, "owned_by": "moram-dist"}
        return [{"id": name, **about} for name in self.views]


class OneThread(GenerationState):
    """All names generate on one thread, one prompt after the other: they share one model."""

    def __init__(self) -> None:
        super().__init__()
        self._only = GenerateManager()

    def get_manager(self, model_id: str, use_cb: bool = False) -> GenerateManager:
        """The same for every name."""
        return self._only


def _names(name: str, answerer: Answerer) -> dict[str, int]:
    """Name of each served model -> how many tasks answer."""
    names = {name: answerer.upto}
    if answerer.keeps_prefixes:
        names |= {f"{name}@after_{row:03d}": row + 1 for row in range(answerer.upto)}
    return names
