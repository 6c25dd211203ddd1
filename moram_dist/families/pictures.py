"""Pictures as examples: what is known of one before it is opened, and how it is opened.

PIL is imported only where a picture is opened: a memory of a language model works without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from moram_dist.data.stream import MicroBatch
from moram_dist.registry import InputError
from moram_dist.tasks.task import Drawn, Task

if TYPE_CHECKING:
    from moram_dist.data.picture_source import Pictures
    from moram_dist.data.pictures import Pixels


class PictureReader:
    """A tokenizer of texts together with the rules for pictures, as a base's one encoder."""

    def __init__(self, tokenizer: Any, pixels: Pixels, *, most: int) -> None:
        """``most``: tokens of the longest text that the model reads."""
        self.tokenizer = tokenizer
        self.pixels = pixels
        self.most = most
        self._opened: dict[Path | Drawn, Pictures] = {}
        self._classes: dict[int, tuple[Task, ClassTexts]] = {}
        """By the task's ``id``, which no other object has as long as the task is kept."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Start, text and end; a long text is cut before its end."""
        found = self.tokenizer(text, truncation=True, max_length=self.most)["input_ids"]
        return tuple(found)

    def pictures(self, task: Task) -> Pictures:
        """What opens a task's pictures."""
        if task.pictures is None:
            raise InputError(
                f"task {task.name} has texts as prompts, and this base reads pictures: choose a "
                "benchmark of pictures, such as images"
            )
        from moram_dist.data.picture_source import pictures_of

        if task.pictures not in self._opened:
            self._opened[task.pictures] = pictures_of(task.pictures)
        return self._opened[task.pictures]

    def classes(self, task: Task) -> ClassTexts:
        """The classes that training on a task distinguishes."""
        if id(task) not in self._classes:
            self._classes[id(task)] = (task, ClassTexts.of(self, task))
        return self._classes[id(task)][1]

    def read(self, task: Task, name: str) -> np.ndarray:
        """A picture as evaluation sees it, (3, H, W)."""
        return self.pixels.for_test(self.pictures(task).open(name))


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """The classes that a task's training distinguishes. One object per task."""

    labels: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    """Token ids of the first text of each."""

    text_to_image: float
    smoothing: float

    @classmethod
    def of(cls, tokenizer: PictureReader, task: Task) -> ClassTexts:
        """Those of a task."""
        texts = dict(zip(task.labels, task.texts, strict=True))
        labels = task.train_labels or task.labels
        tokens = tuple(tokenizer.encode_text(texts[label][0]) for label in labels)
        return cls(labels, tokens, task.text_to_image, task.label_smoothing)


@dataclass(frozen=True)
class EncodedPicture:
    """A training example; its pixels are read when a step needs them."""

    id: str
    name: str
    pictures: Pictures
    pixels: Pixels
    label: int
    """Index in ``classes``."""

    classes: ClassTexts
    num_tokens: int
    num_answer: int = 1
    place: tuple[int, ...] = ()
    """Where in the run it is seen, which determines its crop; empty: no random crop."""

    together: tuple[ClassTexts, ...] = field(default=())
    """The classes of all tasks in the step; empty: its own."""

    def read(self) -> np.ndarray:
        """Its pixels, (3, H, W)."""
        from moram_dist.data.pictures import at

        image = self.pictures.open(self.name)
        if not self.place:
            return self.pixels.for_test(image)
        return self.pixels.for_training(image, at(*self.place))


@dataclass(frozen=True, kw_only=True)
class StepPictures(MicroBatch):
    """A rank's pictures of a step."""

    text_to_image_B: Tensor
    """``TaskRules.text_to_image`` of each picture's task."""

    smoothing_B: Tensor
    """``TaskRules.label_smoothing`` of each."""

    finds_pictures: bool
    """Whether some picture of the step, on any rank, has a text_to_image weight."""

    def last(self, count: int) -> StepPictures:
        """The last ``count`` of the pictures, with all texts."""
        rows = slice(-count, None)
        own = {name: self.inputs[name][rows] for name in ("pixel_values", "among_BC")}
        return replace(
            self,
            inputs=self.inputs | own,
            labels=self.labels[rows],
            rows=self.rows[rows],
            text_to_image_B=self.text_to_image_B[rows],
            smoothing_B=self.smoothing_B[rows],
        )
