"""The common part of families whose models read and write text token by token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from moram_dist.adapters.prompts import new_rows
from moram_dist.comm.zero3 import whole
from moram_dist.data.answers import read_answers
from moram_dist.data.candidates import Candidates
from moram_dist.data.encode import Span
from moram_dist.data.tokens import Pairs, WorkProgress, encode_task
from moram_dist.decode.attention import one_text_a_row
from moram_dist.decode.constrained import choose_labels
from moram_dist.decode.generate import Beginning, greedy
from moram_dist.decode.labels import LabelScores, Passes, score_labels
from moram_dist.families.family import Family
from moram_dist.families.positions import Positions
from moram_dist.recognise import PromptFeatures, prompt_features
from moram_dist.registry import InputError
from moram_dist.tasks.task import Decoding, Example, Task


class TextFamily(Family):
    """A subclass says how text is encoded and where answers are; the rest is implemented here."""

    learns_turns: ClassVar[bool] = False
    """Whether an example can have several answers, each after everything before it."""

    # To be implemented by subclasses.

    @abstractmethod
    def encode_question(self, tokenizer: Any, prompt: str, task: Task) -> list[int]:
        """Encode a prompt as the token ids that the model reads."""

    @abstractmethod
    def encode_candidates(self, tokenizer: Any, example: Example, task: Task) -> Candidates:
        """The labels of a task after one prompt, tokenised as in training."""

    @abstractmethod
    def to_rows(self, encoded: Any) -> dict[str, Tensor]:
        """Store an encoded example as flat tensors (n,) by name."""

    @abstractmethod
    def from_rows(self, id: str, rows: dict[str, Tensor], num_answer: int) -> Any:
        """Restore an encoded example from ``to_rows``."""

    @abstractmethod
    def begin(self, prompts: Sequence[Sequence[int]], pad_id: int) -> Beginning:
        """The inputs of ``generate`` for these prompts."""

    @abstractmethod
    def label_passes(
        self,
        model: nn.Module,
        choices: Sequence[Candidates],
        pad_id: int,
        task: Task,
        *,
        synced: bool,
    ) -> Passes:
        """Forward passes over labels; with ``synced`` the same number for all batches of a task."""

    @abstractmethod
    def causal_inputs(self, ids_BT: Tensor) -> dict[str, Tensor]:
        """Inputs in which ``ids_BT`` are the answers, all after the same prompt."""

    @abstractmethod
    def positions(self, model: nn.Module) -> Positions:
        """The number of tokens for which a model has positions."""

    @abstractmethod
    def lengths(self, encoded: Any) -> tuple[int, int]:
        """Prompt tokens and answer tokens that a model reads for a training example."""

    @abstractmethod
    def num_read(self, num_said: int) -> int:
        """Tokens that the model reads to generate an answer of ``num_said`` tokens."""

    @abstractmethod
    def exceeds(self, there: Positions, prompt: int, answer: int) -> bool:
        """Whether prompt and answer of these lengths need more positions than ``there`` gives."""

    @abstractmethod
    def describe(self, there: Positions) -> str:
        """The positions as text for messages: "1024 positions"."""

    def rows_read(self, encoded: Any) -> list[tuple[Sequence[int], Sequence[Span]]]:
        """The rows that the model reads for a training example: tokens, and what is learned."""
        return [(encoded.tokens, encoded.learned)]

    # Structure.

    def tokens_of(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
        """Tokens of all rows, with padding."""
        ids = named.get("input_ids", arguments[0] if arguments else None)
        if ids is None:
            ids = named["inputs_embeds"][..., 0]
        return ids.numel()

    def vocabulary(self, model: Any) -> int:
        """Number of tokens that the model can both read and generate."""
        return min(
            getattr(layer.weight, "ds_shape", layer.weight.shape)[0]
            for layer in (model.get_input_embeddings(), model.get_output_embeddings())
            if layer is not None
        )

    # Examples.

    def encode_task(
        self, tokenizer: Any, pairs: Pairs, folder: Path, told: WorkProgress
    ) -> Sequence[Any]:
        """Encode in batches, and cache many examples: ``data.tokens.encode_task``."""
        return encode_task(self, tokenizer, pairs, folder, told)

    def features(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], task: Task
    ) -> PromptFeatures:
        """Mean input embeddings of the prompts."""
        prompts = [self.encode_question(tokenizer, one.prompt, task) for one in examples]
        weight = model.get_input_embeddings().weight
        with whole([weight]):
            return prompt_features(weight.detach(), prompts)

    def features_of_pass(
        self, model: Any, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> PromptFeatures | None:
        """Mean input embeddings of all tokens of the rows."""
        rows = new_rows(arguments, named)
        if rows is None:
            return None
        if rows[0].is_floating_point():
            raise InputError(
                "recall by prefix recognises a prompt by its input_ids; load the memory with "
                "recall='all' to give inputs_embeds"
            )
        return prompt_features(model.get_input_embeddings().weight.detach(), rows)

    # Forward.

    def logits(
        self,
        engine: Any,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        """Logits only at targets: most positions are prompt, and the head is large."""
        with _picked(output_head(model), rows, columns) as picked, one_text_a_row():
            found: Tensor = engine(**inputs, use_cache=False).logits
        return found if picked else found[rows, columns][None]

    @torch.no_grad()
    def read(self, model: Any, tokenizer: Any, example: Example, task: Task) -> None:
        """Prompt and first reference, as in training."""
        encoded = self.encode_training(tokenizer, example, task)
        device = next(iter(model.parameters())).device
        inputs = self.collate([encoded], tokenizer.pad_token_id).inputs
        first = torch.zeros(1, dtype=torch.long, device=device)
        self.logits(model, model, {n: t.to(device) for n, t in inputs.items()}, first, first)

    # Answers.

    def generate(
        self,
        model: nn.Module,
        tokenizer: Any,
        examples: Sequence[Example],
        task: Task,
        decoding: Decoding,
        *,
        synced: bool = False,
    ) -> list[str]:
        """Greedy decoding."""
        prompts = [self.encode_question(tokenizer, one.prompt, task) for one in examples]
        new_BT = greedy(
            model,
            tokenizer,
            prompts,
            begin=self.begin,
            max_new_tokens=task.max_answer_tokens,
            synced=synced,
            **asdict(decoding),
        )
        return read_answers(tokenizer, prompts, new_BT.tolist(), task)

    def choose(
        self,
        model: nn.Module,
        tokenizer: Any,
        examples: Sequence[Example],
        task: Task,
        *,
        synced: bool = False,
    ) -> list[str]:
        """Greedy decoding that can produce only labels."""
        choices = [self.encode_candidates(tokenizer, one, task) for one in examples]
        return choose_labels(
            model, tokenizer, choices, task.labels, begin=self.begin, synced=synced
        )

    @torch.no_grad()
    def score_labels(
        self,
        model: nn.Module,
        tokenizer: Any,
        examples: Sequence[Example],
        task: Task,
        *,
        synced: bool = False,
    ) -> list[LabelScores]:
        """Log-likelihoods of each label's tokens and EOS."""
        choices = [self.encode_candidates(tokenizer, one, task) for one in examples]
        pad_id = tokenizer.pad_token_id
        passes = self.label_passes(model, choices, pad_id, task, synced=synced)
        return score_labels(model, choices, task.labels, passes)


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that turns hidden states into logits; None if the model has none."""
    head: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    return head


@contextmanager
def _picked(head: nn.Module | None, rows: Tensor, columns: Tensor) -> Iterator[list[bool]]:
    """Within this context, ``head`` computes logits at the given positions only, as one row.

    Models process logits elementwise afterwards (caps, scales), so the result is unchanged. Yields
    a list that stays empty until the head is called.
    """
    called: list[bool] = []

    def pick(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        called.append(True)
        hidden_BPD, *others = arguments
        return (hidden_BPD[rows, columns][None], *others)

    handle = head.register_forward_pre_hook(pick) if head is not None else None
    try:
        yield called
    finally:
        if handle is not None:
            handle.remove()
