"""What the documents quote and link to is there: messages in the code, files, headings."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from moram_dist.metrics import METRICS
from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.documents import ROOT, pages

PAGE = ROOT / "docs" / "troubleshooting.md"
VALUE = "\0"
"""Stands for what is put into a message when it is made."""

LIBRARIES = {  # message -> the module that says it, None where that is no Python
    "CUDA out of memory": None,
    "exits with return code": "deepspeed/launcher/launch.py",
    "is not a local folder and is not a valid model identifier": "transformers/utils/hub.py",
    "deepspeed: command not found": None,
    "No module named 'moram_dist'": None,
}


def quoted() -> list[str]:
    """The messages of the page: the code spans that begin a row of a table."""
    return re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def as_template(node: ast.AST) -> str | None:
    """The text of a string or f-string, with VALUE for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%s", VALUE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(as_template(part) or VALUE for part in node.values)
    return None


@cache
def templates() -> tuple[str, ...]:
    """Every string of the commands and the library."""
    return tuple(
        template
        for folder in ("moram_dist", "launch", "eval")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (template := as_template(node))
    )


def raised(*errors: str) -> list[str]:
    """The messages that are given to these errors."""
    return [
        template
        for folder in ("moram_dist", "launch", "eval")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in errors and node.args
        if (template := as_template(node.args[0]))
    ]


@pytest.mark.parametrize("message", [m for m in quoted() if m not in LIBRARIES])
def test_a_quoted_message_is_one_that_the_code_gives(message):
    wanted = re.sub(r"\.\.\.", VALUE, message)
    literal = {wanted, wanted.removesuffix(VALUE) + "..."}  # an ellipsis of the message's own
    assert any(text in template for text in literal for template in templates())


@pytest.mark.parametrize("message", LIBRARIES)
def test_a_message_of_a_library_is_quoted_as_the_library_has_it(message):
    assert message in quoted()
    if LIBRARIES[message]:
        package, _, rest = LIBRARIES[message].partition("/")
        found = Path(importlib.util.find_spec(package).origin).parent / rest
        assert message in found.read_text(encoding="utf-8")


def test_every_end_that_is_no_wrong_input_has_its_remedy():
    """Exit codes 3 and 4, which come hours after the command was given."""
    ends = raised("MachineError", "WriteError", "NonFiniteLossError")
    assert len(ends) >= 6
    known = [re.sub(r"\.\.\.", VALUE, message) for message in quoted()]
    for end in ends:
        assert end in known, end.replace(VALUE, "...")


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?:\]\(|<img src=\")([^)\"\s]+)[)\"]", text):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_lists_every_page_and_is_read_in_one_sitting():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    for page in pages()[1:]:
        assert f"(docs/{page.name})" in text, page.name


def test_own_tasks_names_every_key_and_every_metric(tmp_path):
    text = (ROOT / "docs" / "own_tasks.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    assert named >= set(METRICS)
    (tmp_path / "tasks.yaml").write_text("- {zzzzzzzz: 1}\n")
    with pytest.raises(InputError) as refused:
        BENCHMARKS["jsonl"](Source(data_dir=tmp_path))
    keys = str(refused.value).partition("known: ")[2].split(", ")
    assert len(keys) > 5 and named >= set(keys)
