r"""Answers that are a number, a short formula or a word.

``math_answer`` finds the answer in the model's text, normalises it and the reference in the same
way, and compares. It works on strings and floats: nothing is evaluated.
"""

from __future__ import annotations

import math
import re

from moram_dist.metrics.arithmetic import value_of
from moram_dist.metrics.metric import METRICS, Answer

_NUMBER = re.compile(r"-?\d+\.?\d*")

# Applied in this order: each rule may rely on earlier ones. No pattern here searches for its end
# through the rest of the text: with many possible starts, that would take quadratic time.
_BEFORE_UNIT = (
    (r"\n", ""),
    (r"(?<!\.)\.+\Z", ""),  # a run of full stops is tried once, not from each of them
    (r"\\!", ""),  # LaTeX negative space
    (r"[td]frac", "frac"),
    (r"\\(?:left|right)", ""),
    (r"\\([{}])", r"\1"),
)
_AFTER_UNIT = (
    (r"\^(?:\{\\circ\}|\\circ)", ""),
    (r"\\?\$|\\[()]", ""),
)
_AFTER_WORDS = (
    (r"[xyz](?:=|\\in|\\to)", ""),
    (r"\\?%", ""),
    (r"([ {])\.", r"\g<1>0."),
)
_SILENT = r"and|\\mathbf|['\"]"
_LAST = (
    (r"(\d)\.0*(?=\D)", r"\1"),  # 5.000 is 5
    (r"(\d)\.0*\Z", r"\1"),
    (r"\A\.", "0."),
    (r"\A[^=]{0,2}=([^=]*)\Z", r"\1"),  # k = 5
    (r"\\sqrt(\w+)", r"\\sqrt{\1}"),
    (r" ", ""),
    (r"\\frac([^{])([^{])", r"\\frac{\1}{\2}"),
    (r"\\frac([^{])\{", r"\\frac{\1}{"),
)

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {word: value for value, word in enumerate(_UNITS)}
_SMALL |= {word: 10 * value for value, word in enumerate(_TENS, start=2)}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


@METRICS.register("math_answer")
def math_answer(answer: Answer) -> float:
    r"""100.0 if the answer found in the prediction equals the reference, else 0.0.

    The answer is the content of the last ``boxed``; without one, the last number; without one, the
    whole text. It equals the reference if, after ``normalise_math``,

    a. the strings are equal except for case; or
    b. both are numbers, within 1e-4 (relative) of the reference, a hundredth of it or a hundred
       times it (so that 5 and 5 % agree: the published rule is that generous); two numbers that
       differ are wrong, and the rules below do not apply; or
    c. they are equal without braces and brackets, except [1, 2) and (1, 2); or
    d. one side is ``x = v`` with a short left side, and v equals the other side.

    The published rule ends with symbolic equality by sympy. It is left out: sympy's parser passes
    its input to ``eval``, and a model's output must not be executed. An answer such as
    ``\boxed{\frac{1}{2}}`` therefore does not equal 0.5.

    Source: NumGLUE in the MoRAM code for TRACE, after the Qwen2.5-Math evaluation.
    """
    found = extract_math(answer.prediction)
    return 100.0 if found and _equal(found, normalise_math(answer.reference)) else 0.0


@METRICS.register("math_answer_arithmetic")
def math_answer_arithmetic(answer: Answer) -> float:
    r"""``math_answer``, but arithmetic such as ``\boxed{2*3+1}`` is right if its value is right.

    With the published packages (sympy without a LaTeX parser), the last step of the published rule
    adds this for references that are numbers. Here a bounded parser computes it.

    Source: as ``math_answer``.
    """
    if math_answer(answer):
        return 100.0
    found, reference = extract_math(answer.prediction), normalise_math(answer.reference)
    if _number(found) is not None and _number(reference) is not None:
        return 0.0  # two numbers that differ
    value, target = value_of(found), value_of(reference)
    if value is None or target is None:
        return 0.0
    return 100.0 if abs(value - target) <= max(abs(value), abs(target)) / 10**4 else 0.0


def extract_math(text: str) -> str:
    r"""The answer in a model's text: last ``boxed``, else last number, else the stripped text.

    The content of ``boxed`` is normalised. It ends at the matching brace, or at the end of the
    text if the brace is never closed; without braces it ends at the next ``$``.
    """
    boxed = _boxed(text)
    if boxed:
        return normalise_math(boxed)
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else text.strip()


def _boxed(text: str) -> str:
    _, marker, rest = text.strip().rpartition("boxed")
    if not marker:
        return ""
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth = 0
    for end, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:end]
    return rest[1:]


