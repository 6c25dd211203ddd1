"""From flags and YAML to a RunConfig and back; keys are strict, values are read by type.

Any method's flag is accepted with every method, since one recipe may serve several. A run keeps and
records only the settings of its own method.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from moram_dist.config import DEFAULT_METHOD, EvalConfig, MethodConfig, RunConfig, TrainConfig
from moram_dist.reading import read_mapping
from moram_dist.redaction import clean_address, clean_tree
from moram_dist.registry import InputError, unknown
from moram_dist.values import coerce

MAY_CHANGE = frozenset(
    {
        "record.output_dir",
        "record.tracking",
        "record.tracking_uri",
        "record.register_memory",
        "record.log_every",
        "record.save_every",
        "record.observe",
        "record.general",
        "record.general_rows",
        "record.stop_signals",
        "eval.eval_rows",
        "eval.eval_batch_size",
        "eval.eval_gather",
        "data.data_dir",
        "model.attention",
        "model.deterministic",
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
"""Section name -> its dataclass; for a method, the base of all methods' dataclasses."""


@cache
def fields() -> Mapping[str, tuple[str, Any]]:
    """Every flag, those of all methods too: its bare name -> (section, type)."""
    out: dict[str, tuple[str, Any]] = {}
    kinds = [*SECTIONS.items(), *(("method", kind) for kind in _methods().values())]
    for section, kind in kinds:
        hints = typing.get_type_hints(kind)
        out |= {item.name: (section, hints[item.name]) for item in dataclasses.fields(kind)}
    return types.MappingProxyType(out)


def build(
    overrides: Mapping[str, Any],
    recipe: Path | None = None,
    under: Mapping[str, Any] = types.MappingProxyType({}),
) -> RunConfig:
    """Build a run's settings from a recipe, if given, and flags, which override it.

    Values of other methods are checked too, and then left out.

    Args:
        overrides: bare (``top_k``) or dotted (``method.top_k``) names to values; strings are
            read as the field's type.
        recipe: YAML file of the same keys, flat or nested by section.
        under: bare names to values that replace defaults.

    Raises:
        InputError: a key or the method does not exist, a value has the wrong type, the recipe is
            not a YAML mapping, or a section refuses a value.
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
    method = _method(given.pop("method"))
    others = {section: SECTIONS[section](**values) for section, values in given.items()}
    return RunConfig(method=method, **others)


def _methods() -> dict[str, type[MethodConfig]]:
    """Name of a method -> the dataclass of its settings."""
    from moram_dist.methods import METHODS  # imports torch

    return {name: METHODS[name].Config for name in METHODS}


def _method(given: Mapping[str, Any]) -> MethodConfig:
    """The settings of the chosen method; all methods check theirs."""
    kinds = _methods()
    chosen = given.get("method", DEFAULT_METHOD)
    if chosen not in kinds:
        raise unknown("method", chosen, kinds)
    configs: dict[str, MethodConfig] = {}
    for name, kind in kinds.items():
        own = {item.name for item in dataclasses.fields(kind)} & given.keys()
        configs[name] = kind(**{key: given[key] for key in own} | {"method": name})
    return configs[chosen]


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

    Older runs also saved the settings of other methods, which are left out.

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

    Skips ``MAY_CHANGE``, the dotted names in ``ignored``, fields that only one of two methods has,
    and how to train if the method does not.
    """
    from moram_dist.methods import METHODS  # imports torch

    skipped = MAY_CHANGE.union(ignored)
    if not METHODS[config.method.method].trains:
        skipped |= {f"train.{item.name}" for item in dataclasses.fields(TrainConfig)}
        skipped -= {"train.seed"}
    then, asked = flat(saved), flat(config)
    for values in (then, asked):  # earlier versions recorded all where only one task can answer
        if "eval.unknown" in values:
            answers = METHODS[config.method.method].answers_unknown
            values["eval.unknown"] = answers(values["eval.unknown"])
    return [
        f"{name.split('.')[1]}: {then[name]} -> {now}"
        for name, now in asked.items()
        if name not in skipped and name in then and then[name] != now
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
