"""The commands that README.md and docs/*.md print, in the order in which one reads them.

A command is a line of a code block, or a code span of at least two words, that begins with a
program of PROGRAMS. A line goes on after a backslash, through a here-document and through a loop. A
block that begins with an import is a Python snippet and counts as one command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

READ_FIRST = ("README.md", "docs/user_guide.md", "docs/own_tasks.md")
"""Later pages use what these make; the others follow by name."""

PROGRAMS = (
    *(
        "make",
        "deepspeed",
        "moram",
        "python",
        "python3",
        "torchrun",
        "pip",
        "pytest",
        "mlflow",
        "ruff",
    ),
    *("sbatch", "srun", "scancel", "scontrol", "squeue", "docker", "hadolint", "nvidia-smi"),
    *("source", "export", "cat", "cp", "mv", "rm", "mkdir", "ls", "curl", "git", "kill", "df"),
)


LOOP = re.compile(r"for .*; do$")


@dataclass(frozen=True)
class Command:
    """What a reader would paste into a shell."""

    page: str
    line: int
    text: str

    @property
    def name(self) -> str:
        """Where it stands, and how it begins."""
        return f"{self.page}:{self.line} {' '.join(self.text.split()[:3])}"


def pages() -> list[Path]:
    """Paths of all documents."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return sorted(found, key=lambda path: (_place(path), path.name))


def _place(path: Path) -> int:
    name = str(path.relative_to(ROOT))
    return READ_FIRST.index(name) if name in READ_FIRST else len(READ_FIRST)


def commands(path: Path) -> list[Command]:
    """All commands of a page."""
    text = path.read_text(encoding="utf-8")
    page, found = str(path.relative_to(ROOT)), []
    for first, lines in blocks(text):
        found += [Command(page, first + offset, words) for offset, words in _of_block(lines)]
        # Code spans are looked for in what is no block; the lines keep their numbers.
        kept = text.split("\n")
        kept[first - 1 : first - 1 + len(lines)] = [""] * len(lines)
        text = "\n".join(kept)
    for span in re.finditer(r"`((?:[^`\n]|\n(?!\n))+)`", text):
        words = " ".join(span[1].split())
        if _begins_with_program(words) and " " in words:
            found.append(Command(page, text.count("\n", 0, span.start()) + 1, words))
    return sorted(found, key=lambda command: command.line)


def blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Code blocks, indented by four spaces or fenced: number of the first line, lines without it.

    Blank lines within a block are part of it.
    """
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        fenced = re.match(r"```", lines[number])
        first = number + 1 if fenced else number
        end = first
        if fenced:
            while end < len(lines) and not lines[end].startswith("```"):
                end += 1
            yield first + 1, lines[first:end]
            number = end + 1
            continue
        while end < len(lines) and re.match(r" {4}|$", lines[end]):
            end += 1
        block = "\n".join(line[4:] for line in lines[first:end]).rstrip("\n").split("\n")
        if any(block):
            blank = next(i for i, line in enumerate(block) if line)
            yield first + blank + 1, block[blank:]
        number = max(end, number + 1)


def _of_block(lines: list[str]) -> Iterator[tuple[int, str]]:
    if re.match(r"(from \S+ )?import ", lines[0]):
        yield 0, "\n".join(["python - <<'END'", *lines, "END"])
        return
    number = 0
    while number < len(lines):
        start = number
        text = lines[number]
        while text.endswith("\\") and number + 1 < len(lines):
            number += 1
            text = f"{text.removesuffix(chr(92)).rstrip()} {lines[number].strip()}"
        here = re.search(r"<<'?(\w+)'?$", text)
        if until := here[1] if here else "done" if LOOP.match(text) else None:
            while lines[number] != until and number + 1 < len(lines):
                number += 1
                text += f"\n{lines[number]}"
        else:
            text = re.sub(r"\s+#\s.*", "", text)
        if _begins_with_program(text):
            yield start, text
        number += 1


def _begins_with_program(text: str) -> bool:
    words = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", text).split()
    return bool(words) and (words[0] in PROGRAMS or bool(LOOP.match(text.split("\n")[0])))
