"""SARI: the words that a simplification keeps, deletes and adds, given source and reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

from moram_dist.metrics.metric import METRICS, Answer


@METRICS.register("sari")
def sari(answer: Answer) -> float:
    """Mean of keep F1, delete precision and add F1 over n-grams of 1 to 4 words, 0 to 100.

    The source is the full prompt with the instruction. Texts are lower-cased and split by
    sacrebleu's ``13a`` tokeniser. Keep and delete work on counts, add on sets; 0 / 0 is 1. This is
    the rule of the Hugging Face metric ``sari`` with one reference. An empty prediction is not
    special: it keeps and adds nothing, but gets its delete precision.

    The reference itself does not always score 100. If the source contains an n-gram s times and
    the reference r times, s > r > 0, it is correct to delete it s - r times, but the rule counts
    only max(s - 2r, 0) of them.

    Source: Xu et al. 2016 (TACL Q16-1029); 20Minuten in TRACE, arXiv:2310.06762.
    """
    tokenise = _tokeniser()
    source, prediction, reference = (
        tokenise(text.lower()).split(" ")
        for text in (answer.prompt, answer.prediction, answer.reference)
    )
    parts = [
        part
        for n in range(1, 5)
        for part in _keep_delete_add(
            _ngrams(source, n), _ngrams(prediction, n), _ngrams(reference, n)
        )
    ]
    return 100.0 * sum(parts) / len(parts)


@cache
def _tokeniser() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _keep_delete_add(
    source: Counter[tuple[str, ...]],
    prediction: Counter[tuple[str, ...]],
    reference: Counter[tuple[str, ...]],
) -> tuple[float, float, float]:
    """The three parts, 0 to 1, from the counts of each text's n-grams of one size."""
    kept, to_keep = source & prediction, source & reference
    keep = _f1(
        _mean_share(kept & reference, kept),
        _ratio((kept & reference).total(), to_keep.total()),
    )
    deleted = source - prediction
    delete = _mean_share(deleted - reference, deleted)

    added, to_add = prediction.keys() - source.keys(), reference.keys() - source.keys()
    add = _f1(_ratio(len(added & to_add), len(added)), _ratio(len(added & to_add), len(to_add)))
    return keep, delete, add


def _mean_share(good: Counter[tuple[str, ...]], all_: Counter[tuple[str, ...]]) -> float:
    """The fraction of each n-gram's count that is good, averaged over the n-grams of ``all_``."""
    return sum(good[gram] / count for gram, count in all_.items()) / len(all_) if all_ else 1.0


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0
