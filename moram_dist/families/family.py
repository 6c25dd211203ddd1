"""The interface of a model family: everything that the program needs to know of a kind of model.

    loading      auto_class, ..._problem      which models can be a base
    structure    part, towers, trial_inputs   where adapters go, which calls announce tokens
    examples     encode_training, texts, ...  how an example is encoded
    batches      blank, collate               one forward pass over examples
    forward      logits                       the input of the loss
    answers      generate, score_labels, ...  the answers that are scored

A family is one file that registers a subclass of ``Family``; the package's ``__init__`` imports it.
Instances hold no model: ``families.choose`` makes them from a model's configuration. Every family
must implement the abstract methods; the other defaults suit families that read no text.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from moram_dist.data.stream import MicroBatch
from moram_dist.data.tokens import Pairs, WorkProgress
from moram_dist.decode import LabelScores, Room
from moram_dist.decode.labels import best
from moram_dist.losses import cross_entropy
from moram_dist.recognise import PromptFeatures
from moram_dist.registry import InputError, Registry
from moram_dist.tasks.task import Decoding, Example, Task


class Tower(NamedTuple):
    """A part of a model that reads its own tokens."""

    module: nn.Module
    is_source: bool
    """Whether it reads the source, whose states other towers then attend to."""


@dataclass(frozen=True)
class Family(ABC):
    """One kind of model. Only the family knows whether it reads token ids, images or numbers."""

    kind: ClassVar[str]
    """For messages: a base "is no ... language model"."""

    can_be_planned: ClassVar[bool] = False
    """Whether ``launch/plan.py`` can estimate the family's forward passes."""

    loads_sharded: ClassVar[bool] = True
    """Whether ZeRO-3 can shard the model while it loads."""

    splits_steps: ClassVar[bool] = True
    """Whether a rank may read its part of a step in several passes."""

    reads_pictures: ClassVar[bool] = False
    """Whether prompts name pictures: reading them is worth doing ahead of a step, and once."""

    # Loading.

    @classmethod
    @abstractmethod
    def accepts(cls, architecture: Any) -> bool:
        """Whether models with this transformers configuration belong to the family."""

    @classmethod
    def of(cls, architecture: Any) -> Family:
        """The family of a model with this configuration."""
        return cls()

    @abstractmethod
    def auto_class(self) -> Any:
        """The transformers class with ``from_config`` and ``from_pretrained`` for the family."""

    def config_problem(self, architecture: Any) -> str | None:
        """Why a model with this configuration cannot be a base; None if it can."""
        return None

    def model_problem(self, architecture: Any, model: nn.Module) -> str | None:
        """Why ``model``, which has no weights yet, cannot be a base; None if it can."""
        return None

    def tokenizer_problem(self, tokenizer: Any) -> str | None:
        """Why a base cannot have this tokenizer; None if it can."""
        return None

    def with_tokenizer(self, tokenizer: Any, source: str) -> Any:
        """The object that encodes examples; families may return another one than the tokenizer.

        Args:
            tokenizer: of the base.
            source: the base's folder or hub id, to load further preprocessing.
        """
        return tokenizer

    def prepared(self, model: Any) -> Any:
        """A model that was just loaded, changed as adapters and ZeRO need it."""
        return model

    # Structure.

    def heads(self, model: nn.Module) -> Collection[str]:
        """Full names of linears that produce the output and are never adapted."""
        return ()

    @abstractmethod
    def trial_inputs(
        self, architecture: Any, num_tokens: int, *, masked: bool = False
    ) -> dict[str, Any]:
        """Arguments of a forward pass over one made-up example, tensors on the meta device.

        Args:
            architecture: the model's configuration.
            num_tokens: length of a text.
            masked: whether to add a mask that marks no token as padding.
        """

    def part(self, model: nn.Module) -> nn.Module:
        """The part of the model that examples pass through; only its linears are adapted."""
        return model

    def towers(self, model: nn.Module) -> list[Tower]:
        """The towers whose calls announce tokens to the memory; the first one begins a batch."""
        return [Tower(model, False)]

    def reads_source(self, name: str) -> bool:
        """Whether the linear with this full name reads the tokens of an ``is_source`` tower."""
        return False

    @abstractmethod
    def tokens_of(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
        """Number of tokens, over all rows, that a tower's call sends through its linears."""

    def reader(self, model: nn.Module) -> nn.Module:
        """The module whose call reads prompts, as ``input_ids`` or ``inputs_embeds``.

        Raises:
            InputError: prompts are not text.
        """
        raise InputError(f"prompts of a {type(model).__name__} are no texts, which gates read")

    # Examples.

    @property
    def fingerprint(self) -> Any:
        """Everything besides tokenizer, task and example that determines the encoding."""
        return type(self).__name__

    def texts(self, example: Example, task: Task) -> list[str]:
        """All texts that ``encode_training`` passes to the tokenizer unchanged."""
        return []

    @abstractmethod
    def encode_training(self, tokenizer: Any, example: Example, task: Task) -> Any:
        """Encode a training example: a ``data.encode.EncodedExample``."""

    @abstractmethod
    def encode_question(self, tokenizer: Any, prompt: str, task: Task) -> Sequence[Any]:
        """Encode a prompt for the model."""

    def question_fits(self, tokenizer: Any, task: Task, prompt: str) -> bool:
        """Whether ``encode_question`` keeps the whole prompt and all special tokens."""
        unlimited = replace(task, max_prompt_tokens=sys.maxsize)
        return len(self.encode_question(tokenizer, prompt, unlimited)) <= task.max_prompt_tokens

    def encode_task(
        self, tokenizer: Any, pairs: Pairs, folder: Path, told: WorkProgress
    ) -> Sequence[Any]:
        """Encode training examples. All ranks call it together.

        Args:
            tokenizer: of the base.
            pairs: each example with the task whose rules encode it.
            folder: for a cache, on a file system that all ranks share.
            told: reports the progress.
        """
        return [self.encode_training(tokenizer, example, task) for task, example in pairs]

    def in_step(self, examples: Sequence[Any], place: Sequence[int]) -> Sequence[Any]:
        """The encoded examples of one optimizer step, told what they need to know about it.

        Args:
            examples: of all ranks.
            place: seed, task and step, from which a family can draw.
        """
        return examples

    @abstractmethod
    def features(
        self, model: nn.Module, tokenizer: Any, examples: Sequence[Example], task: Task
    ) -> PromptFeatures:
        """A recogniser's input for prompts, without a forward pass. All ranks call it together."""

    def features_of_pass(
        self, model: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> PromptFeatures | None:
        """The same for the rows that a call of the first tower reads, with whole weights.

        None if the call continues from a cache.

        Raises:
            InputError: rows cannot be recognised from the call's arguments.
        """
        raise InputError("recall by prefix does not know this model's inputs; use recall='all'")

    # Batches.

    @abstractmethod
    def blank(self, like: Any, pad_id: int) -> Any:
        """An example that adds nothing to the loss, of the same form as ``like``."""

    @abstractmethod
    def collate(
        self, examples: Sequence[Any], pad_id: int, rows: Sequence[int] | None = None
    ) -> MicroBatch:
        """The micro-batch of these examples; ``rows`` are their indices in the step, from 0."""

    # Forward.

    @abstractmethod
    def logits(
        self,
        engine: Any,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        """Run one forward pass and return the logits at the given positions, (1, P, V).

        Args:
            engine: runs the model and is called instead of it.
            model: the engine's.
            inputs: ``MicroBatch.inputs`` on the model's device.
            rows: (P,) row of each position.
            columns: (P,) column of each position, one before that of the label predicted there.
        """

    def loss(
        self, logits_BPV: Tensor, targets_BP: Tensor, batch: MicroBatch, num_answer_tokens: int
    ) -> Tensor:
        """This micro-batch's part of a step's loss, which is a sum over micro-batches and ranks.

        Args:
            logits_BPV: from ``logits``.
            targets_BP: ``data.stream.IGNORED`` at positions without a target.
            batch: from ``collate``.
            num_answer_tokens: targets of the step, over all ranks.
        """
        total = cross_entropy(logits_BPV.flatten(0, 1), targets_BP.flatten())
        return total / num_answer_tokens

    @abstractmethod
    def read(self, model: nn.Module, tokenizer: Any, example: Example, task: Task) -> None:
        """Pass one test example through the model, its prompt and its answer, without padding."""

    # Answers.

    @contextmanager
    def answering(
        self, model: nn.Module, tokenizer: Any, tasks: Sequence[Task], kept: dict[str, Any]
    ) -> Iterator[None]:
        """Context in which a model that does not change answers prompts of these tasks.

        A family can compute here what all answers share. All ranks enter it together. ``kept`` is
        empty at first and is the same object whenever the model is in the same state again.
        """
        yield

    def can_stream(self, model: nn.Module) -> bool:
        """Whether ``stream`` is worth calling: it overlaps prompts, given whole weights."""
        return False

    def stream(
        self,
        model: nn.Module,
        tokenizer: Any,
        asked: Iterable[tuple[int, Task, Example]],
        decoding: Decoding,
        room: Room,
    ) -> Iterator[tuple[int, str]]:
        """Yield (key, answer) as each answer is complete; the key is the caller's.

        By default one prompt after the other.
        """
        for key, task, example in asked:
            (answer,) = self.generate(model, tokenizer, [example], task, decoding)
            yield key, answer

    @abstractmethod
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
        """Free answers to a batch of prompts.

        Args:
            model: in eval mode.
            tokenizer: with a pad token.
            examples: the batch; their prompts are encoded by the task's rules.
            task: prompt and answer lengths.
            decoding: repetition rules.
            synced: all ranks call it together and make the same number of forward passes, as
                sharded weights need.

        Returns:
            The answers as the task extracts them, in the order of ``examples``.
        """

    def choose(
        self,
        model: nn.Module,
        tokenizer: Any,
        examples: Sequence[Example],
        task: Task,
        *,
        synced: bool = False,
    ) -> list[str]:
        """Choose a label for each prompt by generation that can produce only labels."""
        scores = self.score_labels(model, tokenizer, examples, task, synced=synced)
        return [best(one.sums) for one in scores]

    @abstractmethod
    def score_labels(
        self,
        model: nn.Module,
        tokenizer: Any,
        examples: Sequence[Example],
        task: Task,
        *,
        synced: bool = False,
    ) -> list[LabelScores]:
        """Log p(label | prompt) of each of the task's labels, for a batch of prompts.

        Args are those of ``generate``.
        """


FAMILIES: Registry[type[Family]] = Registry("model family")
