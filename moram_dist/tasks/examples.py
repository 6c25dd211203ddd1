"""Convert the user's records to examples; a record's keys determine its form.

    {"prompt": ..., "answer": ...}                         or two fields named in tasks.yaml
    {"instruction": ..., "input": ..., "output": ...}      Alpaca; input may be absent or empty
    {"messages": [{"role": ..., "content": ...}, ...]}     a chat
    {"conversations": [{"from": ..., "value": ...}, ...]}  ShareGPT's chat

All records of a file have one form. The last turn of a chat is the answer and must be the
assistant's; the turns before it are the prompt, which the tokenizer's chat template writes
(``moram_dist.data.chat``).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from moram_dist.registry import InputError, unknown
from moram_dist.tasks.hub import DataSet
from moram_dist.tasks.readers import kind_of, text_field, texts_field
from moram_dist.tasks.record_files import read_file
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

TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")

UNREAD = ("system", "history", "tools")
"""Keys that other programs read beside a form's own, and this one does not."""


class _Fields(NamedTuple):
    """The keys that the user names."""

    prompt: str | None
    answer: str | None
    chat: str | None


def read_examples(
    source: Path | DataSet,
    *,
    split: str,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    chat_field: str | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Example, ...]:
    """The examples of one split, in the order of their records.

    Args:
        source: a file of a type that ``read_file`` knows, or a data set.
        split: first part of the examples' ids, ``<split>-<index of the record>``.
        prompt_field: the key of the prompt, a text. If it or ``answer_field`` is given, records
            have no other form, and the default of the other one is ``prompt`` or ``answer``.
        answer_field: the key of the answer: a text, or a list of accepted texts.
        chat_field: the key of a chat. If it is given, records have no other form.
        limit: read only this number of records; later ones are not checked.
        say: called with one line for each key of ``UNREAD`` that holds something.

    Raises:
        InputError: the source is missing, unreadable, malformed or empty, a record has none of the
            forms, two of them or another one than those before it, a field is missing or not
            text, or ``limit`` is under 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit on {split} examples must be at least 1, got {limit}")
    fields = _Fields(prompt_field, answer_field, chat_field)
    records = source.records() if isinstance(source, DataSet) else read_file(source)
    examples: list[Example] = []
    first, unread = "", set()
    for index, (where, record) in enumerate(islice(records, limit)):
        form = _form(record, where, fields)
        if examples and form != first:
            raise InputError(
                f"{where}: holds {form}, and the records before it {first}; a file must have one "
                "form, so split it"
            )
        first = form
        examples.append(_READ[form](f"{split}-{index}", record, where, fields))
        unread |= {key for key in UNREAD if record.get(key) and key not in fields}
    if not examples:
        raise InputError(f"{source}: holds no examples")
    for key in sorted(unread):
        say(f"{source}: {key!r} of its records is not read; write it into the prompt or the chat")
    return tuple(examples)


def _form(record: dict[str, Any], where: str, fields: _Fields) -> str:
    if fields.chat is not None:
        return "messages"
    if fields.prompt is not None or fields.answer is not None:
        return "prompt and answer"
    # In a table, a key without a value belongs to other rows.
    there = [key for key in record if record[key] is not None]
    found = [name for name, keys in FORMS.items() if {*keys} <= {*there}]
    found = found or [name for name, keys in FORMS.items() if {*keys} <= {*record}]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{where}: holds {' and also '.join(found)}; keep one, or name prompt_field and "
            "answer_field, or chat_field, in tasks.yaml"
        )
    if "prompt" in record or "answer" in record:
        return "prompt and answer"  # reading it names the missing field
    keys = ", ".join(map(repr, record)) or "none"
    raise InputError(
        f"{where}: expected the fields {'; or '.join(FORMS)}; found: {keys} (tasks.yaml can name "
        "others: prompt_field and answer_field, or chat_field)"
    )


def _plain(name: str, record: dict[str, Any], where: str, fields: _Fields) -> Example:
    return Example(
        id=name,
        prompt=text_field(record, fields.prompt or "prompt", where),
        references=texts_field(record, fields.answer or "answer", where),
    )


def _alpaca(name: str, record: dict[str, Any], where: str, fields: _Fields) -> Example:
    parts = [text_field(record, "instruction", where)]
    if record.get("input"):
        parts.append(text_field(record, "input", where, empty=True))
    return Example(
        id=name,
        prompt="\n".join(part for part in parts if part.strip()),
        references=texts_field(record, "output", where),
    )


def _chat(name: str, record: dict[str, Any], where: str, fields: _Fields) -> Example:
    field = fields.chat or ("messages" if record.get("messages") is not None else "conversations")
    value = record.get(field)
    if not isinstance(value, list) or len(value) < 2:
        raise InputError(
            f"{where}: {field!r} must be a list of at least two turns, got {_size(value)}"
        )
    turns = [_turn(turn, f"{where}, {field}[{index}]", field) for index, turn in enumerate(value)]
    *asked, (last, answer) = turns
    if last != "assistant":
        raise InputError(f"{where}: the last of {field!r} must be the assistant's answer")
    prompt = "\n".join(f"{role}: {text}" for role, text in asked)
    return Example(id=name, prompt=prompt, references=(answer,), turns=tuple(asked))


def _size(value: Any) -> str:
    return f"{len(value)}" if isinstance(value, list) else kind_of(value)


def _turn(turn: Any, place: str, field: str) -> tuple[str, str]:
    """Role and text of a turn, by the keys of either form, whatever the field is called."""
    if not isinstance(turn, dict):
        raise InputError(f"{place}: expected an object, got {kind_of(turn)}")
    sharegpt = "from" in turn or (field == "conversations" and "role" not in turn)
    role_key, text_key = ("from", "value") if sharegpt else ("role", "content")
    role = text_field(turn, role_key, place)
    if role in TOOL_ROLES or turn.get("tool_calls"):
        raise InputError(
            f"{place}: calls of tools and their results are not supported; leave such chats out"
        )
    if role not in ROLES:
        raise InputError(f"{place}: {unknown('role', role, ROLES)}")
    return ROLES[role], text_field(turn, text_key, place)


_READ: dict[str, Callable[..., Example]] = {
    "prompt and answer": _plain,
    "instruction and output": _alpaca,
    "messages": _chat,
    "conversations": _chat,
}
