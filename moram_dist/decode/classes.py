"""Features of classes and pictures of a dual encoder, and the class nearest to each picture.

Shape letters: B pictures, C classes, T texts, L tokens of a text, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moram_dist.comm import env
from moram_dist.data.stream import pad_right

Texts = tuple[str, ...]
"""The texts of one class; its feature is the mean of theirs."""

TEXTS_AT_ONCE = 256

FUSION = "moram_fusion"
"""Attribute of a model whose class logits a method changes: a function of the pictures' features
(B, D), the logits (B, C) and the classes, which returns scores (B, C)."""

ATTRIBUTE = "moram_classes"
"""Attribute of a model whose class features are known: ``Texts`` -> (D,)."""


def similarity(images_BD: Tensor, texts_CD: Tensor, logit_scale: Tensor) -> Tensor:
    """Logits (B, C) of unit-length features, in at least float32."""
    at_least = torch.promote_types(images_BD.dtype, torch.float32)
    scale = logit_scale.to(at_least).exp()
    return images_BD.to(at_least) @ texts_CD.to(at_least).T * scale


def unit(x_ND: Tensor) -> Tensor:
    """Each row divided by its length."""
    return x_ND / x_ND.norm(dim=-1, keepdim=True)


@torch.no_grad()
def image_features(model: Any, pixels_BCHW: Tensor) -> Tensor:
    """Features (B, D) of unit length."""
    device = next(iter(model.parameters())).device
    return unit(model.get_image_features(pixel_values=pixels_BCHW.to(device)).pooler_output)


@contextmanager
def knowing(
    model: Any, tokenizer: Any, classes: Sequence[Texts], known: dict[Texts, Tensor]
) -> Iterator[None]:
    """Context in which the features of ``classes`` are not computed again.

    ``known`` holds features that were computed before and is extended. All ranks enter together:
    each computes a part of them.
    """
    new = [texts for texts in dict.fromkeys(classes) if texts not in known]
    if new:
        known |= dict(zip(new, _features(model, tokenizer, new), strict=True))
    before = getattr(model, ATTRIBUTE, None)
    setattr(model, ATTRIBUTE, known)
    try:
        yield
    finally:
        setattr(model, ATTRIBUTE, before)


def class_features(model: Any, tokenizer: Any, classes: Sequence[Texts]) -> Tensor:
    """Features (C, D) of unit length. Outside of ``knowing``, each rank computes all of them."""
    known = getattr(model, ATTRIBUTE, None) or {}
    if all(texts in known for texts in classes):
        return torch.stack([known[texts] for texts in classes])
    return torch.stack(_means(classes, _encode(model, tokenizer, _flat(classes))))


def _features(model: Any, tokenizer: Any, classes: Sequence[Texts]) -> list[Tensor]:
    """The same, with texts dealt out to ranks, all of which make equally many passes."""
    texts = _flat(classes)
    share = -(-len(texts) // env.world_size())
    padded = texts + texts[:1] * (share * env.world_size() - len(texts))
    mine = padded[env.rank() * share : (env.rank() + 1) * share]
    of_ranks_PTD = env.all_gather(_encode(model, tokenizer, mine))
    return _means(classes, of_ranks_PTD.flatten(0, 1)[: len(texts)])


def _flat(classes: Sequence[Texts]) -> list[str]:
    return [text for texts in classes for text in texts]


@torch.no_grad()
def _encode(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Features (T, D) of unit length."""
    device = next(iter(model.parameters())).device
    parts = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        ids_TL = pad_texts([tokenizer.encode_text(t) for t in texts[start : start + TEXTS_AT_ONCE]])
        parts.append(unit(model.get_text_features(input_ids=ids_TL.to(device)).pooler_output))
    return torch.cat(parts)


def _means(classes: Sequence[Texts], features_TD: Tensor) -> list[Tensor]:
    parts = features_TD.split([len(texts) for texts in classes])
    # The mean of a single text is the text, without rounding.
    return [part[0] if len(part) == 1 else F.normalize(part.mean(0), dim=0) for part in parts]


def pad_texts(texts: Sequence[Sequence[int]]) -> Tensor:
    """Token ids (T, L), padded on the right by each text's own end.

    The text encoder is causal and read at the first end token, so that padding changes nothing.
    """
    longest = max(len(ids) for ids in texts)
    padded = [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in texts]
    return pad_right(padded, 0)[0]
