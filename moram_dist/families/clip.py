"""CLIP: a picture is a prompt, a class is an answer, and the class whose text is nearest is chosen.

Training runs both towers in one call per step, since the pictures of a step are compared with each
other. A rank therefore reads its part of a step in one forward pass.

Shape letters: B pictures, C classes, L tokens of a text, D features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import bare
from moram_dist.comm import env
from moram_dist.data.ahead import read_all
from moram_dist.data.stream import IGNORED, MicroBatch
from moram_dist.decode import LabelScores
from moram_dist.decode.classes import (
    FUSION,
    class_features,
    image_features,
    knowing,
    pad_texts,
    similarity,
)
from moram_dist.families.family import FAMILIES, Family, Tower
from moram_dist.families.pictures import EncodedPicture, PictureReader, StepPictures
from moram_dist.losses import smoothed_cross_entropy, text_to_image
from moram_dist.recognise import PromptFeatures
from moram_dist.registry import InputError
from moram_dist.tasks.task import Decoding, Example, Task

THREADS = 4
"""Threads that open the pictures of a batch."""

BEST = 5
"""Number of classes with the largest logits that a prediction keeps."""


@FAMILIES.register("clip")
@dataclass(frozen=True)
class Clip(Family):
    """``CLIPModel``: two towers, one for pictures and one for texts."""

    kind = "picture and text"
    loads_sharded = False  # ZeRO-3 cannot shard logit_scale, which has no dimension
    splits_steps = False
    can_be_planned = True
    reads_pictures = True

    image_size: int = 0
    """Height and width of a picture in pixels."""

    picture_tokens: int = 1
    """Tokens of a picture: its patches and the class token."""

    positions: int = 0
    """Longest text, in tokens."""

    num_features: int = 0
    """Size of the common space of pictures and texts."""

    @classmethod
    def accepts(cls, architecture: Any) -> bool:
        """Models of type ``clip``; the towers alone are no bases."""
        return getattr(architecture, "model_type", None) == "clip"

    @classmethod
    def of(cls, architecture: Any) -> Clip:
        """With the sizes of this model."""
        vision, text = architecture.vision_config, architecture.text_config
        tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        positions = text.max_position_embeddings
        return cls(vision.image_size, tokens, positions, architecture.projection_dim)

    def auto_class(self) -> Any:
        """The class with both towers and their projections."""
        from transformers import AutoModel

        return AutoModel

    def with_tokenizer(self, tokenizer: Any, source: str) -> PictureReader:
        """The tokenizer together with the rules for pictures."""
        from transformers.utils import cached_file

        from moram_dist.data.preprocessor import FILE, read_pixels

        path = cached_file(source, FILE, _raise_exceptions_for_missing_entries=False)
        pixels = read_pixels(Path(source) if path is None else Path(path).parent)
        if pixels.size != self.image_size:
            raise InputError(
                f"--model {source}: {FILE} makes pictures of {pixels.size} pixels, and the model "
                f"reads {self.image_size}"
            )
        return PictureReader(tokenizer, pixels, most=self.positions)

    def prepared(self, model: Any) -> Any:
        """Make ``logit_scale`` a buffer: every protocol freezes it, and ZeRO-3 cannot shard it."""
        scale = model.logit_scale.detach()
        del model.logit_scale
        model.register_buffer("logit_scale", scale)
        return model

    # Structure.

    def heads(self, model: nn.Module) -> Collection[str]:
        """The projections into the common space."""
        return "visual_projection", "text_projection"

    def trial_inputs(
        self, architecture: Any, num_tokens: int, *, masked: bool = False
    ) -> dict[str, Any]:
        """One text and one picture."""
        size = architecture.vision_config.image_size
        length = min(num_tokens, architecture.text_config.max_position_embeddings)
        return {
            "input_ids": torch.ones(1, length, dtype=torch.long, device="meta"),
            "pixel_values": torch.zeros(1, 3, size, size, device="meta"),
        }

    def towers(self, model: Any) -> list[Tower]:
        """Pictures first, as in a forward pass."""
        return [Tower(model.vision_model, True), Tower(model.text_model, False)]

    def reads_source(self, name: str) -> bool:
        """Whether the linear is in the tower of pictures."""
        return name.startswith("vision_model.")

    def tokens_of(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
        """Tokens of all texts, or of all pictures."""
        pixels = named.get("pixel_values")
        if pixels is not None:
            return len(pixels) * self.picture_tokens
        ids: Tensor = named["input_ids"]
        return ids.numel()

    # Examples.

    def encode_training(self, tokenizer: Any, example: Example, task: Task) -> EncodedPicture:
        """The picture's name and the place of its class among the task's own."""
        classes = tokenizer.classes(task)
        return EncodedPicture(
            id=example.id,
            name=example.prompt,
            pictures=tokenizer.pictures(task),
            pixels=tokenizer.pixels,
            label=classes.labels.index(example.references[0]),
            classes=classes,
            num_tokens=self.picture_tokens,
        )

    def encode_question(self, tokenizer: Any, prompt: str, task: Task) -> Sequence[Any]:
        """The picture, as rows of its first channel to its last, (3, H, W)."""
        return list(tokenizer.read(task, prompt))

    def question_fits(self, tokenizer: Any, task: Task, prompt: str) -> bool:
        """True: every picture is resized."""
        return True

    def features(
        self, model: nn.Module, tokenizer: Any, examples: Sequence[Example], task: Task
    ) -> PromptFeatures:
        """Features of the pictures in the bare base, which never change."""
        size = 128
        # Sharded weights need the same number of passes on every rank.
        passes = max(env.gather_objects(-(-len(examples) // size)))
        parts = [torch.zeros(0, self.num_features, dtype=torch.float64)]
        with bare(model):
            for i in range(passes):
                mine = examples[i * size : (i + 1) * size]
                pixels = self._pixels(tokenizer, mine or list(task.test[:1]), task)
                parts.append(image_features(model, pixels)[: len(mine)].double().cpu())
        found_ND = torch.cat(parts)
        return PromptFeatures(found_ND, torch.ones(len(found_ND), dtype=torch.float64))

    # Batches.

    def in_step(
        self, examples: Sequence[EncodedPicture], place: Sequence[int]
    ) -> list[EncodedPicture]:
        """Give each picture the place that determines its crop, and the classes of the step."""
        together = tuple(dict.fromkeys(example.classes for example in examples))
        return [
            replace(example, place=(*place, row), together=together)
            for row, example in enumerate(examples)
        ]

    def blank(self, like: EncodedPicture, pad_id: int) -> EncodedPicture:
        """A picture that is not learned."""
        return replace(like, id="", label=IGNORED, num_answer=0)

    def collate(
        self,
        examples: Sequence[EncodedPicture],
        pad_id: int,
        rows: Sequence[int] | None = None,
    ) -> StepPictures:
        """The pictures, and the texts of all classes of the step's tasks."""
        together = examples[0].together or (examples[0].classes,)
        first, num_classes = {}, 0
        for classes in together:
            first[classes] = num_classes
            num_classes += len(classes.tokens)
        among_BC = torch.zeros(len(examples), num_classes, dtype=torch.bool)
        targets = []
        for b, example in enumerate(examples):
            start = first[example.classes]
            among_BC[b, start : start + len(example.classes.tokens)] = True
            targets.append(IGNORED if example.label == IGNORED else start + example.label)
        ids_CL = pad_texts([ids for classes in together for ids in classes.tokens])
        pixels = read_all(EncodedPicture.read, examples, THREADS)
        return StepPictures(
            inputs={
                "pixel_values": torch.from_numpy(np.stack(pixels)),
                "input_ids": ids_CL,
                "among_BC": among_BC,
            },
            labels=torch.tensor([[IGNORED, target] for target in targets]),
            rows=tuple(rows or range(len(examples))),
            prompts=(),
            lengths=(self.picture_tokens,),
            shared=(num_classes, ids_CL.shape[1]),
            text_to_image_B=_numbers(one.classes.text_to_image for one in examples),
            smoothing_B=_numbers(one.classes.smoothing for one in examples),
            finds_pictures=any(classes.text_to_image for classes in together),
        )

    # Forward.

    def logits(
        self,
        engine: Any,
        model: Any,
        inputs: Mapping[str, Tensor],
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        """Logits (1, B, C) of the classes; -inf for classes of other tasks than the picture's."""
        out = engine(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"])
        logits_BC = similarity(out.image_embeds, out.text_embeds, model.logit_scale)
        return logits_BC.masked_fill(~inputs["among_BC"], -torch.inf)[rows][None]

    def loss(
        self, logits_BPV: Tensor, targets_BP: Tensor, batch: MicroBatch, num_answer_tokens: int
    ) -> Tensor:
        """The mean loss of finding texts, plus the weighted loss of finding pictures.

        Source: the published MoRAM code for X-TAIL, with the weights of the task's protocol.
        """
        assert isinstance(batch, StepPictures)
        logits_BC, targets_B = logits_BPV[0], targets_BP[0]
        learned_B = batch.labels[:, 1] != IGNORED
        smoothing_B, weights_B = (
            env.sent(numbers_B[learned_B], logits_BC.device).to(logits_BC.dtype)
            for numbers_B in (batch.smoothing_B, batch.text_to_image_B)
        )
        if not len(weights_B):  # a rank without pictures
            smoothing_B = weights_B = logits_BC.new_zeros(len(logits_BC))
        total = smoothed_cross_entropy(logits_BC, targets_B, smoothing_B) / num_answer_tokens
        if batch.finds_pictures:
            total = total + text_to_image(logits_BC, targets_B, weights_B)
        return total

    def read(self, model: Any, tokenizer: Any, example: Example, task: Task) -> None:
        """The picture, and the first text of its class."""
        image_features(model, self._pixels(tokenizer, [example], task))
        texts = task.texts[task.labels.index(example.references[0])]
        class_features(model, tokenizer, [texts[:1]])

    # Answers.

    @contextmanager
    def answering(
        self, model: nn.Module, tokenizer: Any, tasks: Sequence[Task], kept: dict[str, Any]
    ) -> Iterator[None]:
        """Compute the features of the tasks' classes once."""
        classes = [texts for task in tasks for texts in task.texts]
        with knowing(model, tokenizer, classes, kept.setdefault("classes", {})):
            yield

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
        """The nearest class; of equally near ones the first. Nothing else can be said."""
        found = self._class_logits(model, tokenizer, examples, task).argmax(1).tolist()
        return [task.labels[c] for c in found]

    def score_labels(
        self,
        model: nn.Module,
        tokenizer: Any,
        examples: Sequence[Example],
        task: Task,
        *,
        synced: bool = False,
    ) -> list[LabelScores]:
        """Log-probabilities of the nearest classes."""
        logits_BC = self._class_logits(model, tokenizer, examples, task)
        log_p_BC = logits_BC.double().log_softmax(-1)
        order_BC = logits_BC.argsort(dim=1, descending=True, stable=True)[:, :BEST]
        scores = []
        for log_p, order in zip(log_p_BC.tolist(), order_BC.tolist(), strict=True):
            one = {task.labels[c]: log_p[c] for c in order}
            scores.append(LabelScores(sums=one, means=one))
        return scores

    def _class_logits(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], task: Task
    ) -> Tensor:
        images_BD = image_features(model, self._pixels(tokenizer, examples, task))
        texts_CD = class_features(model, tokenizer, task.texts)
        logits_BC = similarity(images_BD, texts_CD, model.logit_scale)
        fusion = getattr(model, FUSION, None)
        return logits_BC if fusion is None else fusion(images_BD, logits_BC, task.texts)

    def _pixels(self, tokenizer: Any, examples: Sequence[Example], task: Task) -> Tensor:
        read = read_all(lambda one: tokenizer.read(task, one.prompt), examples, THREADS)
        return torch.from_numpy(np.stack(read))


def _numbers(values: Iterable[float]) -> Tensor:
    return torch.tensor([*values], dtype=torch.float64)
