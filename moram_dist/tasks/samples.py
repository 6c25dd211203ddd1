"""Read the records of published benchmarks, whose files have three shapes.

    {"Definition": [text], "Instances": [{"input": text, "output": text or list}]}    instance
    [{"sentence": text, "label": text}]                                               sentence
    [{"prompt": text, "answer": text or list}]                                        prompt

The content determines the shape. ``.jsonl`` files hold the records of a list, one per line. Records
are checked as they are read, so a limit also limits the checks. A ``.json`` file is one document
and is parsed whole; the published ones have a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moram_dist.reading import read_json
from moram_dist.registry import InputError
from moram_dist.tasks.readers import check_records, kind_of, read_records, text_field, texts_field


@dataclass(frozen=True)
class Sample:
    """A record from a file, before a protocol makes a prompt of it."""

    where: str
    """File and record, for messages."""

    shape: str
    """``instance``, ``sentence`` or ``prompt``, see above."""

    text: str
    answers: tuple[str, ...]
    """At least one; those of an instance may be blank."""

    definition: str = ""
    """The task's instruction, stripped, if the file has one."""

    def expect(self, *shapes: str) -> None:
        """Raises InputError where the shape is not one of these."""
        if self.shape not in shapes:
            raise InputError(
                f"{self.where}: the protocol has no template for a {_SHAPES[self.shape]}, it needs "
                f"a {' or a '.join(_SHAPES[shape] for shape in shapes)}"
            )


def is_silent(text: str) -> bool:
    """Whether an answer has neither a letter nor a digit, such as ``-`` for unlabelled."""
    return not any(map(str.isalnum, text))


_SHAPES = {
    "instance": "record of 'Definition' and 'Instances'",
    "sentence": "record of 'sentence' and 'label'",
    "prompt": "complete 'prompt' with its 'answer'",
}


def read_samples(path: Path) -> Iterator[Sample]:
    """The records of a file, in its order.

    Raises:
        InputError: the file is missing, unreadable, not UTF-8 or malformed, or a record has none of
            the shapes; names the file and the record, counted from 0.
    """
    content = read_json(path) if path.suffix == ".json" else None
    if isinstance(content, dict):
        yield from _instances(path, content)
        return
    for where, record in read_records(path) if content is None else check_records(path, content):
        if "sentence" in record:
            shape, question, answer = "sentence", "sentence", "label"
        else:
            shape, question, answer = "prompt", "prompt", "answer"
        text = text_field(record, question, where)
        yield Sample(where, shape, text, texts_field(record, answer, where))


def _instances(path: Path, content: dict[str, Any]) -> Iterator[Sample]:
    definition = content.get("Definition", [])
    if not isinstance(definition, list) or not all(isinstance(text, str) for text in definition):
        raise InputError(f"{path}: 'Definition' must be a list of texts")
    instances = content.get("Instances")
    if not isinstance(instances, list):
        raise InputError(f"{path}: 'Instances' must be a list of objects, got {kind_of(instances)}")
    stripped = definition[0].strip() if definition else ""
    for where, record in check_records(path, instances):
        answers = texts_field(record, "output", where, empty=True)
        yield Sample(where, "instance", text_field(record, "input", where), answers, stripped)
