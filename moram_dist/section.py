"""Sections of settings: frozen dataclasses whose values are checked when they are created.

Every number has bounds. Beyond the upper ones, sizes overflow, floats become infinite, and systems
refuse to wait; values that must be positive vanish in float32 below the lower ones (``gt=0``
comes first where the usual mistake is 0 or less).
"""

from __future__ import annotations

import operator
from dataclasses import field
from functools import wraps
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from moram_dist.registry import InputError, unknown
from moram_dist.terminal import quoted

T = TypeVar("T")

Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
"""A whole number of at least 1, in 32 bits."""

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field, Field))
def section(kind: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass that checks its values by their annotations.

    ``Annotated[float, Field(gt=0)]`` bounds a value, and ``Literal`` lists the allowed ones.
    Creating an instance raises InputError. Its one line begins with the flag and gives the value.
    """
    strict = ConfigDict(extra="forbid", strict=True)
    checked: Any = dataclass(frozen=True, kw_only=True, config=strict)(kind)
    create = checked.__init__

    @wraps(create)
    def init(self: Any, **values: Any) -> None:
        try:
            create(self, **values)
        except ValidationError as error:
            raise _in_words(checked, error) from None

    checked.__init__ = init
    return checked  # type: ignore[no-any-return]


def _in_words(kind: Any, error: ValidationError) -> InputError:
    """The first mistake that pydantic found, in the words of the command line."""
    first = error.errors(include_url=False)[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, InputError):  # raised by __post_init__
        return own
    name, value = str(first["loc"][0]), first["input"]
    known = kind.__pydantic_fields__.get(name)
    if first["type"] == "literal_error":
        parts = get_args(known.annotation)  # of a Literal its values, of a union its types
        values = [one for part in parts for one in (get_args(part) or (part,))]
        return unknown(f"--{name}", str(value), [one for one in values if isinstance(one, str)])
    wanted = _violated(known, value) if known and isinstance(value, int | float) else None
    if wanted is not None:
        return InputError(f"--{name} must be {wanted}, got {value}")
    return InputError(f"--{name}: {first['msg'].lower()}, got {quoted(value)}")


def _violated(known: FieldInfo, value: float) -> str | None:
    """The first bound of a field that a value violates; both bounds of a fraction."""
    optional = (part for kind in get_args(known.annotation) for part in _annotations(kind))
    bounds = {
        name: getattr(item, name)
        for part in (known, *optional)
        for item in part.metadata
        for name in _SIGNS
        if hasattr(item, name)
    }
    for name, bound in bounds.items():
        if not getattr(operator, name)(value, bound):
            if 1 in (bounds.get("lt"), bounds.get("le")):
                return f"in [{bounds['ge']:g}, 1{')' if 'lt' in bounds else ']'}"
            return f"{_SIGNS[name]} {bound:g}"
    return None


def _annotations(kind: Any) -> tuple[FieldInfo, ...]:
    return getattr(kind, "__metadata__", ())
