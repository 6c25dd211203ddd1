"""Make tasks of data sets of pictures: draw shots, number examples, and let classes compete.

A picture is a prompt and its class the answer. Where the classes of all tasks compete, a label is
``<task>/<class>``, as classes of two tasks may share a name.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from moram_dist.registry import InputError, unknown
from moram_dist.tasks.pictures.picture_set import Picture, PictureSet
from moram_dist.tasks.pictures.shots import draw_shots, spread
from moram_dist.tasks.task import Example, Source, Task, TaskRules
from moram_dist.terminal import quoted

RULES = TaskRules(metric="exact_match", max_prompt_tokens=77, max_answer_tokens=1)
"""What tasks of pictures have in common. 77 is CLIP's longest text."""

LEARNING_RATE = 5e-4
BATCH_SIZE = 64
STEPS = 500
"""MoRAM's settings on X-TAIL, from its run script; with 16 shots of 100 classes, 20 epochs."""

HELD_OUT = {"test": "val"}
"""The value of ``--splits`` for a task that is scored on its validation pictures."""

_MOST_NOTED = 5


@dataclass(frozen=True, kw_only=True)
class Part:
    """A task's data before shots are drawn."""

    name: str
    data: PictureSet
    texts: tuple[tuple[str, ...], ...]
    """Of each class, in label order."""

    rules: TaskRules = RULES
    shots: int | None = None
    """Training pictures of each class; None: all."""


def check_source(benchmark: str, source: Source, protocols: Iterable[str]) -> tuple[str, Path]:
    """The protocol's name, by default the first, and the folder of data sets.

    Raises:
        InputError: an unknown protocol, replaced splits, an impossible number, or no folder.
    """
    known = list(protocols)
    protocol = known[0] if source.protocol is None else source.protocol
    if protocol not in known:
        raise unknown(f"protocol of {benchmark}", protocol, known)
    for task, splits in source.splits.items():
        if splits != HELD_OUT:
            raise InputError(
                f"{benchmark}: splits of task {task}: the only other split of pictures is "
                f"{json.dumps(HELD_OUT)}"
            )
    for name in ("limit_train", "limit_eval", "shots"):
        value = getattr(source, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if source.data_dir is None:
        raise InputError(f"{benchmark} needs --data_dir, the folder that holds its data sets")
    return protocol, source.data_dir


def picture_tasks(
    parts: Sequence[Part],
    source: Source,
    *,
    together: Sequence[str] = (),
    text_to_image: Callable[[int, int], float],
) -> tuple[tuple[Task, ...], list[str]]:
    """The tasks, and notes about classes that no text tells apart.

    Args:
        parts: in the order in which they are learned.
        source: seed, shots and limits.
        together: task names in the order of their labels, if the classes of all tasks compete. That
            order is fixed, so that ties are resolved alike however tasks are ordered.
        text_to_image: weight of that term, from the numbers of the task's own classes and of all
            classes so far, its own included.
    """
    by_name = {part.name: part for part in parts}
    joint = [by_name[name] for name in together if name in by_name]
    all_labels = tuple(f"{part.name}/{name}" for part in joint for name in part.data.names)
    all_texts = tuple(texts for part in joint for texts in part.texts)
    notes = _ties(all_labels, all_texts) if joint else []
    tasks, so_far = [], 0
    for part in parts:
        own = part.data.names
        so_far += len(own)
        if joint:
            own = tuple(f"{part.name}/{name}" for name in own)
        else:
            notes += [f"{part.name}: {note}" for note in _ties(own, part.texts)]
        rules = {field.name: getattr(part.rules, field.name) for field in fields(TaskRules)}
        rules |= {
            "labels": all_labels if joint else own,
            "texts": all_texts if joint else part.texts,
            "train_labels": own if joint else (),
            "text_to_image": text_to_image(len(own), so_far),
        }
        tasks.append(
            Task(
                name=part.name,
                pictures=part.data.folder,
                train=_train(part, own, source),
                test=_test(part, own, source),
                **rules,
            )
        )
    return tuple(tasks), notes


def _train(part: Part, labels: Sequence[str], source: Source) -> tuple[Example, ...]:
    pictures, shots = part.data.train, source.shots or part.shots
    places: Sequence[int] = range(len(pictures))
    if shots is not None and not source.every_picture:
        places = draw_shots(
            pictures, part.data.names, shots=shots, seed=source.seed, task=part.name
        )
    return _examples("train", pictures, spread(places, source.limit_train), labels)


def _test(part: Part, labels: Sequence[str], source: Source) -> tuple[Example, ...]:
    split, pictures = "test", part.data.test
    if part.name in source.splits:
        split, pictures = "val", part.data.val
        if not pictures:
            raise InputError(f"{part.data.where}: has no validation pictures for --splits")
    return _examples(split, pictures, spread(range(len(pictures)), source.limit_eval), labels)


def _examples(
    split: str, pictures: Sequence[Picture], places: Sequence[int], labels: Sequence[str]
) -> tuple[Example, ...]:
    return tuple(
        Example(f"{split}-{place}", pictures[place].name, (labels[pictures[place].label],))
        for place in places
    )


def _ties(labels: Sequence[str], texts: Sequence[tuple[str, ...]]) -> list[str]:
    """Notes on labels with the same texts. CLIP's tokenizer makes all letters small."""
    alike = defaultdict(list)
    for label, own in zip(labels, texts, strict=True):
        alike[tuple(text.lower() for text in own)].append(label)
    ties = [
        f"{quoted(own[0])} is the text of {' and '.join(same)}: such a picture is always taken for "
        "the first"
        for own, same in alike.items()
        if len(same) > 1
    ]
    more = len(ties) - _MOST_NOTED
    return ties[:_MOST_NOTED] + ([f"{more} more texts are of several classes"] if more > 0 else [])
