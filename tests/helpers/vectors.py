"""A small third model family, which reads vectors of numbers and answers with one of a few labels.

It works as a family of pictures would: no text, one call of the model per step. A new family can
start as a copy of ``Vectors``; tests register it only while they run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig

from moram_dist.data.stream import IGNORED, MicroBatch
from moram_dist.decode import LabelScores
from moram_dist.families import Family
from moram_dist.recognise import PromptFeatures
from moram_dist.tasks.task import Decoding, Example, Task


class VectorsConfig(PretrainedConfig):
    """The configuration of ``VectorsModel``."""

    model_type = "vectors"
    size, answers = 4, 3


class VectorsModel(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.config = VectorsConfig()
        self.first = nn.Linear(self.config.size, 16)
        self.last = nn.Linear(16, self.config.answers)

    def forward(self, vectors: Tensor) -> SimpleNamespace:
        """One logit per label."""
        return SimpleNamespace(logits_per_vector=self.last(self.first(vectors).relu()))


def made(seed: int = 0) -> VectorsModel:
    """A frozen model in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VectorsModel().requires_grad_(False).eval()


@dataclass(frozen=True)
class EncodedVector:
    """An encoded training example."""

    id: str
    vector: tuple[float, ...]
    label: int
    num_answer: int = 1
    num_tokens: int = 1


def numbers(prompt: str) -> tuple[float, ...]:
    """The vector that a prompt spells out."""
    return tuple(float(word) for word in prompt.split())


@dataclass(frozen=True)
class Vectors(Family):
    """Vectors are prompts, classes are answers."""

    kind = "vector"

    @classmethod
    def accepts(cls, architecture: Any) -> bool:
        """By the type that transformers gives to it."""
        return getattr(architecture, "model_type", None) == "vectors"

    def auto_class(self) -> Any:
        """What transformers makes such a model with; tests make it in memory."""
        return AutoModel

    def trial_inputs(
        self, architecture: Any, num_tokens: int, *, masked: bool = False
    ) -> dict[str, Any]:
        """One vector."""
        return {"vectors": torch.zeros(1, architecture.size, device="meta")}

    def tokens_of(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
        """A vector is one token."""
        return len(named["vectors"])

    def encode_question(self, tokenizer: Any, prompt: str, task: Task) -> tuple[float, ...]:
        """The vector."""
        return numbers(prompt)

    def encode_training(self, tokenizer: Any, example: Example, task: Task) -> EncodedVector:
        """The vector, and the index of its label."""
        label = task.labels.index(example.references[0])
        return EncodedVector(example.id, numbers(example.prompt), label)

    def to_rows(self, encoded: EncodedVector) -> dict[str, Tensor]:
        """In double precision, which keeps every digit of the prompt."""
        vector = torch.tensor(encoded.vector, dtype=torch.float64)
        return {"vectors": vector, "labels": torch.tensor([encoded.label])}

    def from_rows(self, id: str, rows: dict[str, Tensor], num_answer: int) -> EncodedVector:
        """The same example again."""
        return EncodedVector(id, tuple(rows["vectors"].tolist()), int(rows["labels"].item()))

    def features(
        self, model: nn.Module, tokenizer: Any, examples: Sequence[Example], task: Task
    ) -> PromptFeatures:
        """The vectors themselves."""
        read = torch.tensor([numbers(one.prompt) for one in examples], dtype=torch.float64)
        read = read.reshape(-1, VectorsConfig.size)
        return PromptFeatures(read, torch.ones(len(read), dtype=torch.float64))

    def features_of_pass(
        self, model: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> PromptFeatures:
        """The vectors of the call."""
        read = named["vectors"].double()
        return PromptFeatures(read, torch.ones(len(read), dtype=torch.float64))

    def blank(self, like: EncodedVector, pad_id: int) -> EncodedVector:
        """A vector whose label is not learned."""
        return EncodedVector("", like.vector, IGNORED, num_answer=0)

    def collate(
        self, examples: Sequence[EncodedVector], pad_id: int, rows: Sequence[int] | None = None
    ) -> MicroBatch:
        """A row for each vector; the label is what follows it."""
        vectors = torch.tensor([example.vector for example in examples])
        return MicroBatch(
            inputs={"vectors": vectors},
            labels=torch.tensor([[IGNORED, example.label] for example in examples]),
            rows=tuple(rows or range(len(examples))),
            prompts=list(vectors),
            lengths=(1,),
        )

    def logits(
        self,
        engine: Any,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        """All labels' logits of the rows; there is one position per row."""
        logits: Tensor = engine(**inputs).logits_per_vector
        return logits[rows][None]

    def read(self, model: nn.Module, tokenizer: Any, example: Example, task: Task) -> None:
        """The vector."""
        model(vectors=torch.tensor([numbers(example.prompt)]))

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
        """The likeliest label, since nothing else can be said."""
        return self.choose(model, tokenizer, examples, task, synced=synced)

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
        """Log-likelihoods of all labels, from one call."""
        read = torch.tensor([numbers(one.prompt) for one in examples])
        log_p = model(vectors=read).logits_per_vector.double().log_softmax(-1)
        found = [dict(zip(task.labels, row, strict=True)) for row in log_p.tolist()]
        return [LabelScores(sums=one, means=one) for one in found]
