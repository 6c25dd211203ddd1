"""Metrics against values worked out by hand and, for ROUGE-L, against the published package."""

from __future__ import annotations

import random
import string
import sys

import pytest
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from moram_dist.metrics import METRICS, score
from moram_dist.registry import InputError

ABC = ("A", "B", "C")


def measure(metric, prediction, reference, *, prompt="", labels=()):
    return score(
        metric, prompt=prompt, prediction=prediction, references=(reference,), labels=labels
    )


def test_every_metric_is_registered():
    assert list(METRICS) == [
        "accuracy_prefix",
        "choice",
        "edit_similarity",
        "exact_match",
        "exact_match_normalised",
        "first_character",
        "math_answer",
        "math_answer_arithmetic",
        "rouge_l_set",
        "rouge_l_set_line_break",
        "rouge_l_set_swapped",
        "rouge_l_stemmed",
        "sari",
    ]


def test_score_is_the_best_over_the_references():
    references = ("wrong", "Right!")
    assert (
        score("exact_match_normalised", prompt="", prediction="right", references=references) == 100
    )
    with pytest.raises(ValueError, match="without a reference"):
        score("choice", prompt="", prediction="A", references=(), labels=ABC)
    with pytest.raises(InputError, match="did you mean 'rouge_l_set'"):
        score("rouge_l", prompt="", prediction="A", references=("A",))


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("A", "A", True),
        (" b. dovish", "B", True),  # case never counts
        ("I think it is C", "C", True),
        ("The answer: A, not B", "A", True),
        ("This is a hawkish stance", "A", True),  # the English article
        ("neutral", "A", True),  # its letter a
        ("neutral", "C", False),
        ("dovish", "A", False),  # no label in it: unchanged
        ("A。", "A", True),
        ("A支持", "A", True),  # one word to a regular expression, so its first label letter
        ("反对", "B", False),
        ("", "A", False),
        ("   ", "A", False),
    ],
)
def test_choice(prediction, reference, right):
    assert measure("choice", prediction, reference, labels=ABC) == 100 * right


def test_choice_keeps_the_case_of_the_labels():
    assert measure("choice", "B", "b", labels=("a", "b")) == 100
    assert measure("choice", "it is ]", "]", labels=("^", "]")) == 100


@pytest.mark.parametrize("labels", [(), ("A", "yes")])
def test_choice_needs_single_characters(labels):
    with pytest.raises(InputError, match="one character each"):
        measure("choice", "A", "A", labels=labels)


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "right"),
    [
        ("first_character", " B\nbecause", "B\nA clause is", True),
        ("first_character", "b", "B", False),
        ("first_character", "B", " B", True),
        ("first_character", "", "B", False),
        ("first_character", " \n", "B", False),
        ("accuracy_prefix", " 55", "5", True),  # a longer answer can match by accident
        ("accuracy_prefix", "5", "55", False),
        ("accuracy_prefix", "yes", " yes", False),  # the reference is not stripped
        ("accuracy_prefix", "", "5", False),
        ("accuracy_prefix", "5", "", False),
        ("exact_match", "A", "A", True),
        ("exact_match", "A ", "A", False),
        ("exact_match", "a", "A", False),
        ("exact_match", "", "A", False),
        ("exact_match_normalised", " Very  Positive.\n", "very positive", True),
        ("exact_match_normalised", "very-positive", "verypositive", True),
        ("exact_match_normalised", "positive", "very positive", False),
        ("exact_match_normalised", "", "no", False),
    ],
)
def test_right_or_wrong(metric, prediction, reference, right):
    assert measure(metric, prediction, reference) == 100 * right


