"""Required versions of Python and packages: from a checkout's files, or the installed package."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "moram-dist"


def least_python(pyproject: Path) -> str:
    """``requires-python``, such as ``3.11``."""
    if pyproject.is_file():
        text = pyproject.read_text(encoding="utf-8")
    else:
        text = f'requires-python = "{metadata.metadata(DISTRIBUTION)["Requires-Python"]}"'
    least = re.search(r'requires-python = ">=([\d.]+)"', text)
    assert least, pyproject
    return least[1]


def pins(requirements: Path) -> dict[str, str]:
    """Package -> pinned version, from the file's own lines."""
    text = requirements.read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,.-]+\])?==([\w.+]+)", text, re.MULTILINE))


def is_pinned(installed: str, asked: str) -> bool:
    """Whether both versions are the same; a build label such as +cpu is ignored."""
    return asked in (installed, installed.partition("+")[0])


def ranges(extras: Collection[str]) -> dict[str, str]:
    """Package -> version range that the installed distribution requires with these extras."""
    from packaging.requirements import Requirement

    asked = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    return {
        each.name: str(each.specifier)
        for each in asked
        if each.name != DISTRIBUTION
        and (not each.marker or any(each.marker.evaluate({"extra": e}) for e in ("", *extras)))
    }


def is_within(installed: str, asked: str) -> bool:
    """Whether a version is in a range such as ``>=2.13,<3``."""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(asked).contains(installed, prereleases=True)


def differing(asked: Mapping[str, str], fits: Callable[[str, str], bool]) -> list[str]:
    """A few words for each package that is missing or whose version does not fit."""
    wrong = []
    for name, version in asked.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing ({version})")
            continue
        if not fits(installed, version):
            wrong.append(f"{name} {installed} ({version})")
    return wrong
