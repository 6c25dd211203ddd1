"""RAIL: ridge regression on features of the frozen base, joined with its zero-shot answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from moram_dist.config import MethodConfig
from moram_dist.decode.classes import FUSION, Texts
from moram_dist.families import family_of_model
from moram_dist.families.clip import Clip
from moram_dist.methods.method import METHODS, ExampleLosses, Linears, Method
from moram_dist.recognise import PromptFeatures
from moram_dist.registry import InputError
from moram_dist.section import section
from moram_dist.tasks.task import Benchmark, Example, Task


@section
class RailConfig(MethodConfig):
    """Settings of ``rail``. Defaults: the published ones."""

    hidden: Annotated[int, Field(ge=1, le=2**20)] = 15_000
    """rail: random features of a picture."""

    ridge: Annotated[float, Field(gt=0, ge=1e-12, le=1e12)] = 0.1
    """rail: weight of the regression's penalty."""

    fusion: Annotated[float, Field(ge=0, le=1)] = 0.9
    """rail: weight of the regression beside the base's probabilities, in [0, 1]."""


AT_ONCE = 8192
"""Training pictures whose hidden features are computed together: 1 GB for 15,000 of each."""


@METHODS.register("rail")
class Rail(Method):
    """Primal RAIL, solved over all tasks so far, which equals the paper's recursion.

    A picture's unit-length feature is projected at random and rectified; ridge regression maps it
    to one-hot classes of all tasks so far. A picture that the base alone puts into a class that was
    learned is answered by ``fusion`` times the regression plus ``1 - fusion`` times the base's
    probabilities, over the classes among which it is to be answered; every other picture is left to
    the base.

    Training pictures are read once, without random crops. A task's memory file holds their features
    rather than sums: with few shots that is smaller, and does not depend on ``hidden``.

    Source: Xu et al. 2024, arXiv:2406.18868.
    """

    Config = RailConfig
    config: RailConfig
    trains = False
    reads_features = True

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """Join the model's class logits with the regression."""
        family = family_of_model(model)
        if not isinstance(family, Clip):
            raise InputError(
                f"--method rail answers pictures by classes: --model must be a CLIP, and this "
                f"{type(model).__name__} is none"
            )
        self.num_features = family.num_features
        self.classes: dict[Texts, int] = {}
        """Column of each class, in the order of learning."""
        self.features_ND = torch.zeros(0, self.num_features)
        self.columns_N = torch.zeros(0, dtype=torch.long)
        self._weights_MC: Tensor | None = None
        self._read: dict[str, Tensor] = {}
        setattr(model, FUSION, self.fused)

    def training_data(self, benchmark: Benchmark, i: int) -> Sequence[tuple[Task, Example]]:
        """No examples: it takes no steps."""
        return ()

    def learns(self, benchmark: Benchmark, i: int) -> bool:
        """Always: in closed form."""
        return True

    def read_features(self, i: int, task: Task, features: PromptFeatures) -> None:
        """Keep the features of the task's training pictures, and its classes."""
        labels = task.train_labels or task.labels
        texts = dict(zip(task.labels, task.texts, strict=True))
        label_N = [labels.index(example.references[0]) for example in task.train]
        said = "\0".join(texts[label][0] for label in labels)
        self._read = {
            "features": features.mean_ND.float(),
            "labels": torch.tensor(label_N, dtype=torch.float32),  # memory files hold floats only
            "texts": torch.tensor([*said.encode()], dtype=torch.float32),
        }

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """The task's features, labels and texts of its classes."""
        self.load_task(i, self._read)
        return self._read

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """Of any number of pictures and classes."""
        return {"features": (-1, -1), "labels": (-1,), "texts": (-1,)}

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Add the task's pictures to the regression."""
        texts = bytes(tensors["texts"].int().tolist()).decode().split("\0")
        for text in texts:
            self.classes.setdefault((text,), len(self.classes))
        columns_C = torch.tensor([self.classes[(text,)] for text in texts])
        self.features_ND = torch.cat([self.features_ND, tensors["features"].cpu().float()])
        self.columns_N = torch.cat([self.columns_N, columns_C[tensors["labels"].cpu().long()]])
        self._weights_MC = None

    def fused(self, images_BD: Tensor, logits_BC: Tensor, classes: Sequence[Texts]) -> Tensor:
        """Scores (B, C) of the classes: the base's probabilities, joined with the regression.

        Args:
            images_BD: features of pictures, of unit length.
            logits_BC: the base's.
            classes: the texts of each of the C classes.
        """
        known = torch.tensor([self.classes.get(texts[:1], -1) for texts in classes])
        found_BC = logits_BC.double().softmax(-1)
        learned_C = (known >= 0).to(logits_BC.device)
        mine_B = learned_C[found_BC.argmax(1)]
        if not mine_B.any():
            return found_BC
        ours = self._hidden(images_BD[mine_B].cpu()) @ self._weights()
        ours_BC = ours[:, known.clamp(min=0)].where(known >= 0, 0.0).to(found_BC)
        share = self.config.fusion
        found_BC[mine_B] = (1 - share) * found_BC[mine_B] + share * ours_BC
        return found_BC

    def _hidden(self, x_ND: Tensor) -> Tensor:
        """(N, M) in float64: rectified random projections of unit-length features (N, D)."""
        return (x_ND.double() @ self._projection_DM).relu()

    @cached_property
    def _projection_DM(self) -> Tensor:
        """Drawn as torch draws the weights of a linear layer."""
        generator = torch.Generator().manual_seed(self.seed)
        bound = 1 / math.sqrt(self.num_features)
        drawn_DM = torch.empty(self.num_features, self.config.hidden, dtype=torch.float64)
        return drawn_DM.uniform_(-bound, bound, generator=generator)

    def _weights(self) -> Tensor:
        """``(H^T H + ridge I)^-1 H^T Y``, (M, C), or the same in the smaller of its two forms."""
        if self._weights_MC is None:
            count, size = len(self.features_ND), self.config.hidden
            eye = torch.eye(min(count, size), dtype=torch.float64) * self.config.ridge
            if count < size:
                h_NM, y_NC = self._hidden(self.features_ND), self._one_hot(self.columns_N)
                self._weights_MC = h_NM.T @ torch.linalg.solve(h_NM @ h_NM.T + eye, y_NC)
            else:
                products_MM, sums_MC = eye, eye.new_zeros(size, len(self.classes))
                pieces = (self.features_ND.split(AT_ONCE), self.columns_N.split(AT_ONCE))
                for features_ND, columns_N in zip(*pieces, strict=True):
                    h_NM = self._hidden(features_ND)
                    products_MM.addmm_(h_NM.T, h_NM)
                    sums_MC.addmm_(h_NM.T, self._one_hot(columns_N))
                self._weights_MC = torch.linalg.solve(products_MM, sums_MC)
        return self._weights_MC

    def _one_hot(self, columns_N: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(columns_N, len(self.classes)).double()
