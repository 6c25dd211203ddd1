"""Prose of README.md and docs/*.md has one sentence per line, so that diffs show sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.documents import blocks, pages

EXEMPT = ("log.md",)
"""Not rewritten yet."""

MARKER = re.compile(r"\s*(?:- |\d+\. )?")
NEXT_SENTENCE = re.compile(r"[.!?][\"')*]* +[\"'(*\[]*[A-Z]")
END = re.compile(r"[.:;!?][\"')*]*$")


def prose(text: str) -> Iterator[tuple[int, str, bool]]:
    """Number and text of each line outside code, tables, headings and pictures; before code?"""
    lines = text.split("\n")
    code = {first + i for first, block in blocks(text) for i, line in enumerate(block) if line}
    for number, line in enumerate(lines, start=1):
        if number in code or re.match(r"\s*$|\||#|!\[|<img ", line):
            continue
        following = (k for k in range(number + 1, len(lines) + 1) if lines[k - 1])
        plain = re.sub(r"`[^`]+`", "Code", MARKER.sub("", line, count=1))
        yield number, plain, next(following, 0) in code


@pytest.mark.parametrize(
    "page", [p for p in pages() if p.name not in EXEMPT], ids=lambda path: path.name
)
def test_a_line_of_prose_is_one_sentence(page: Path):
    for number, line, before_code in prose(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{number}: {line}"
        assert not NEXT_SENTENCE.search(line), f"a second sentence: {where}"
        assert before_code or END.search(line), f"a sentence that goes over the line: {where}"


def test_the_check_sees_both_faults():
    assert NEXT_SENTENCE.search("One. Two.") and NEXT_SENTENCE.search("(One.) **Two.**")
    assert not NEXT_SENTENCE.search("Lu et al., 2026, at 0.3 and v. 2.")
    assert END.search("One.)") and not END.search("One, broken")
