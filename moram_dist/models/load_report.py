"""Check that the weights of a base fill the model that its config.json describes.

transformers fills missing tensors with random numbers and says so in a report that is easy to miss.
Here the report is decisive, before any work: a load on the meta device, where tensors have names
and shapes but no content, renames and converts tensors as a real load does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from moram_dist.models.folder import BaseError, because, header, weight_files

BUFFERS = re.compile(
    r"(^|\.)(inv_freq|rotary_emb\.(cos|sin)_cached|position_ids|token_type_ids|masked_bias"
    r"|embed_positions\.weights|_extra_state)$"
)
"""Constants that older versions saved with the weights and that models now compute."""

MASK = re.compile(r"(^|\.)(attn|attention)\.(bias|causal_mask)$")
"""Likewise a causal mask, if it has four dimensions."""

ROWS_AT_ONCE = 4096


def check_weights(model: Any, folder: Path, name: str) -> None:
    """Compare names and shapes in a folder's weight files with a model's.

    Args:
        model: with the configuration and the class to load; it may be on the meta device. It is
            not changed.
        folder: with its files.
        name: of the base, for messages.

    Raises:
        InputError: a file is damaged, or tensors are missing, unexpected or of another shape; gives
            one of them and their number.
    """
    holder: dict[str, Path] = {}
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder, name):
        held = header(path, name)
        tensors |= held
        holder |= dict.fromkeys(held, path)
    _refuse_integers(model, tensors, name)
    try:
        _, report = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(tensors),
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # a model's own conversion may raise anything on wrong shapes
        raise BaseError(name, f"its weights do not fit config.json: {because(error)}") from None
    refuse(report, model, tensors, name)
    _refuse_two_where_tied(model, holder, name)


def refuse(report: Mapping[str, Any], model: Any, tensors: Mapping[str, Tensor], name: str) -> None:
    """Judge a load report of transformers.

    Args:
        report: sets of names, and for ``mismatched_keys`` of (name, shape in the file, shape of the
            model).
        model: the loaded model.
        tensors: the tensors in the files, as far as known.
        name: of the base.

    Raises:
        InputError: a tensor is missing, unexpected or of another shape.
    """
    kind = type(model).__name__
    mismatched = sorted(report["mismatched_keys"], key=lambda each: each[0])
    if mismatched:
        tensor, found, wanted = mismatched[0]
        raise BaseError(
            name,
            f"{tensor} is {_shape(found)} in the weights and {_shape(wanted)} by config.json "
            f"({len(mismatched)} such); take both from one version of the model",
        )
    missing = sorted(report["missing_keys"])
    further = sorted(t for t in report["unexpected_keys"] if not _known(t, tensors.get(t)))
    if missing:
        other = f"; they hold {further[0]}, which it does not have" if further else ""
        raise BaseError(
            name,
            f"its weights do not fill {kind}: {missing[0]} is missing ({len(missing)} of "
            f"{len(model.state_dict())}){other}; give the whole model, as its publisher saved it",
        )
    if further:
        raise BaseError(
            name,
            f"its weights hold {further[0]}, which {kind} does not have ({len(further)} such): "
            "config.json is of another model, or the weights are quantised or adapted",
        )
    if report["error_msgs"]:
        raise BaseError(name, because(ValueError(report["error_msgs"][0])))


def _known(tensor: str, content: Tensor | None) -> bool:
    """Whether an unexpected tensor is one that current models do not need."""
    if MASK.search(tensor):
        return content is not None and content.dim() == 4
    return bool(BUFFERS.search(tensor))


def _refuse_integers(model: Any, tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises InputError for integer weights, which transformers would load unchanged."""
    counts = {_last(t) for t, own in model.state_dict().items() if not own.is_floating_point()}
    for tensor, content in tensors.items():
        if content.is_floating_point() or _known(tensor, content):
            continue
        if _last(tensor) not in counts:
            raise BaseError(
                name,
                f"{tensor} is of {str(content.dtype).removeprefix('torch.')}: quantised weights "
                "are not supported; give the original weights",
            )


def _last(tensor: str) -> str:
    """A tensor's name within its module, which stays the same if the module is renamed."""
    return tensor.rpartition(".")[2]


def _refuse_two_where_tied(model: Any, holder: Mapping[str, Path], name: str) -> None:
    """Raises InputError where config.json ties two tensors that differ in the files.

    Under ZeRO-3 transformers cannot tell, and would drop one of them.
    """
    for one, other in getattr(model, "all_tied_weights_keys", {}).items():
        if one in holder and other in holder and not _same(one, other, holder):
            raise BaseError(
                name,
                f"config.json ties {one} to {other}, and the weights hold two that differ; set "
                "tie_word_embeddings to what the model was trained with",
            )


def _same(one: str, other: str, holder: Mapping[str, Path]) -> bool:
    with safe_open(holder[one], "pt") as a, safe_open(holder[other], "pt") as b:
        first, second = a.get_slice(one), b.get_slice(other)
        if first.get_shape() != second.get_shape():
            return False
        return all(
            torch.equal(first[start : start + ROWS_AT_ONCE], second[start : start + ROWS_AT_ONCE])
            for start in range(0, first.get_shape()[0], ROWS_AT_ONCE)
        )


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape)) or "a single number"
