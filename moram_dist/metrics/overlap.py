"""Metrics for the overlap of words or characters with the reference, 0 to 100."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from moram_dist.metrics.metric import METRICS, Answer
from moram_dist.metrics.subsequence import common_subsequence

_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)

MOST_WORDS = 4_000_000
"""Most words that set-based ROUGE-L compares, summed over pairs of sentences; further pairs are
skipped. Two texts of 64 KiB of ordinary sentences need a quarter of it."""


@METRICS.register("rouge_l_set")
def rouge_l_set(answer: Answer) -> float:
    """Summary-level ROUGE-L F over sets of words, 0 to 100.

    Gives the numbers of the PyPI package ``rouge`` 1.0.1 (``rouge-l``, ``exclusive=True``), not
    those of ``rouge_score``: sentences end at every ``.``, a repeated word counts once, case
    counts, nothing is stemmed. Hits are the distinct words in the longest common subsequences of
    each reference sentence with each predicted sentence.
    P = hits / distinct predicted words, R = hits / distinct reference words and
    F = 2PR / (P + R + 1e-8), so a perfect answer is below 100 by about 5e-7.

    The package recurses once per word, and raises on a text that consists of ``.`` only; here long
    sentences work and such a text scores 0.0 like an empty one. MoRAM's scorer avoids that
    exception with a line break, see ``rouge_l_set_line_break``; here there is none.

    Source: MeetingBank in TRACE, arXiv:2310.06762; rouge 1.0.1.
    """
    return _rouge_l_set(answer.prediction, answer.reference)


@METRICS.register("rouge_l_set_line_break")
def rouge_l_set_line_break(answer: Answer) -> float:
    """``rouge_l_set``, with a line break appended to a prediction that has none.

    After a final ``.`` the line break counts as one more predicted word, the empty one, so that
    even the reference scores below 100. An empty prediction scores 0.0 and gets no line break.

    Source: MeetingBank in the MoRAM and TreeLoRA code for TRACE (``metrics.py``).
    """
    prediction = answer.prediction
    appended = prediction if "\n" in prediction or not prediction else prediction + "\n"
    return _rouge_l_set(appended, answer.reference)


@METRICS.register("rouge_l_set_swapped")
def rouge_l_set_swapped(answer: Answer) -> float:
    """``rouge_l_set`` with prediction and reference swapped.

    The union over sentences is not symmetric, so the value differs slightly.

    Source: MeetingBank in the original TRACE code, which passes the two in this order.
    """
    return _rouge_l_set(answer.reference, answer.prediction)


def _rouge_l_set(hypothesis: str, target: str) -> float:
    predicted, reference = _sentences(hypothesis), _sentences(target)
    if not predicted or not reference:
        return 0.0
    hits = _common_words(reference, predicted)
    precision = len(hits) / len({word for sentence in predicted for word in sentence})
    recall = len(hits) / len({word for sentence in reference for word in sentence})
    return 100.0 * (2.0 * (precision * recall / (precision + recall + 1e-8)))


def _sentences(text: str) -> list[tuple[str, ...]]:
    """Distinct sentences. As in the package, one of spaces only holds one empty word."""
    pieces = dict.fromkeys(" ".join(piece.split()) for piece in text.split(".") if piece)
    return [tuple(piece.split(" ")) for piece in pieces]


def _common_words(
    reference: Sequence[tuple[str, ...]], predicted: Sequence[tuple[str, ...]]
) -> set[str]:
    """The words of the common subsequences of each reference sentence with each predicted one.

    Skips pairs that can add no word, so ordinary texts stay far below ``MOST_WORDS``.
    """
    having: dict[str, list[int]] = {}
    for k, sentence in enumerate(predicted):
        for word in set(sentence):
            having.setdefault(word, []).append(k)
    hits: set[str] = set()
    room = MOST_WORDS
    for sentence in reference:
        new = {word for word in sentence if word in having} - hits
        compared: set[int] = set()
        for word in sorted(new, key=lambda word: len(having[word])):
            for k in having[word]:
                if word in hits:
                    break
                if k in compared:
                    continue
                room -= len(sentence) + len(predicted[k])
                if room < 0:
                    return hits
                compared.add(k)
                hits.update(common_subsequence(sentence, predicted[k]))
    return hits


@METRICS.register("rouge_l_stemmed")
def rouge_l_stemmed(answer: Answer) -> float:
    """ROUGE-L F1 over the whole text, stemmed, 0 to 100.

    Text is lower-cased; everything but the letters a to z and digits separates words; words of more
    than three characters are stemmed (Porter); F1 of the longest common subsequence. A text without
    such words, such as an empty one or one in another script, scores 0.0.

    Source: Lin 2004 (ACL W04-1013), as in the package rouge-score and the SAPT code for SuperNI.
    """
    from rapidfuzz.distance import LCSseq  # imported here: optional, and only scoring needs it

    words = _stemming_tokenizer().tokenize
    predicted, reference = words(answer.prediction), words(answer.reference)
    if not predicted or not reference:
        return 0.0
    number: dict[str, int] = {}  # numbered, so that no two words compare equal by their hash
    texts = [[number.setdefault(word, len(number)) for word in t] for t in (predicted, reference)]
    common = LCSseq.similarity(*texts)
    precision, recall = common / len(predicted), common / len(reference)
    return 100.0 * (2 * precision * recall / (precision + recall)) if common else 0.0


@cache
def _stemming_tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer  # its stemmer takes seconds to import

    return DefaultTokenizer(use_stemmer=True)


@METRICS.register("edit_similarity")
def edit_similarity(answer: Answer) -> float:
    """Similarity of two pieces of code in whole percent, 0 to 100.

    Literal markers are first replaced by the literals that they stand for. The similarity is
    1 - (insertions + deletions) / (sum of both lengths), rounded half to even to whole percent.
    This is ``fuzzywuzzy`` with ``python-Levenshtein`` installed; without that, ``fuzzywuzzy`` gives
    other numbers. A text that is empty after the replacement scores 0.0.

    Source: Py150 in TRACE, arXiv:2310.06762.
    """
    from rapidfuzz import fuzz

    predicted, reference = _fill_literals(answer.prediction), _fill_literals(answer.reference)
    if not predicted or not reference:
        return 0.0
    return float(round(fuzz.ratio(predicted, reference)))


def _fill_literals(code: str) -> str:
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    end = code.rfind(">") + 1  # after it no marker ends, and each would be searched to the end
    return _LITERAL.sub(r"\1", code[:end]) + code[end:]
