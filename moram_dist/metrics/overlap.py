"""Graded metrics by overlap of words or characters with the reference, 0 to 100."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from rapidfuzz import fuzz

from moram_dist.metrics.metric import METRICS, Answer

_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


@METRICS.register("rouge_l_set")
def rouge_l_set(answer: Answer) -> float:
    """Summary-level ROUGE-L F over sets of words, 0 to 100.

    The numbers are those of the PyPI package ``rouge`` 1.0.1 (``rouge-l``, ``exclusive=True``),
    and not those of ``rouge_score``: sentences end at every ``.``, a word counts once however often
    it occurs, case counts, nothing is stemmed. For each reference sentence the words of its longest
    common subsequence with each predicted sentence are collected; hits are the words collected.
    P = hits / distinct predicted words, R = hits / distinct reference words and
    F = 2PR / (P + R + 1e-8), so a perfect answer falls short of 100 by about 5e-7.

    The package itself recurses once a word, and raises on a text of nothing but ``.``; here long
    sentences are no problem and such a text scores 0.0, as an empty one does. MoRAM's scorer avoids
    that exception by a line break after every prediction without one. Behind a final ``.`` this
    counts as one more word, the empty one, so that even the reference would not score 100; that
    side effect is left out.

    Source: MeetingBank in TRACE, arXiv:2310.06762; rouge 1.0.1.
    """
    return _rouge_l_set(answer.prediction, answer.reference)


@METRICS.register("rouge_l_set_swapped")
def rouge_l_set_swapped(answer: Answer) -> float:
    """``rouge_l_set`` of the reference, as if it were the prediction, against the prediction.

    The union over sentences is not symmetric, so the value differs a little.

    Source: MeetingBank in the original TRACE code, which passes the two in this order.
    """
    return _rouge_l_set(answer.reference, answer.prediction)


def _rouge_l_set(hypothesis: str, target: str) -> float:
    predicted, reference = _sentences(hypothesis), _sentences(target)
    if not predicted or not reference:
        return 0.0
    hits: set[str] = set()
    for sentence in reference:
        for candidate in predicted:
            hits.update(_common_subsequence(sentence, candidate))
    precision = len(hits) / len({word for sentence in predicted for word in sentence})
    recall = len(hits) / len({word for sentence in reference for word in sentence})
    return 100.0 * (2.0 * (precision * recall / (precision + recall + 1e-8)))


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence. A sentence of spaces holds one empty word, as in the package."""
    return [" ".join(piece.split()).split(" ") for piece in text.split(".") if piece]


def _common_subsequence(x: list[str], y: list[str]) -> list[str]:
    """Longest common subsequence of ``x`` and ``y``, last word first.

    Where several are longest, the package's choice is made, because the set of words depends on it.
    """
    if set(x).isdisjoint(y):
        return []
    length = [[0] * (len(y) + 1)]
    for word in x:
        above, row = length[-1], [0]
        for j, other in enumerate(y):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        length.append(row)

    found = []
    i, j = len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.append(x[i - 1])
            i, j = i - 1, j - 1
        elif length[i - 1][j] > length[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


@METRICS.register("rouge_l_stemmed")
def rouge_l_stemmed(answer: Answer) -> float:
    """ROUGE-L F1 over the whole text, stemmed, 0 to 100.

    Lower case; everything but the letters a to z and digits separates words; words of more than
    three characters are stemmed (Porter); F1 of the longest common subsequence. A text without such
    words, as an empty one or one in another script, scores 0.0.

    Source: Lin 2004 (ACL W04-1013), as in the package rouge-score and the SAPT code for SuperNI.
    """
    return 100.0 * _stemmed_scorer().score(answer.reference, answer.prediction)["rougeL"].fmeasure


@cache
def _stemmed_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # its stemmer takes seconds to import

    return RougeScorer(["rougeL"], use_stemmer=True)


@METRICS.register("edit_similarity")
def edit_similarity(answer: Answer) -> float:
    """Similarity of two pieces of code in whole percent, 0 to 100.

    Literal markers are first replaced by what they stand for. The similarity is
    1 - (insertions + deletions) / (sum of both lengths), in whole percent, a half to the even one.
    This is ``fuzzywuzzy`` with ``python-Levenshtein`` installed beside it; without that, it gives
    other numbers. A text that is empty after the replacement scores 0.0.

    Source: Py150 in TRACE, arXiv:2310.06762.
    """
    predicted, reference = _fill_literals(answer.prediction), _fill_literals(answer.reference)
    if not predicted or not reference:
        return 0.0
    return float(round(fuzz.ratio(predicted, reference)))


def _fill_literals(code: str) -> str:
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    return _LITERAL.sub(r"\1", code)
