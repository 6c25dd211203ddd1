"""What a model family is: all that the rest of the program asks about a kind of model.

    loading      auto_class, ..._problem      what a base can be
    structure    part, towers, trial_inputs   where adapters go, and who announces a pass
    examples     encode_training, texts, ...  what is learned from an example
    batches      blank, collate               one forward pass of them
    forward      logits                       what the loss is computed from
    answers      generate, score_labels, ...  what is scored

A family is one file, which registers a subclass of ``Family``; the package's ``__init__`` imports
it. Instances hold no model: they are made from a configuration of transformers, by which
``family_of`` chooses. Abstract methods are those that every family must have; the others serve a
family that reads no text one token after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from moram_dist.data.stream import MicroBatch
from moram_dist.decode import LabelScores, Room
from moram_dist.decode.labels import best
from moram_dist.recognise import PromptFeatures
from moram_dist.registry import InputError, Registry
from moram_dist.tasks.task import Decoding, Example, Task


class Tower(NamedTuple):
    """A part of a model whose calls read tokens of their own."""

    module: nn.Module
    is_source: bool
    """Whether it reads the source, which other towers then look at."""


@dataclass(frozen=True)
class Family(ABC):
    """One kind of model. Token ids, pictures or numbers: only the family knows."""

    kind: ClassVar[str]
    """For messages: a base "is no ... language model"."""

    can_be_planned: ClassVar[bool] = False
    """Whether ``launch/plan.py`` knows what its passes take."""

    # Loading.

    @classmethod
    @abstractmethod
    def accepts(cls, architecture: Any) -> bool:
        """Whether models of this configuration of transformers are of the family."""

    @classmethod
    def of(cls, architecture: Any) -> Family:
        """The family of a model with this configuration."""
        return cls()

    @abstractmethod
    def auto_class(self) -> Any:
        """What transformers makes such a model with: ``from_config``, ``from_pretrained``."""

    def config_problem(self, architecture: Any) -> str | None:
        """Why a model of this configuration cannot be a base; None: it can."""
        return None

    def model_problem(self, architecture: Any, model: nn.Module) -> str | None:
        """Why its model, which has no weights yet, cannot be a base; None: it can."""
        return None

    def tokenizer_problem(self, tokenizer: Any) -> str | None:
        """Why a base cannot have this tokenizer; None: it can."""
        return None

    def with_tokenizer(self, tokenizer: Any, source: str) -> Any:
        """What examples are encoded by, in the tokenizer's place.

        Args:
            tokenizer: of the base.
            source: the base's folder or hub id, for whatever else prepares its inputs.
        """
        return tokenizer

    # Structure.

    @abstractmethod
    def trial_inputs(
        self, architecture: Any, num_tokens: int, *, masked: bool = False
    ) -> dict[str, Any]:
        """Arguments of a forward pass over one made-up example, tensors on the meta device.

        Args:
            architecture: the model's configuration.
            num_tokens: of a text.
            masked: whether a mask says that no token is padding.
        """

    def part(self, model: nn.Module) -> nn.Module:
        """What an example passes through: only linears in it are adapted."""
        return model

    def towers(self, model: nn.Module) -> list[Tower]:
        """Whose calls announce tokens to the memory; the first one's begins a batch."""
        return [Tower(model, False)]

    def reads_source(self, name: str) -> bool:
        """Whether a linear, by its full name, sees the tokens of a tower that ``is_source``."""
        return False

    @abstractmethod
    def tokens_of(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
        """How many tokens, over all rows, a call of a tower sends through its linears."""

    def reader(self, model: nn.Module) -> nn.Module:
        """Whose call reads prompts, by ``input_ids`` or ``inputs_embeds``.

        Raises:
            InputError: prompts are no texts.
        """
        raise InputError(f"prompts of a {type(model).__name__} are no texts, which gates read")

    # Examples.

    @property
    def fingerprint(self) -> Any:
        """What its encoding follows from beside tokenizer, task and example."""
        return type(self).__name__

    def texts(self, example: Example, task: Task) -> list[str]:
        """All that ``encode_training`` gives to the tokenizer as it is."""
        return []

    @abstractmethod
    def encode_training(self, tokenizer: Any, example: Example, task: Task) -> Any:
        """What is learned from an example: a ``data.encode.EncodedExample``."""

    @abstractmethod
    def encode_question(self, tokenizer: Any, prompt: str, task: Task) -> Sequence[Any]:
        """What the model reads of a prompt."""

    @abstractmethod
    def to_rows(self, encoded: Any) -> dict[str, Tensor]:
        """Names to the flat tensors (n,) that an encoded example is kept as."""

    @abstractmethod
    def from_rows(self, id: str, rows: dict[str, Tensor], num_answer: int) -> Any:
        """The encoded example again."""

    @abstractmethod
    def features(
        self, model: nn.Module, tokenizer: Any, examples: Sequence[Example], task: Task
    ) -> PromptFeatures:
        """What a recogniser sees of prompts, without a forward pass. All ranks call it together."""

    def features_of_pass(
        self, model: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> PromptFeatures | None:
        """The same of the rows that a call of the first tower reads, its weights being whole.

        None where the call goes on from a cache.

        Raises:
            InputError: the rows cannot be recognised from what the call is given.
        """
        raise InputError("recall by prefix does not know this model's inputs; use recall='all'")

    # Batches.

    @abstractmethod
    def blank(self, like: Any, pad_id: int) -> Any:
        """An example that weighs nothing, for a model that reads examples ``like`` this one."""

    @abstractmethod
    def collate(
        self, examples: Sequence[Any], pad_id: int, rows: Sequence[int] | None = None
    ) -> MicroBatch:
        """A pass of these examples.

        ``rows`` says which example of the step each is; default: the step's first ones.
        """

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
        """One forward pass of the model, and its logits at some places, (1, P, V).

        Args:
            engine: called instead of the model, which it runs.
            model: the engine's.
            inputs: ``MicroBatch.inputs``, where the model is.
            rows: (P,) the row of each place.
            columns: (P,) its column: the place before the one whose label is said there.
        """

    # Answers.

    def can_stream(self, model: nn.Module) -> bool:
        """Whether ``stream`` can be used of a model with whole weights."""
        return False

    def stream(
        self,
        model: nn.Module,
        tokenizer: Any,
        asked: Iterable[tuple[int, Task, Example]],
        decoding: Decoding,
        room: Room,
    ) -> Iterator[tuple[int, str]]:
        """Answers as they end, each with the caller's key of its question."""
        raise NotImplementedError

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
            synced: all ranks call it together, as sharded weights need, and make equally many
                forward passes.

        Returns:
            The answers as the task reads them, in the order of ``examples``.
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
        """For each prompt a label of the task, by generation that can say nothing else."""
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


def family_of(architecture: Any) -> Family:
    """The family of models with a configuration of transformers: the first that accepts it.

    Causal models are whatever no other family accepts.
    """
    kinds = (FAMILIES[name] for name in FAMILIES)
    return next(kind for kind in kinds if kind.accepts(architecture)).of(architecture)


def family_of_model(model: Any) -> Family:
    """The family of a model of transformers; a module without a configuration counts as causal."""
    return family_of(getattr(model, "config", None))
