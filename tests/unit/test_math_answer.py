"""The math rule: finding the answer, its one spelling, and what counts as equal."""

from __future__ import annotations

import pytest

from moram_dist.metrics import score
from moram_dist.metrics.math_answer import extract_math, normalise_math


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("17.48", "17.48", True),
        ("The answer is 17.48 km", "17.48", True),
        ("1748", "17.48", True),  # a hundred times
        ("0.1748", "17.48", True),  # a hundredth
        ("174.8", "17.48", False),
        ("17.4805", "17.48", True),  # within 1e-4
        ("17.49", "17.48", False),
        ("5\n\nSo 6", "5", False),  # the last number speaks
        ("1/2", "0.5", False),
        ("12 and 13", "12", False),
        ("12 and 13", "13", True),
        ("1,234", "1234", False),  # the last number is 234
        (r"\boxed{1,234}", "1234", True),
        ("-3", "3", False),
        ("it fell to -3", "-3.0", True),
        ("5.", "5", True),
        ("Friday", "Friday", True),
        (" friday\n", "Friday", True),
        ("It is Friday", "Friday", False),  # no number and no box: the whole text
        ("Friday the 13", "Friday", False),
        (r"\boxed{Friday}", "Friday", True),
        (r"day = \boxed{d = Friday}", "Friday", True),
        (r"\boxed{5} or \boxed{6}", "6", True),
        (r"\boxed{5} and then 7", "5", True),  # a box beats a later number
        (r"\boxed{\text{5 km}}", "5km", True),
        (r"\boxed{5\text{ km}}", "5", True),
        (r"\boxed{50\%}", "0.5", True),
        (r"\boxed{50\%}", "50", True),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{(5)}", "5", True),
        (r"\boxed{[1, 2)}", "(1, 2)", False),
        (r"\boxed{[1, 2]}", "1,2", True),
        (r"\boxed{1/2}", r"\frac12", True),
        (r"\boxed{\dfrac{1}{2}}", "1/2", True),
        (r"\boxed{\frac{1}{2}}", "0.5", False),  # symbolic equality is left out
        ("23", "twenty-three", True),
        ("", "5", False),
        ("  ", "5", False),
        ("boxed", "5", False),
        ("nan", "5", False),
        ("", "$", False),
    ],
)
def test_math_answer(prediction, reference, right):
    found = score("math_answer", prompt="", prediction=prediction, references=(reference,))
    assert found == 100 * right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        (r"\boxed{3", "3"),
        ("boxed 4$ or so", "4"),
        (r"so \boxed{} of 8", "8"),  # an empty box is none
        ("7 apples. No, 8.5", "8.5"),
        (" none ", "none"),
    ],
)
def test_extract_math(text, answer):
    assert extract_math(text) == answer


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("5.000", "5"),
        ("5.0 km", "5km"),
        ("5.05", "5.05"),
        (".5", "0.5"),
        ("5..", "5"),
        ("$5$", "5"),
        (r"\$5", "5"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"\left(3\right)", "(3)"),
        (r"3\!4", "34"),
        ("1\n2", "12"),
        ("k = 5", "5"),
        ("area = 5", "area=5"),
        ("y=5", "5"),
        ("2 and 3", "23"),
        ("'5\"", "5"),
        ("3j", "3i"),
        ("joined", "joined"),  # holds an i, so its j stays
        (r"\sqrt2", r"\sqrt{2}"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\tfrac34", r"\frac{3}{4}"),
        ("3/4", r"\frac{3}{4}"),
        (r"\sqrt2/2", r"\frac{\sqrt{2}}{2}"),
        ("3/4/5", "3/4/5"),
        ("km/h", "km/h"),
        (r"\text{Friday}", "Friday"),
        ("seven", "7"),
        ("Forty-two", "42"),
        ("two hundred and five", "205"),
        ("three million twelve thousand", "3012000"),
        ("two three", "twothree"),
        ("and", ""),
        ("", ""),
        ("August", "August"),
    ],
)
def test_normalise_math(text, spelling):
    assert normalise_math(text) == spelling
