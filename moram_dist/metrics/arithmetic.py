"""Evaluate plain arithmetic in a text: parsed, bounded and exact, never run as code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

LONGEST = 200
"""Most characters; a longer text is not an arithmetic answer."""

LARGEST_POWER = 64

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value_of(text: str) -> Fraction | None:
    """The value of ``2*3+1``; None for anything but numbers, ``+ - * / **`` and brackets."""
    if len(text) > LONGEST:
        return None
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, ValueError):
        return None


def _value(node: ast.expr) -> Fraction:
    """Raises ValueError for anything but arithmetic, ArithmeticError for a division by 0."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))  # the decimal number itself, not its binary rounding
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_value(part)
        case ast.UnaryOp(op=ast.UAdd(), operand=part):
            return _value(part)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, power = _value(left), _value(right)
            small = max(abs(base.numerator), base.denominator) < 10**LARGEST_POWER
            if power.denominator == 1 and abs(power) <= LARGEST_POWER and small:
                return base ** int(power)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_value(left), _value(right))
    raise ValueError("no plain arithmetic")
