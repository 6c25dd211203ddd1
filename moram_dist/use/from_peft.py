"""Read a LoRA in PEFT's format, without PEFT: a JSON file and named tensors.

Only a plain LoRA on linears is one sum of rank-1 terms; everything else is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from moram_dist.adapters.adapter import sizes
from moram_dist.adapters.lora import Terms
from moram_dist.families.targets import find_linears
from moram_dist.files import sha256
from moram_dist.reading import read_object
from moram_dist.registry import InputError
from moram_dist.tasks.names import task_name
from moram_dist.use.lora import Lora
from moram_dist.use.peft_folder import CONFIG, WEIGHTS

BASE = "base_model_name_or_path"
READ = ("peft_type", "lora_alpha", "use_rslora", "alpha_pattern", BASE)
WITHOUT_EFFECT = (
    *("auto_mapping", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out"),
    *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version"),
    *("qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules"),
    "task_type",
)
"""Settings that do not change what A and B add: of training, or told by the tensors themselves."""

NO_BIAS = ("bias", "none")

KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Initial values that leave the base's weights as they are; PiSSA and others move them."""

TENSOR = re.compile(r"base_model\.model\.(?P<linear>.+)\.lora_(?P<part>[AB])\.weight")


@dataclass(frozen=True, kw_only=True)
class PeftSettings:
    """What ``adapter_config.json`` says of a plain LoRA."""

    folder: Path
    name: str
    """The folder's name: that of the task."""

    base: str | None
    """Folder or hub id of the model that it was trained on, if it says so."""

    alpha: float
    alpha_pattern: Mapping[str, float]
    """Alphas of linears whose name ends like a key, a regular expression."""

    is_rank_stabilised: bool

    def scale(self, linear: str, rank: int) -> float:
        """The factor on B A of a linear, given by its full name and rank."""
        found = (
            alpha
            for pattern, alpha in self.alpha_pattern.items()
            if re.match(rf"(.*\.)?({pattern})$", linear)
        )
        alpha = next(found, self.alpha)
        return alpha / math.sqrt(rank) if self.is_rank_stabilised else alpha / rank


@dataclass(frozen=True, kw_only=True)
class PeftLora:
    """A LoRA, checked to fit its base."""

    settings: PeftSettings
    terms: Mapping[str, Terms]
    """A and B of each linear by full name, with the scale in B: the update is ``x A^T B``."""

    sha256: str
    """Of the file of tensors."""

    @property
    def name(self) -> str:
        """The task's name."""
        return self.settings.name

    @property
    def rank(self) -> int:
        """The largest of its linears."""
        return max(len(A) for A, _ in self.terms.values())

    @property
    def lora(self) -> Lora:
        """For a model that has it instead of a memory."""
        alike = Lora(terms=self.terms, alpha=0.0)
        return replace(alike, alpha=float(alike.rank))  # the scale is in B


def read_settings(folder: Path) -> PeftSettings:
    """Read ``adapter_config.json``.

    Raises:
        InputError: it is missing or broken, or the adapter is not a plain LoRA.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: holds no {CONFIG}, so it is no adapter of PEFT")
    values = read_object(path)
    _check_plain(values, path)
    pattern = values.get("alpha_pattern") or {}
    alpha: Any = values.get("lora_alpha")
    base = values.get(BASE)
    if not isinstance(pattern, dict):
        raise InputError(f"{path}: alpha_pattern must map names to numbers")
    for key, value in {"lora_alpha": alpha, **pattern}.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{path}: {key} must be a number, got {value!r}")
        try:
            re.compile(key)
        except re.error:
            raise InputError(f"{path}: alpha_pattern: {key!r} is no regular expression") from None
    if base is not None and not isinstance(base, str):
        raise InputError(f"{path}: {BASE} must be a text, got {base!r}")
    return PeftSettings(
        folder=folder,
        name=task_name(Path(os.path.abspath(folder)).name, str(folder)),
        base=base or None,
        alpha=alpha,
        alpha_pattern=pattern,
        is_rank_stabilised=bool(values.get("use_rslora")),
    )


def _check_plain(values: Mapping[str, Any], path: Path) -> None:
    """Refuse all that is more than B A on linears, also if this version of PEFT did not exist."""
    kind = values.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{path}: peft_type is {kind!r}; only a LORA can become a memory")
    start = values.get("init_lora_weights", True)
    if start not in KEEPS_BASE:
        raise InputError(
            f"{path}: init_lora_weights {start!r} changed the base's own weights; convert the "
            "adapter to a plain LoRA first (path_initial_model_for_weight_conversion of PEFT)"
        )
    for key, value in values.items():
        if key not in READ and key not in WITHOUT_EFFECT and value and (key, value) != NO_BIAS:
            raise InputError(
                f"{path}: {key} is {value!r}; only a plain LoRA on linears can become a memory"
            )


def read_lora(settings: PeftSettings, model: nn.Module, base: str) -> PeftLora:
    """Read the tensors of a LoRA, and check that they fit a base.

    Args:
        settings: from ``read_settings``.
        model: the base or its skeleton.
        base: its name, for messages.

    Raises:
        InputError: a file is missing or damaged, holds something else than A and B of linears, or
            is of another base.
    """
    path = settings.folder / WEIGHTS
    if not path.is_file():
        other = " (an adapter_model.bin is not read: unpickling runs code)"
        has_other = (settings.folder / "adapter_model.bin").exists()
        raise InputError(f"{settings.folder}: holds no {WEIGHTS}{other if has_other else ''}")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read as tensors: {error}") from None
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = TENSOR.fullmatch(key)
        if found is None:
            raise InputError(f"{path}: holds {key}, which is no A or B of a linear")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(f"{path}: {key} holds something that is no finite number")
        parts.setdefault(found["linear"], {})[found["part"]] = tensor
    if not parts:
        raise InputError(f"{path}: holds no tensors")
    _check_fit(parts, model, f"{path} does not fit --model {base}")
    terms = {}
    for name, part in parts.items():
        A, B = part["A"].float(), part["B"].T.float()
        terms[name] = (A, B * settings.scale(name, len(A)))
    return PeftLora(settings=settings, terms=terms, sha256=sha256(path))


def _check_fit(parts: Mapping[str, Mapping[str, Tensor]], model: nn.Module, where: str) -> None:
    there = dict(model.named_modules())
    can_have = {*find_linears(model, "all-linear")}
    for name in parts:
        if not isinstance(there.get(name), nn.Linear | Conv1D):
            raise InputError(f"{where}: it has no linear {name}")
        if name not in can_have:
            raise InputError(f"{where}: its {name} cannot have a memory")
    for name, part in parts.items():
        if part.keys() != {"A", "B"}:
            raise InputError(f"{where}: {name} has one of A and B")
        num_in, num_out = sizes(there[name])
        A, B = [*part["A"].shape], [*part["B"].shape]
        if A != [*A[:1], num_in] or B != [num_out, *A[:1]] or 0 in A:
            raise InputError(
                f"{where}: {name} has {num_in} inputs and {num_out} outputs there, and A is "
                f"{A} and B {B}"
            )
