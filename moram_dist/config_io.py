"""From flags and YAML to a RunConfig and back; keys are strict, values are read by type."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from moram_dist.config import EvalConfig, RunConfig
from moram_dist.reading import parse_yaml, read_yaml
from moram_dist.redaction import clean_address, clean_tree
from moram_dist.registry import InputError, unknown
from moram_dist.terminal import quoted

MAY_CHANGE = frozenset(
    {
        "record.output_dir",
        "record.tracking",
        "record.tracking_uri",
        "record.register_memory",
        "record.log_every",
        "record.save_every",
        "record.stop_signals",
        "eval.eval_rows",
        "eval.eval_batch_size",
        "eval.eval_gather",
        "data.data_dir",
        "model.attention",
        "model.gradient_checkpointing",
        "model.trust_remote_code",
        "train.micro_batch_size",
        "train.micro_batch_tokens",
        "parallel.atom_group",
        "parallel.placement",
        "parallel.resident_fraction",
        "parallel.wait_limit",
    }
)
"""Fields that may differ between two commands on one run directory: they do not define results."""


SECTIONS: dict[str, Any] = typing.get_type_hints(RunConfig)
"""Section name -> its dataclass."""


def fields() -> dict[str, tuple[str, Any]]:
    """Every flag: its bare name -> (section, type)."""
    out: dict[str, tuple[str, Any]] = {}
    for section, kind in SECTIONS.items():
        hints = typing.get_type_hints(kind)
        out |= {item.name: (section, hints[item.name]) for item in dataclasses.fields(kind)}
    return out


def build(
    overrides: Mapping[str, Any],
    recipe: Path | None = None,
    under: Mapping[str, Any] = types.MappingProxyType({}),
) -> RunConfig:
    """Build a run's settings from a recipe, if given, and flags, which override it.

    Args:
        overrides: bare (``top_k``) or dotted (``method.top_k``) names to values; strings are
            read as the field's type.
        recipe: YAML file of the same keys, flat or nested by section.
        under: bare names to values that replace defaults.

    Raises:
        InputError: a key does not exist, a value has the wrong type, the recipe is not a YAML
            mapping, or a section refuses a value.
    """
    values = dict(under)
    if recipe:
        values |= _flatten(read_mapping(recipe), str(recipe))
    for key, value in overrides.items():
        values[_bare(key, "flag")] = value
    known = fields()
    given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in values.items():
        section, kind = known[name]
        given[section][name] = coerce(name, value, kind)
    return RunConfig(**{section: SECTIONS[section](**given[section]) for section in SECTIONS})


def to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Nested plain values, ready for YAML, without passwords."""
    plain = {
        section: {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
        for section, values in dataclasses.asdict(config).items()
    }
    if plain["record"]["tracking_uri"]:
        plain["record"]["tracking_uri"] = clean_address(plain["record"]["tracking_uri"])
    return {section: clean_tree(values) for section, values in plain.items()}


def flat(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> plain value."""
    return {f"{s}.{k}": v for s, values in to_dict(config).items() for k, v in values.items()}


def from_saved(saved: Mapping[str, Any], where: str | Path) -> RunConfig:
    """Read a configuration that a run saved; fields added since then get their defaults.

    Args:
        saved: section -> its fields, as ``to_dict`` gives them.
        where: the file, for messages.

    Raises:
        InputError: this version does not know a section or field, or a value is not allowed.
    """
    known = fields()
    values: dict[str, Any] = {}
    strange: list[str] = []
    for section, content in saved.items():
        if section not in SECTIONS:
            strange.append(str(section))
            continue
        if not isinstance(content, Mapping):
            raise InputError(f"{where}: {section} must be a mapping of names to values")
        for name, value in content.items():
            if name in known and known[name][0] == section:
                values[f"{section}.{name}"] = value
            else:
                strange.append(f"{section}.{name}")
    if strange:
        raise InputError(
            f"{where} was written by another version of this program, whose settings this one does "
            f"not know: {', '.join(strange)}"
        )
    try:
        return build(values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def differences(
    config: RunConfig, saved: RunConfig, ignored: Collection[str] = frozenset()
) -> list[str]:
    """``name: saved -> now`` for each field in which two runs differ.

    Skips ``MAY_CHANGE`` and the dotted names in ``ignored``.
    """
    then = flat(saved)
    return [
        f"{name.split('.')[1]}: {then[name]} -> {now}"
        for name, now in flat(config).items()
        if name not in MAY_CHANGE and name not in ignored and then[name] != now
    ]


def recall_may_differ(now: EvalConfig, then: EvalConfig) -> set[str]:
    """Fields in addition to ``MAY_CHANGE`` that may differ between two commands on one run.

    A finished run may be evaluated again with more recalls.
    """
    ignored = {"eval.recall"} if now.recalls[0] == then.recalls[0] else set()
    if not ("prefix" in now.recalls and "prefix" in then.recalls):
        ignored |= {"eval.recogniser", "eval.unknown"}  # one of them uses no recogniser
    return ignored


def with_recalls(saved: Mapping[str, Any], now: EvalConfig) -> dict[str, Any]:
    """The configuration that a run saved, with the recalls added that are new in ``now``."""
    section = dict(saved["eval"])
    then = str(section.get("recall", EvalConfig.recall)).split(",")
    more = [recall for recall in now.recalls if recall not in then]
    if more:
        section["recall"] = ",".join([*then, *more])
    if "prefix" in more:
        section |= {"recogniser": now.recogniser, "unknown": now.unknown}
    return {**saved, "eval": section}


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises InputError with the file and the position of the mistake."""
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a mapping of names to values")
    return value


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Convert ``value``, often a string from a flag, to ``kind``. Raises InputError."""
    wanted = list(typing.get_args(kind)) if isinstance(kind, types.UnionType) else [kind]
    if type(None) in wanted:
        if value is None or value in ("None", "null", ""):
            return None
        wanted.remove(type(None))
    (target,) = wanted
    try:
        out = _as(value, target)
    except (ValueError, TypeError, KeyError, OverflowError):
        name_of = getattr(target, "__name__", str(target))
        raise InputError(
            f"--{name} must be {_NAMES.get(name_of, name_of)}, got {quoted(value)}"
        ) from None
    if isinstance(out, str | Path):
        _check_text(name, str(out))
    if isinstance(out, Path):
        check_path(name, out)
    return out


_BOOLS = {"true": True, "1": True, "false": False, "0": False}
_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping",
    "Path": "a path",
}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Limits of file systems for one name and for a whole path, in bytes."""


def _as(value: Any, target: Any) -> Any:
    if target is bool:
        return _BOOLS[str(value).lower()]
    if target is int:
        number = _finite(value)
        return int(number) if number == int(number) else _refuse()
    if target is float:
        return _finite(value)
    if target in (str, Path):
        if isinstance(value, bool):  # YAML's true, for a field whose values include "true"
            value = str(value).lower()
        return target(value) if isinstance(value, str | int | float | Path) else _refuse()
    parsed = parse_yaml(value, "its text") if isinstance(value, str) else value
    if not isinstance(parsed, dict) or not all(
        isinstance(v, dict) and all(isinstance(x, str) for x in v.values()) for v in parsed.values()
    ):
        _refuse()
    return parsed


def _finite(value: Any) -> float:
    """A finite number in plain notation; Python also reads "1_000" and digits of other scripts."""
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        _refuse()
    number = float(value)
    return number if math.isfinite(number) else _refuse()


def _refuse() -> Any:
    raise ValueError


def _check_text(name: str, text: str) -> None:
    bad = next((x for x in text if unicodedata.category(x) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        what = "is not UTF-8" if unicodedata.category(bad) == "Cs" else f"holds {bad!r}"
        raise InputError(f"--{name} {what}: {quoted(text)}")


def check_path(name: str, path: Path) -> None:
    """Raises InputError where a path is not UTF-8, or too long for file systems."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        raise InputError(f"--{name} is not UTF-8: {quoted(str(path))}")
    longest = max((len(part.encode()) for part in path.parts), default=0)
    if longest > _LONGEST_NAME or len(str(path).encode()) > _LONGEST_PATH:
        raise InputError(
            f"--{name} is longer than a path can be ({_LONGEST_NAME} bytes for each name, "
            f"{_LONGEST_PATH} in all): {quoted(str(path))}"
        )


def _flatten(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        nested = key in SECTIONS and isinstance(value, dict)
        for name, item in (
            {f"{key}.{n}": v for n, v in value.items()}.items() if nested else [(str(key), value)]
        ):
            bare = _bare(name, f"key in {source}")
            if bare in out:
                raise InputError(f"{source}: {bare!r} is given twice")
            out[bare] = item
    return out


def _bare(key: str, kind: str) -> str:
    known = fields()
    section, _, name = key.rpartition(".")
    if name in known and section in ("", known[name][0]):
        return name
    raise unknown(kind, key, known if section else {*known, *SECTIONS})
