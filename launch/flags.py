"""Turn command-line flags into a run configuration, for all commands that take training flags."""

from __future__ import annotations

import ast
import inspect
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moram_dist import config_io
from moram_dist.command_line import spelled
from moram_dist.config import DEFAULT_METHOD, MethodConfig, RunConfig
from moram_dist.presets import preset_settings
from moram_dist.reading import read_text
from moram_dist.registry import InputError, unknown
from moram_dist.values import check_path, coerce

OWN = {
    "ds_config": "DeepSpeed JSON file, or the name of one of ds_configs; default zero3.json.",
    "recipe": "YAML file of flags, or the name of one of launch/recipes; flags given here win.",
    "preset": "published or recommended settings, under recipe and flags; default: published, and "
    "recommended for the demos.",
}
LAUNCHERS = ("local_rank",)
"""Flags that a launcher adds; the environment holds the same values."""

MOST_NODES, MOST_RANKS = 100_000, 1_024
"""Limits on the nodes of a job and on the ranks of a node."""

ROOT = Path(__file__).resolve().parents[1]
"""Root of the checkout, or the folder in which the project is installed."""

DS_CONFIGS, RECIPES = ROOT / "ds_configs", ROOT / "launch" / "recipes"
DEFAULT_DS_CONFIG = DS_CONFIGS / "zero3.json"


def train_flags(words: Sequence[str]) -> dict[str, str]:
    """Name -> unparsed value of the flags of launch/train.py; a flag without a value is "True".

    Raises:
        InputError: a word is neither a flag nor the value of a flag.
    """
    flags: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        name, given, value = spelled(word).partition("=")
        if word in ("-h", "--help"):
            return {"help": "True"}
        if not name.startswith("--") or not name.strip("-_"):
            raise InputError(f"unexpected argument {word!r}; settings are given as --name value")
        if not given:
            value = left.pop(0) if left and not left[0].startswith("--") else "True"
        name = name.removeprefix("--")
        flags.pop(name, None)  # the last one counts, and keeps its position
        flags[name] = value
    return flags


def as_words(flags: Mapping[str, str]) -> list[str]:
    """Words that ``train_flags`` turns back into these flags."""
    words = []
    for name, value in flags.items():
        # After a space, a value that begins with -- would be read as a flag.
        words += [f"--{name}={value}"] if value.startswith("--") else [f"--{name}", value]
    return words


def train_script() -> list[str]:
    """Arguments of a DeepSpeed launcher: the script of a checkout, or else the installed module."""
    if (ROOT / "pyproject.toml").is_file():
        return [str(ROOT / "launch" / "train.py")]
    return ["--module", "launch.train"]


def read_flags(arguments: Sequence[str], flags: Mapping[str, str]) -> tuple[RunConfig, Path]:
    """The run and its DeepSpeed file.

    Raises:
        InputError: an unknown flag, a stray argument, a value of the wrong type, or a run
            directory whose name cannot be written to a record.
    """
    if arguments:
        raise InputError(
            f"unexpected argument {arguments[0]!r}; settings are given as --name value"
        )
    given = {name: value for name, value in flags.items() if name not in LAUNCHERS}
    known = [*config_io.fields(), *OWN]
    for name in given:
        if name.rpartition(".")[2] not in known:
            raise unknown("flag", f"--{name}", [f"--{k}" for k in known])
    ds_config = coerce("ds_config", given.pop("ds_config", DEFAULT_DS_CONFIG), Path)
    recipe = coerce("recipe", given.pop("recipe", None), Path | None)
    ds_config, recipe = _shipped(ds_config, DS_CONFIGS), recipe and _shipped(recipe, RECIPES)
    preset = coerce("preset", given.pop("preset", None), str | None)
    config = config_io.build(given, recipe)
    under = preset_settings(preset, method=config.method.method, benchmark=config.data.benchmark)
    config = config_io.build(given, recipe, under)
    try:
        check_path("output_dir", config.run_dir.absolute())
    except FileNotFoundError:
        raise InputError("the current folder is gone; start from one that is there") from None
    return config, ds_config


def _shipped(path: Path, folder: Path) -> Path:
    """``path``, or the project's file of that name if ``path`` is a bare name and no file here."""
    own = folder / path.name
    bare = path == Path(path.name)
    return own if bare and not os.path.lexists(path) and os.path.isfile(own) else path


def usage(introduction: str) -> str:
    """Every flag with its default and its one-line description."""
    lines = [introduction.strip(), ""]
    for name, text in OWN.items():
        lines.append(f"  --{name:24} {text}")
    methods, of_methods = _methods()
    run = RunConfig(method=MethodConfig(method=DEFAULT_METHOD))
    for section, kind in config_io.SECTIONS.items():
        lines += ["", f"{section}: {inspect.getdoc(kind)}"]
        (declared,) = ast.parse(inspect.getsource(kind)).body
        flags = [
            (name, text, getattr(getattr(run, section), name))
            for name, text, _ in _documented(declared)
        ]
        if section == "method":
            ((name, text, value),) = flags
            flags = [(name, f"{text} One of {', '.join(methods)}.", value), *of_methods]
        lines += [f"  --{name:24} {text} [{value}]" for name, text, value in flags]
    return "\n".join(lines)


def _methods() -> tuple[list[str], list[tuple[str, str, Any]]]:
    """Names of all methods, and their settings as (name, text, default).

    Read from the text of the methods' files, because importing a method imports torch.
    """
    methods: list[str] = []
    settings: list[tuple[str, str, Any]] = []
    for path in sorted((ROOT / "moram_dist" / "methods").glob("*.py")):
        for node in ast.parse(read_text(path)).body:
            for made_by in getattr(node, "decorator_list", ()):
                if ast.unparse(made_by) == "section":
                    settings += [
                        (name, text, ast.literal_eval(default))
                        for name, text, default in _documented(node)
                    ]
                elif isinstance(made_by, ast.Call) and "METHODS" in ast.unparse(made_by.func):
                    methods.append(ast.literal_eval(made_by.args[0]))
    return sorted(methods), settings


def _documented(kind: Any) -> Iterator[tuple[str, str, Any]]:
    """Name, text and default of each field of a class; the text is the literal under it."""
    for field, text in itertools.pairwise(kind.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            words = ast.literal_eval(text.value).split()
            yield ast.unparse(field.target), " ".join(words), field.value