def normalise_math(text: str) -> str:
    r"""Convert common ways to write an answer to one spelling.

    Removes line breaks, final full stops, spaces, units in ``\text``, degree, dollar and per cent
    signs, quotes, the word ``and``, ``x=``; writes fractions and roots with braces and ``a/b`` as
    ``\frac``; drops zero decimals; turns a number in English words into digits.
    """
    text = _without_unit(_rewrite(text.strip(), _BEFORE_UNIT))
    text = _digits(_rewrite(text, _AFTER_UNIT).strip())
    closed, rest = _split_behind(text, "}")
    text = _rewrite(re.sub(r"\\text\{(.*?)\}", r"\1", closed) + rest, _AFTER_WORDS)
    closed, rest = _split_behind(text, "}")
    text = re.sub(r"\\mbox\{.*?\}|" + _SILENT, "", closed) + re.sub(_SILENT, "", rest)
    if "i" not in text:
        text = text.replace("j", "i")  # two names of the imaginary unit
    return _slash(_rewrite(text, _LAST))


def _split_behind(text: str, mark: str) -> tuple[str, str]:
    """The text up to and including the last ``mark``, and the rest."""
    end = text.rfind(mark) + 1
    return text[:end], text[end:]


def _without_unit(text: str) -> str:
    r"""The text without a final ``\text{...}``, unless that is the whole text."""
    start = text.find(r"\text{")
    rest = text[: max(start, 0)].strip()
    return rest if rest and text.endswith("}") else text


def _slash(text: str) -> str:
    r"""``a/b`` as ``\frac{a}{b}`` if each side is a whole number or contains a root."""
    above, slash, below = text.partition("/")
    fits = all("sqrt" in side or re.fullmatch(r"-?\d+", side) for side in (above, below))
    return rf"\frac{{{above}}}{{{below}}}" if slash and fits and "/" not in below else text


def _rewrite(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _digits(text: str) -> str:
    """``twenty-three`` as ``23``; a text that is not one number in words stays unchanged."""
    words = text.lower().replace("-", " ").split()
    total = group = 0
    for word in words:
        if word in _SMALL:
            tens, unit = group % 100, _SMALL[word]
            if tens and (tens < 20 or tens % 10 or unit > 9):
                return text  # "two three" is two numbers
            group += unit
        elif word == "hundred":
            if group >= 100:
                return text  # "hundred hundred" is no number, and many would grow without bound
            group = 100 * max(group, 1)
        elif word in _LARGE:
            total, group = total + max(group, 1) * _LARGE[word], 0
        elif word != "and":
            return text
    return str(total + group) if set(words) - {"and"} else text


def _equal(prediction: str, reference: str) -> bool:
    if prediction.lower() == reference.lower():
        return True
    number, target = _number(prediction), _number(reference)
    if number is not None and target is not None:
        return any(
            math.isclose(number, value, rel_tol=1e-4)
            for value in (target / 100, target, target * 100)
            if bool(value) == bool(target)  # a value that underflows to 0 does not count
        )
    if _without_brackets(prediction, reference):
        return True
    for side, other in ((prediction, reference), (reference, prediction)):
        name, equals, value = side.partition("=")
        if equals and len(name.strip()) <= 2 and "=" not in value + other:
            return _equal(value.strip(), other)
    return False


def _without_brackets(prediction: str, reference: str) -> bool:
    """Whether the texts are equal except for brackets; open and closed intervals differ."""
    for opening, closing, other in ("[](", "()["):
        outer = prediction.startswith(opening) and prediction.endswith(closing)
        if outer and not reference.startswith(other):
            prediction, reference = prediction.strip("[]()"), reference.strip("[]()")
            break
    unbraced = str.maketrans("", "", "{}()")
    return prediction.lower().translate(unbraced) == reference.lower().translate(unbraced)


def _number(text: str) -> float | None:
    """The value if ``text`` is a number with optional commas, else None; ``%`` divides by 100.

    Infinity, NaN, and numbers that a float would round to infinity or 0 also give None.
    """
    text = text.replace(",", "")
    for candidate, scale in ((text, 1), (text.removesuffix("%").removesuffix("\\"), 100)):
        try:
            value = float(candidate) / scale
        except ValueError:
            continue
        mantissa = candidate.lower().partition("e")[0]
        lost = value == 0 and any(int(digit) for digit in mantissa if digit.isdecimal())
        return value if math.isfinite(value) and not lost else None
    return None
