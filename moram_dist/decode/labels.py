"""Score the labels of a closed set by log-likelihood, without generation.

Shape letters: B examples, L labels, P tokens of the padded prefix, S tokens of all labels together,
V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moram_dist.adapters.prompts import asking, reads_prompts
from moram_dist.data.candidates import Candidates
from moram_dist.data.encode import plain
from moram_dist.data.stream import IGNORED, pad_left
from moram_dist.decode.attention import EAGER, FLASH, SDPA, is_built_in, taking_masks
from moram_dist.decode.cache import RoomyCache
from moram_dist.tasks.task import Task

WORTH_A_PASS = 256
"""A common beginning of the prompts is read once, in a separate pass, if that saves at least this
number of tokens."""


@dataclass(frozen=True)
class LabelScores:
    """A model's scores for each label after one prompt."""

    sums: dict[str, float]
    """Label -> log-likelihood of its tokens and EOS, in nats."""

    means: dict[str, float]
    """The same divided by the number of tokens, so that longer labels have no disadvantage."""


def best(scores: dict[str, float]) -> str:
    """The label with the largest score; among equal ones the first in the set."""
    return max(scores, key=lambda label: scores[label])


LOGIT_BYTES = 2**32
"""Most bytes of the logits of a pass."""


def rows_of_labels(
    model: nn.Module, tokenizer: Any, task: Task, longest: int, most_tokens: int
) -> int:
    """How many prompts of a task fit one pass over all of its labels; at least 1.

    Args:
        model: language model.
        tokenizer: of the model.
        task: with labels.
        longest: tokens of its longest prompt.
        most_tokens: of all rows together, since a cache may keep them.
    """
    after = sum(len(plain(tokenizer, label)) + 2 for label in task.labels)  # space before, EOS
    config: Any = model.config
    numbers = (after + 1) * config.get_text_config().vocab_size
    size: int = next(model.parameters()).element_size()
    return max(1, min(most_tokens // (longest + after), LOGIT_BYTES // (numbers * size)))


Passes = Iterable[tuple[Tensor, Tensor]]
"""For each label the logits (B, T, V) at its positions, and its targets (B, T), ``IGNORED`` where
there are none. Tensors may be computed lazily."""


@torch.no_grad()
def score_labels(
    model: nn.Module, choices: Sequence[Candidates], labels: Sequence[str], passes: Passes
) -> list[LabelScores]:
    """Log p(label, EOS | prompt) of each label, for a batch of prompts.

    Args:
        model: language model in eval mode.
        choices: the batch.
        labels: the labels of each choice's tails, in that order.
        passes: of ``model`` over ``choices``.
    """
    columns = []
    with asking(model, [one.prefix for one in choices]), taking_masks(model):
        for label, (logits_BTV, targets_BT) in zip(labels, passes, strict=True):
            learned_BT = targets_BT != IGNORED
            # In double precision, sums over tokens add no rounding to that of the logits.
            log_p_BTV = logits_BTV.double().log_softmax(-1)
            gathered = log_p_BTV.gather(-1, targets_BT.clamp(min=0)[..., None])
            sums_B = (gathered[..., 0] * learned_BT).sum(1)
            means_B = sums_B / learned_BT.sum(1)
            columns.append((label, sums_B.tolist(), means_B.tolist()))
    return [
        LabelScores(
            {label: sums[i] for label, sums, _ in columns},
            {label: means[i] for label, _, means in columns},
        )
        for i in range(len(choices))
    ]


def behind_prompts(
    model: nn.Module,
    choices: Sequence[Candidates],
    pad_id: int,
    *,
    max_prompt_tokens: int,
    synced: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Passes of a causal model over labels after their prompts, all labels in one row if possible.

    Args:
        model: language model in eval mode.
        choices: the batch.
        pad_id: the pad token.
        max_prompt_tokens: the longest prompt of the task.
        synced: ranks keep step, so every batch of a task takes the same number of forward passes
            (one, or one per label).
    """
    longest = max_prompt_tokens + max(len(tail) for one in choices for tail in one.tails)
    if not can_share_prefix(model, longest):
        return _one_by_one(model, choices, pad_id)
    # With adapters that read prompts, even the beginning's states depend on the whole prompt.
    apart = not (synced or reads_prompts(model))
    return _together(model, choices, pad_id, start=_begin_alike(model, choices) if apart else 0)


def can_share_prefix(model: nn.Module, longest: int) -> bool:
    """Whether all labels of a prompt can share one row without seeing each other.

    That needs a custom attention mask (see ``taking_masks``) and custom positions. Models that
    encode order otherwise (ALiBi, recurrent state), or whose window is shorter than ``longest``
    tokens, would not see each label directly after its prompt.
    """
    config: Any = model.config
    config = config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    return (
        config._attn_implementation in (EAGER, SDPA, FLASH)
        and not is_built_in(model)
        and "position_ids" in inspect.signature(type(model).forward).parameters
        and not getattr(config, "alibi", False)
        and not getattr(model, "_is_stateful", False)
        and layers <= {"full_attention", "sliding_attention"}
        and (window is None or longest <= window)
    )


def _begin_alike(model: nn.Module, choices: Sequence[Candidates]) -> int:
    """Number of tokens that all prompts begin with; 0 if a separate pass would not pay off."""
    prefixes = [one.prefix for one in choices]
    columns = zip(*prefixes, strict=False)  # up to the length of the shortest
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    start = min(alike, min(map(len, prefixes)) - 1)  # the first logits need a token that is left
    return start if start * (len(choices) - 1) >= WORTH_A_PASS and RoomyCache.of(model) else 0


def _together(
    model: nn.Module, choices: Sequence[Candidates], pad_id: int, *, start: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets of each label, from one pass over rows of a prompt and all its labels.

    A label's tokens see the prompt and each other, and their positions continue the prompt's, so
    the result is the same as for each label alone. The prompt is computed once, its first
    ``start`` tokens once for all examples.
    """
    cached: dict[str, Any] = {}
    if start:
        cached = {"past_key_values": RoomyCache.of(model), "use_cache": True}
        _logits(model, 1, input_ids=torch.tensor([choices[0].prefix[:start]]), **cached)
        cached["past_key_values"].batch_repeat_interleave(len(choices))
    prefix_BP, mask_BP = pad_left([one.prefix[start:] for one in choices], pad_id)
    blocks = [tails_of(choices, label, pad_id) for label in range(len(choices[0].tails))]
    widths = [inputs.shape[1] for inputs, _ in blocks]
    positions_BP = (mask_BP.cumsum(1) - 1).clamp(min=0)
    after_S = torch.cat([torch.arange(width) for width in widths])
    seen = _who_sees_whom(mask_BP, widths, model.dtype)  # type: ignore[arg-type]
    logits = _logits(
        model,
        sum(widths) + 1,
        input_ids=torch.cat([prefix_BP, *(inputs for inputs, _ in blocks)], 1),
        attention_mask=F.pad(seen, (start, 0)),  # everything sees the common beginning
        position_ids=torch.cat([positions_BP, mask_BP.sum(1, keepdim=True) + after_S], 1) + start,
        **cached,
    )
    place = 1
    for (_, targets), width in zip(blocks, widths, strict=True):
        yield (
            torch.cat([logits[:, :1], logits[:, place : place + width]], 1),
            targets.to(logits.device),
        )
        place += width


def _one_by_one(
    model: nn.Module, choices: Sequence[Candidates], pad_id: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets of each label, from one pass per label over whole prompts."""
    prefix_BP, mask_BP = pad_left([one.prefix for one in choices], pad_id)
    for label in range(len(choices[0].tails)):
        inputs, targets = tails_of(choices, label, pad_id)
        mask = torch.cat([mask_BP, torch.ones_like(inputs)], 1)
        named = {"input_ids": torch.cat([prefix_BP, inputs], 1), "attention_mask": mask}
        if "position_ids" in inspect.signature(type(model).forward).parameters:
            named["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        logits = _logits(model, targets.shape[1], **named)
        yield logits, targets.to(logits.device)


def _logits(model: nn.Module, last: int, **inputs: Any) -> Tensor:
    """Logits at the last ``last`` positions, (B, last, V)."""
    device = next(iter(model.parameters())).device
    named = {"use_cache": False} | inputs
    named |= {k: value.to(device) for k, value in inputs.items() if isinstance(value, Tensor)}
    if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        # Indices, not a number: with a slice, the head computes one product per row, far slower.
        width = inputs["input_ids"].shape[1]
        named["logits_to_keep"] = torch.arange(width - last, width, device=device)
    return model(**named).logits[:, -last:]


def tails_of(choices: Sequence[Candidates], label: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """One label of each example, padded on the right.

    Returns:
        Inputs (B, T), without the last token, from which nothing is predicted; targets (B, T + 1),
        ``IGNORED`` in padding.
    """
    tails = [one.tails[label] for one in choices]
    longest = max(len(tail) for tail in tails)
    inputs = torch.full((len(tails), longest - 1), pad_id)
    targets = torch.full((len(tails), longest), IGNORED)
    for i, tail in enumerate(tails):
        inputs[i, : len(tail) - 1] = torch.tensor(tail[:-1])
        targets[i, : len(tail)] = torch.tensor(tail)
    return inputs, targets


def _who_sees_whom(mask_BP: Tensor, widths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, P + S, P + S): 0 where a row's token sees a column's, else the minimum.

    Every token sees the prompt tokens before it without padding; a label's tokens also see those
    before them in their label. Padding sees nothing: the finite minimum keeps its softmax finite.
    """
    num_prefix = mask_BP.shape[1]
    owner = torch.cat(
        [torch.full((width,), i) for i, width in enumerate([num_prefix, *widths])]
    )  # 0 is the prefix
    size = len(owner)
    own = owner[:, None] == owner[None, :]
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    real = torch.ones(len(mask_BP), size, dtype=torch.bool)
    real[:, :num_prefix] = mask_BP.bool()
    seen = causal & (own | (owner == 0)) & real[:, None, :]
    least = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, least)[:, None]
