"""A file of prompts and the file of their answers, of which none is lost if the program ends.

Answers are appended to ``<out>.partial`` as they come. Once all are there, ``<out>`` is written in
the order of the prompts, at once, and the other file is removed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moram_dist.data.chat import ChatTemplate
from moram_dist.files import append, exclusive_lock, write_atomically, writing
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records, text_field

SYNC_S = 1.0
"""Most seconds of answers that a power loss takes."""


@dataclass(frozen=True)
class Question:
    """A record of a file of prompts."""

    record: dict[str, Any]
    text: str
    """The prompt as the model reads it."""

    is_chat: bool = False
    """Whether the tokenizer's template wrote it, with BOS if it wants one."""


def read_questions(path: Path, tokenizer: Any, *, chat: bool) -> list[Question]:
    """The prompts of a ``.jsonl`` or ``.json`` file: ``prompt``, or ``messages`` of a chat.

    Args:
        path: the file.
        tokenizer: whose template writes chats.
        chat: whether a ``prompt`` is what the user says in a chat.

    Raises:
        InputError: as ``read_records``; the file is empty, a record has no prompt, a chat cannot be
            written, or some records are chats and some are not.
    """
    questions = []
    for where, record in read_records(path):
        if isinstance(record.get("messages"), list) and "prompt" not in record:
            text = write_chat(tokenizer, record["messages"], where)
            questions.append(Question(record, text, is_chat=True))
            continue
        text = text_field(record, "prompt", where)
        text = user_says(tokenizer, text, where) if chat else text
        questions.append(Question(record, text, is_chat=chat))
    if not questions:
        raise InputError(f"{path}: holds no prompts")
    if len({question.is_chat for question in questions}) > 1:
        raise InputError(f"{path}: some records are chats and some are not; --chat makes all chats")
    return questions


def user_says(tokenizer: Any, text: str, where: str) -> str:
    """A chat of one turn, up to the point where the model answers. Raises as ``write_chat``."""
    return write_chat(tokenizer, [{"role": "user", "content": text}], where)


def write_chat(tokenizer: Any, messages: Sequence[Any], where: str) -> str:
    """A chat written by the tokenizer's template.

    Raises:
        InputError: the tokenizer has no template, or it fails on the messages.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{where}: the base's tokenizer has no chat template; give plain prompts")
    try:
        turns = [(turn["role"], turn["content"]) for turn in messages]
    except (TypeError, KeyError):
        raise InputError(f"{where}: each turn needs role and content") from None
    return ChatTemplate.for_answers(tokenizer).asking(turns, where)


class AnswerFile:
    """The answers to a list of prompts, in memory and in ``<out>.partial``."""

    def __init__(self, file: BinaryIO, partial: Path, digest: str, total: int) -> None:
        """Read the answers of an earlier start.

        Raises:
            InputError: the file holds answers to other prompts, or by another memory.
        """
        self.file = file
        self.partial = partial
        self.found: dict[int, dict[str, Any]] = {}
        self._synced = time.monotonic()
        lines = partial.read_bytes().split(b"\n")
        whole, torn = lines[:-1], lines[-1]
        with writing(partial):
            if torn:
                file.truncate(sum(len(line) + 1 for line in whole))
            if not whole:
                append(file, _line({"digest": digest}))
        if whole and not _begins(whole[0], digest):
            raise _other(partial)
        for line in whole[1:]:
            try:
                entry = json.loads(line)
                known = 0 <= entry["index"] < total
            except (ValueError, KeyError, TypeError):
                known = False
            if not known:
                raise _other(partial)
            self.found[entry.pop("index")] = entry

    def add(self, index: int, answer: dict[str, Any]) -> None:
        """Keep an answer."""
        self.found[index] = answer
        with writing(self.partial):
            append(self.file, _line({"index": index, **answer}))
            if time.monotonic() - self._synced > SYNC_S:
                os.fsync(self.file.fileno())
                self._synced = time.monotonic()


@contextmanager
def answer_file(out: Path, digest: str, questions: Sequence[Question]) -> Iterator[AnswerFile]:
    """The answers so far; at the end, if there is one to each prompt, ``out`` is written.

    Args:
        out: the file of answers: each record of the prompts, with the fields of its answer.
        digest: of all that the answers depend on.
        questions: from ``read_questions``.

    Raises:
        InputError: ``out`` exists, or another process is writing it.
        WriteError: it cannot be written.
    """
    partial = _partial(out)
    try:
        with exclusive_lock(partial, wait=False) as file:
            answers = AnswerFile(file, partial, digest, len(questions))
            yield answers
            if len(answers.found) == len(questions):
                lines = (_line({**q.record, **answers.found[i]}) for i, q in enumerate(questions))
                write_atomically(out, b"".join(lines))
                with writing(partial):
                    partial.unlink()
    except BlockingIOError:
        raise InputError(f"{partial} is in use by another process") from None


def check_out(out: Path, digest: str) -> None:
    """Raises InputError if ``out`` is there, or was begun with another digest."""
    if os.path.lexists(out):
        raise InputError(f"--out {out}: is there already; remove it or give another name")
    partial = _partial(out)
    if partial.is_file():
        lines = partial.read_bytes().split(b"\n")
        if len(lines) > 1 and not _begins(lines[0], digest):
            raise _other(partial)


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _begins(line: bytes, digest: str) -> bool:
    """Whether a file of answers with this first line has that digest."""
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("digest") == digest


def _other(partial: Path) -> InputError:
    return InputError(
        f"{partial} holds answers to other prompts, settings or tasks: remove it, or give another "
        "--out"
    )


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