@pytest.mark.parametrize(
    ("prediction", "reference", "hits", "predicted", "expected"),
    [
        ("the cat sat", "the cat sat", 3, 3, 3),
        ("the cat the cat", "the cat", 2, 2, 2),  # words count once
        ("The cat", "the cat", 1, 2, 2),  # case counts
        ("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 4, 8, 5),  # union over sentences
        ("sat cat", "cat sat", 1, 2, 2),  # order counts
    ],
)
def test_rouge_l_by_hand(prediction, reference, hits, predicted, expected):
    p, r = hits / predicted, hits / expected
    assert measure("rouge_l_set", prediction, reference) == pytest.approx(
        100 * 2 * p * r / (p + r + 1e-8), abs=1e-9
    )


def test_rouge_l_equals_the_package():
    rouge, rng = Rouge(metrics=["rouge-l"]), random.Random(0)
    pieces = ["a ", "b ", "c ", "d ", "e", ". ", ".", "\n", "  "]

    def text():
        return "".join(rng.choices(pieces, k=rng.randrange(1, 30)))

    pairs = [(text(), text()) for _ in range(500)]
    pairs = [(p, r) for p, r in pairs if p.strip(".") and r.strip(".")]  # there, it raises
    assert len(pairs) > 400
    for prediction, reference in pairs:
        expected = 100 * rouge.get_scores(prediction, reference)[0]["rouge-l"]["f"]
        assert measure("rouge_l_set", prediction, reference) == expected


def test_rouge_l_of_long_sentences_equals_the_package():
    rouge, rng = Rouge(metrics=["rouge-l"]), random.Random(1)
    for words in (2, 5, 40):
        for _ in range(20):
            prediction, reference = (
                " ".join(f"w{rng.randrange(words)}" for _ in range(rng.randrange(1, 300)))
                for _ in range(2)
            )
            expected = 100 * rouge.get_scores(prediction, reference)[0]["rouge-l"]["f"]
            assert measure("rouge_l_set", prediction, reference) == expected


@pytest.mark.parametrize("prediction", ["", ".", "...", "\n", "...\n"])
def test_rouge_l_of_nothing_is_0(prediction):
    assert measure("rouge_l_set", prediction, "A summary. Of two sentences.") == 0
    assert measure("rouge_l_set", "A summary.", ".") == 0


def test_rouge_l_of_sentences_longer_than_the_recursion_limit():
    limit = sys.getrecursionlimit()
    words = [f"w{i}" for i in range(limit)]
    long, other = " ".join(words), " ".join(reversed(words))
    with pytest.raises(RecursionError):
        Rouge(metrics=["rouge-l"]).get_scores(long, long)
    assert measure("rouge_l_set", long, long) == pytest.approx(100, abs=1e-4)
    assert measure("rouge_l_set", long, other) == pytest.approx(100 / limit, abs=1e-4)
    assert sys.getrecursionlimit() == limit


def test_rouge_l_with_the_arguments_swapped():
    # "b a" in place of "a b": of the reference's two sentences one word each is common, "a" and
    # "b"; of the prediction's one sentence with either of them, one word, and the same one: "a".
    assert measure("rouge_l_set", "b a", "a. b") == pytest.approx(100, abs=1e-4)
    for prediction, reference in (("b a", "a. b"), ("w1 w2 w6. w1 w3", "w1 w2. w3 w1")):
        swapped = measure("rouge_l_set_swapped", prediction, reference)
        assert swapped == measure("rouge_l_set", reference, prediction)
    assert measure("rouge_l_set_swapped", "", "a b") == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "common", "predicted", "expected"),
    [
        ("The Cats were running!", "the cat runs", 3, 4, 3),  # cats, running: cat, run
        ("was", "wa", 0, 1, 1),  # three characters are not stemmed
        ("a-b c", "a b_c", 3, 3, 3),  # all but letters and digits separate
        ("c b a", "a b c", 1, 3, 3),
        ("the the", "the", 1, 2, 1),  # words count as often as they occur
        ("one. two", "two. one", 1, 2, 2),  # over the whole text, not by sentence
        ("POS", "NEG", 0, 1, 1),
    ],
)
def test_stemmed_rouge_l_by_hand(prediction, reference, common, predicted, expected):
    p, r = common / predicted, common / expected
    f1 = 2 * p * r / (p + r) if common else 0
    assert measure("rouge_l_stemmed", prediction, reference) == pytest.approx(100 * f1)


