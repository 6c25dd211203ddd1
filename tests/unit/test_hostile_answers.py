"""Metrics on whatever a model may say, up to 64 KiB: an answer in time, and a number."""

from __future__ import annotations

import math
import random
import time

import pytest

from moram_dist.metrics import METRICS, score

SIZE = 2**16
SHORT = SIZE // 4
"""Characters of the texts of every change."""

LIMIT = 20
"""Seconds a pair of texts. The slowest takes about one; a quadratic rule takes minutes for long
texts."""


def long(piece: str) -> str:
    return (piece * (SIZE // len(piece) + 1))[:SIZE]


def numbered(form: str) -> str:
    return "".join(form.format(i) for i in range(SIZE // len(form)))[:SIZE]


HOSTILE = {
    "words": long("a "),
    "different words": numbered("w{} "),
    "different words backwards": " ".join(reversed(numbered("w{} ").split())),
    "one word": long("a"),
    "letters y": long("y"),
    "spaces": long(" ") + "x",
    "digits": long("7"),
    "digits at the end of a point": "1." + long("0") + "1",
    "commas": long(","),
    "full stops": long(".") + "x",
    "sentences": long("a."),
    "different sentences": numbered("a b{}."),
    "sentences in two orders": numbered("{} x y."),
    "sentences in two orders, turned": numbered("y x {}b."),
    "boxes": long(r"\boxed{"),
    "box of boxes": r"\boxed{" + long("{") + "}",
    "box of units": r"\boxed{x" + long(r"\text{"),
    "box of boxed words": r"\boxed{x" + long(r"\mbox{"),
    "box of units, closed once": r"\boxed{x" + long(r"\text{") + "} 1}",
    "box of roots": r"\boxed{" + long("sqrt") + "}",
    "box of roots and slashes": r"\boxed{" + long("sqrt/") + "}",
    "box of full stops": r"\boxed{" + long(".") + "x}",
    "box of fractions": r"\boxed{" + long(r"\frac1") + "}",
    "box of equals signs": r"\boxed{" + long("=") + "}",
    "hundreds": r"\boxed{" + long("hundred ") + "}",
    "thousands": r"\boxed{" + long("nine thousand ") + "}",
    "literals": long("<STR_LIT:"),
    "punctuation": long("!?;-&"),
    "surrogates": long("\ud800\udc00"),
    "zeros": long("\0"),
    "right to left": long("\u202e\u200fא"),
    "fractions of one character": long("½"),
    "digits of other scripts": long("٣۴"),
    "line breaks": long("\n\r\u2028\x1c"),
    "seeded": "".join(random.Random(0).choices("ab. {}\\<>=/1", k=SIZE)),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [SHORT, pytest.param(SIZE, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("metric", list(METRICS))
def test_metrics_answer_in_time(metric, size):
    texts = [(name, text[: size - 1] + text[-1:]) for name, text in HOSTILE.items()]
    other = dict(zip(HOSTILE, [*texts[1:], texts[0]], strict=True))
    for name, text in texts:
        references = {
            "itself": text,
            f"{other[name][0]!r}": other[name][1],
            "an ordinary text": "The council met. It agreed on 17.48 percent.",
        }
        for kind, reference in references.items():
            for prediction, target in ((text, reference), (reference, text)):
                began = time.monotonic()
                found = score(
                    metric,
                    prompt=text,
                    prediction=prediction,
                    references=(target,),
                    labels=("A", "B"),
                )
                took = time.monotonic() - began
                assert took < LIMIT, f"{name!r} against {kind}: {took:.1f} s"
                assert math.isfinite(found) and 0 <= found <= 100, f"{name!r} against {kind}"


def right(prediction: str, reference: str) -> bool:
    return score("math_answer", prompt="", prediction=prediction, references=(reference,)) == 100


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("inf", "1e999"),
        ("-inf", "-1e400"),
        ("nan", "inf"),
        ("1e999", "1e998"),
        (r"\boxed{1e-999}", "0"),
        (r"\boxed{0}", "5e-324"),
        (r"\boxed{0}", "1e-999%"),
        ("9**9**9", "9e9"),
        (r"\boxed{" + "hundred " * 2200 + "}", "5"),
        (r"\boxed{" + "hundred thousand " * 2200 + "}", "5"),
        (r"\boxed{hundred hundred}", "10000"),
        ("9" * 5000, "9" * 4999),
        (r"\boxed{½}", "0.5"),
    ],
)
def test_what_no_float_holds_equals_no_other_number(prediction, reference):
    assert not right(prediction, reference)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("Infinity", "infinity"),  # equal as texts
        ("9" * 5000, "9" * 5000),
        (r"\boxed{1e308}", "1e308"),
        (r"\boxed{nineteen hundred}", "1900"),
        (r"\boxed{two hundred thousand and five}", "200005"),
        (r"\boxed{0.00}", "0"),
        (r"\boxed{٣}", "3"),
        (r"\boxed{٠}", "0"),
    ],
)
def test_what_a_float_holds_is_still_equal(prediction, reference):
    assert right(prediction, reference)
