"""The data classes of a benchmark: tasks in an order, each with its examples and rules.

Plain data, no torch and no tokenizer. Readers create these objects, ``data`` turns examples into
tokens, ``eval`` scores the model's answers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from moram_dist.registry import Registry


@dataclass(frozen=True)
class Example:
    """One question. ``id`` is stable across runs: ``<split>-<index in the file>``."""

    id: str
    prompt: str
    references: tuple[str, ...]
    """Accepted answers, at least one. Training uses the first; the best match is scored."""

    turns: tuple[tuple[str, str], ...] = ()
    """In a chat, (role, text) of each turn before the answer. ``data.chat`` writes the prompt from
    them with the tokenizer's template."""

    learned: tuple[tuple[int, int], ...] = ()
    """Parts of ``prompt`` that training learns in addition to the answer, as first character and
    the one after the last: earlier answers of a chat."""


def digest(examples: Iterable[Example]) -> str:
    """Hex sha256 of examples, independent of the file that they came from."""
    content = [[e.prompt, *e.references, *map(list, e.learned)] for e in examples]
    text = json.dumps(content, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TaskRules:
    """How a task is prompted, trained and scored: all of a task but its name and examples.

    Lengths are in tokens; ``moram_dist.data.encode`` applies them.
    """

    metric: str
    """A name in ``moram_dist.metrics.METRICS``."""

    labels: tuple[str, ...] = ()
    """The closed answer set, if there is one."""

    train_labels: tuple[str, ...] = ()
    """The labels among which training chooses; default: all ``labels``."""

    texts: tuple[tuple[str, ...], ...] = ()
    """The texts of each of ``labels``, for models that compare a picture with texts. Training uses
    the first of a label's texts, evaluation the mean of their features."""

    text_to_image: float = 0.0
    """Weight of the loss of finding a text's pictures among those of a step, summed over pictures;
    the loss of finding a picture's text is a mean over them."""

    label_smoothing: float = 0.0
    """Probability that training spreads over ``train_labels``, in [0, 1)."""

    epochs: float = 1
    steps: int | None = None
    """Optimizer steps, in place of ``epochs``."""

    max_prompt_tokens: int = 1024
    max_answer_tokens: int = 512
    """Also the most new tokens that evaluation generates."""

    separator: str = ""
    """Inserted between prompt and answer in training, unless the prompt ends in white space. In
    evaluation the model has to generate it."""

    ending: str = ""
    """What ends an answer before EOS, in training and in answers that are labels: the end of a turn
    in a chat. A generated answer ends there too."""

    truncate_prompt: str = "left"
    """The end at which a long prompt is cut: ``left`` keeps its tail."""

    cue: str = ""
    """The common end of all prompts, if truncation must keep it."""

    joined: bool = True
    """Whether training tokenises prompt and answer as one text. Otherwise it tokenises each alone,
    and the prompt's tokens are the same as in evaluation."""

    shared_limit: bool = True
    """Whether training cuts prompt and answer together to the sum of both lengths, and adds BOS and
    EOS only if there is room. Otherwise each is cut to its own length, BOS and EOS included."""

    num_bos: int = 1
    """BOS tokens before a prompt, if the tokenizer has BOS."""

    answer_after: str = ""
    """The prediction is the text after the last occurrence of this in prompt and generated text
    together, stripped; empty if truncation removed it. Default: all generated text."""


@dataclass(frozen=True)
class Drawn:
    """Says that pictures are no files, but drawn from their names: those of ``demo_images``."""


@dataclass(frozen=True, kw_only=True)
class Task(TaskRules):
    """One task of a sequence."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    """The examples that are scored."""

    pictures: Path | Drawn | None = None
    """The folder of the pictures that prompts name, if they are files; None if prompts are
    texts."""

    def passes(self, batch_size: int) -> float:
        """Passes over the training examples: ``epochs``, or as many as make up ``steps``."""
        if self.steps is None or not self.train:
            return self.epochs
        return self.steps / math.ceil(len(self.train) / batch_size)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are generated: greedy, with these two repetition rules (1.0 and 0 are off)."""

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Tasks in the order in which they are learned."""

    name: str
    order: str
    protocol: str
    tasks: tuple[Task, ...]
    decoding: Decoding = field(default_factory=Decoding)
    learning_rate: float = 5e-4
    """Default of ``--learning_rate``. Published for MoRAM on TRACE (runner script)."""

    batch_size: int = 32
    """Default of ``--batch_size``: examples per optimizer step. Source: as above."""

    notes: tuple[str, ...] = ()
    """Differences from the published protocol for the run's record, such as a replaced split."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A benchmark's files, and which part of them to use. Mostly the fields of DataConfig."""

    data_dir: Path | None = None
    order: str | None = None
    protocol: str | None = None
    limit_train: int | None = None
    limit_eval: int | None = None
    splits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Replaced splits per task: ``{"MeetingBank": {"train": "eval"}}``; the value is another
    split's name or a file path."""

    shots: int | None = None
    """Training pictures of each class; None: as many as the protocol uses."""

    seed: int = 0
    """For what a benchmark generates or draws."""

    every_picture: bool = False
    """All training pictures, where a protocol draws some of each class; for audits."""


BENCHMARKS: Registry[Callable[[Source], Benchmark]] = Registry("benchmark")
