"""Convert the user's records to examples; a record's keys determine its form.

    {"prompt": ..., "answer": ...}                         or two fields named in tasks.yaml
    {"instruction": ..., "input": ..., "output": ...}      Alpaca; input may be absent or empty
    {"messages": [{"role": ..., "content": ...}, ...]}     a chat
    {"conversations": [{"from": ..., "value": ...}, ...]}  ShareGPT's chat

The last turn of a chat is the answer and must be the assistant's; the turns before it are the
prompt, which the tokenizer's chat template writes (``moram_dist.data.chat``).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from moram_dist.registry import InputError, unknown
from moram_dist.tasks.readers import kind_of, read_records, text_field, texts_field
from moram_dist.tasks.task import Example

FORMS = {
    "prompt and answer": ("prompt", "answer"),
    "instruction and output": ("instruction", "output"),
    "messages": ("messages",),
    "conversations": ("conversations",),
}
"""Form -> the keys that identify it."""

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def read_examples(
    path: Path,
    *,
    split: str,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    limit: int | None = None,
) -> tuple[Example, ...]:
    """The examples of one split, in the order of the file.

    Args:
        path: a ``.json`` or ``.jsonl`` file in UTF-8.
        split: first part of the examples' ids, ``<split>-<index in the file>``.
        prompt_field: the key of the prompt, a text. If it or ``answer_field`` is given, records
            have no other form, and the default of the other one is ``prompt`` or ``answer``.
        answer_field: the key of the answer: a text, or a list of accepted texts.
        limit: read only this number of records; later ones are not checked.

    Raises:
        InputError: the file is missing, unreadable, not UTF-8, malformed or empty, a record has
            none of the forms or two of them, a field is missing or not text, or ``limit`` is
            under 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit on {split} examples must be at least 1, got {limit}")
    named = prompt_field is not None or answer_field is not None
    examples = []
    for index, (where, record) in enumerate(islice(read_records(path), limit)):
        form = "prompt and answer" if named else _form(record, where)
        examples.append(_READ[form](f"{split}-{index}", record, where, prompt_field, answer_field))
    if not examples:
        raise InputError(f"{path}: holds no examples")
    return tuple(examples)


def _form(record: dict[str, Any], where: str) -> str:
    found = [name for name, keys in FORMS.items() if all(key in record for key in keys)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{where}: holds {' and also '.join(found)}; keep one, or name prompt_field and "
            "answer_field in tasks.yaml"
        )
    if "prompt" in record or "answer" in record:
        return "prompt and answer"  # reading it names the missing field
    keys = ", ".join(map(repr, record)) or "none"
    raise InputError(
        f"{where}: expected the fields {'; or '.join(FORMS)}; found: {keys} (tasks.yaml can name "
        "others: prompt_field, answer_field)"
    )


def _plain(
    name: str, record: dict[str, Any], where: str, prompt: str | None, answer: str | None
) -> Example:
    return Example(
        id=name,
        prompt=text_field(record, prompt or "prompt", where),
        references=texts_field(record, answer or "answer", where),
    )


def _alpaca(name: str, record: dict[str, Any], where: str, *_: object) -> Example:
    parts = [text_field(record, "instruction", where)]
    if record.get("input"):
        parts.append(text_field(record, "input", where, empty=True))
    return Example(
        id=name,
        prompt="\n".join(part for part in parts if part.strip()),
        references=texts_field(record, "output", where),
    )


def _messages(name: str, record: dict[str, Any], where: str, *_: object) -> Example:
    return _chat(name, record["messages"], where, "messages", ("role", "content"))


def _conversations(name: str, record: dict[str, Any], where: str, *_: object) -> Example:
    return _chat(name, record["conversations"], where, "conversations", ("from", "value"))


def _chat(name: str, value: Any, where: str, field: str, keys: tuple[str, str]) -> Example:
    if not isinstance(value, list) or len(value) < 2:
        raise InputError(f"{where}: {field!r} must be a list of at least two turns")
    turns = []
    for index, turn in enumerate(value):
        place = f"{where}, {field}[{index}]"
        if not isinstance(turn, dict):
            raise InputError(f"{place}: expected an object, got {kind_of(turn)}")
        role = text_field(turn, keys[0], place)
        if role not in ROLES:
            raise InputError(f"{place}: {unknown('role', role, ROLES)}")
        turns.append((ROLES[role], text_field(turn, keys[1], place)))
    *asked, (last, answer) = turns
    if last != "assistant":
        raise InputError(f"{where}: the last of {field!r} must be the assistant's answer")
    prompt = "\n".join(f"{role}: {text}" for role, text in asked)
    return Example(id=name, prompt=prompt, references=(answer,), turns=tuple(asked))


_READ: dict[str, Callable[..., Example]] = {
    "prompt and answer": _plain,
    "instruction and output": _alpaca,
    "messages": _messages,
    "conversations": _conversations,
}