def test_stemmed_rouge_l_equals_the_package():
    rng, scorer = random.Random(0), RougeScorer(["rougeL"], use_stemmer=True)
    words = [
        "running",
        "runs",
        "Flies",
        "happily",
        "cat",
        "a",
        "7th",
        "the-end",
        "Ärger",
        "!",
        "**",
    ]
    for _ in range(300):
        prediction, reference = (
            " ".join(rng.choices(words, k=rng.randrange(15))) for _ in range(2)
        )
        expected = 100 * scorer.score(reference, prediction)["rougeL"].fmeasure
        assert measure("rouge_l_stemmed", prediction, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "x"), ("x", "**"), ("", ""), ("好", "好")]
)
def test_stemmed_rouge_l_of_no_words_is_0(prediction, reference):
    assert measure("rouge_l_stemmed", prediction, reference) == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("return x", "return x", 100),
        ("ab", "abc", 80),
        ("abcdefg", "abcdefgh", 93),  # 14 / 15 = 93.3
        ("abc", "abcde", 75),
        ("aaaa", "aaab" + "c", 67),  # 6 / 9
        ("abcd", "abce", 75),
        ("x = 0", "x = <NUM_LIT>", 100),
        ("print ( hi )", "print ( <STR_LIT:hi> )", 100),
        ("a = <NUM_LIT:7> + '<CHAR_LIT:q>'", "a = 7 + 'q'", 100),
        ("x = ''", "x = '<STR_LIT>'", 100),
        ("", "abc", 0),
        ("<STR_LIT>", "<STR_LIT>", 0),  # empty once the marker is replaced
        ("xyz", "abc", 0),
    ],
)
def test_edit_similarity(prediction, reference, expected):
    assert measure("edit_similarity", prediction, reference) == expected


def test_edit_similarity_rounds_a_half_to_even():
    assert measure("edit_similarity", "aaaaaaab", "aaaaaaac") == 88  # 87.5
    assert measure("edit_similarity", "x" * 15 + "y" * 1, "x" * 15 + "z" * 1) == 94  # 93.75
    shared, rest = "x" * 5, string.ascii_lowercase[:3]
    assert measure("edit_similarity", shared + rest, shared + "ABC") == 62  # 62.5


def test_sari_by_hand():
    # Unigrams: kept {a}: precision 1, recall 1/2 (b was to be kept) -> 2/3; deleted {b, c}: c is
    # right -> 1/2; added {d}, to add {d, e}: precision 1, recall 1/2 -> 2/3.
    # Bigrams: kept none, to keep {a b}: precision 0/0 = 1, recall 0 -> 0; deleted {a b, b c}: b c
    # is right -> 1/2; added {a d} of {b d, d e}: 0.
    # Trigrams: keep 0/0 = 1; deleted {a b c}: right -> 1; added none, to add {a b d, b d e}:
    # precision 0/0 = 1, recall 0 -> 0. Four: keep 1, delete 1, add as before 0.
    expected = 100 * ((2 / 3 + 1 / 2 + 2 / 3) + (0 + 1 / 2 + 0) + (1 + 1 + 0) + (1 + 1 + 0)) / 12
    assert measure("sari", "A d", "a b d e", prompt="a b c") == pytest.approx(expected)


def test_sari_of_the_reference_loses_only_repeated_deletions():
    assert measure("sari", "one two.", "One two.", prompt="one two three.") == 100
    # "a" is there 5 times and stays twice: 3 deletions, of which the rule grants 1. Bigrams: 4
    # times and once, 3 deletions, 2 granted. Trigrams and fours: all granted.
    expected = 100 * (12 - 2 / 3 - 1 / 3) / 12
    assert measure("sari", "a a", "a a", prompt="a a a a a") == pytest.approx(expected)


def test_sari_of_an_empty_prediction_is_its_delete_precision():
    # Everything is deleted, and none of it stays in the reference; adding nothing is 0 in all four.
    # The empty text is one empty word, which is "added", and wrongly so. Nothing is to be kept.
    assert measure("sari", "", "v w x y", prompt="a b c d") == pytest.approx(100 * 2 / 3)
    assert measure("sari", "", "a b c d", prompt="a b c d") == pytest.approx(100 * 3 / 12)
