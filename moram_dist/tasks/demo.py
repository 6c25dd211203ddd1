"""The built-in demo: five small tasks that ask different questions about the same kind of sentence.

Every prompt is an instruction, a sentence and a cue. The sentences of all tasks come from one
distribution, so only the instruction and the cue distinguish the tasks. A model trained on "which
mood?" tends to answer the mood when the question is about the topic again: this is the forgetting
that continual learning is about, in seconds and without a download.

The texts are generated from ``Source.seed``. The demo shows that the software works; it is not
meant to compare methods for a paper.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from moram_dist.registry import InputError, unknown
from moram_dist.tasks.demo_text import SLOTS, make_sentence, question
from moram_dist.tasks.orders import choose_order
from moram_dist.tasks.task import BENCHMARKS, Benchmark, Example, Source, Task

TRAIN_EXAMPLES = 256
TEST_EXAMPLES = 48
EPOCHS = 3
LEARNING_RATE = 3e-3  # best mean AP of MoRAM over three seeds, docs/methods.md
BATCH_SIZE = 16


@dataclass(frozen=True)
class _Ask:
    """A task's question about its slot; the task, its slot and the key below share one name."""

    instruction: str
    cue: str


ASKS = {
    "topic": _Ask("What sort of thing is it about?", "Topic"),
    "mood": _Ask("Which feeling does somebody show here?", "Mood"),
    "place": _Ask("Where does all this happen?", "Place"),
    "time": _Ask("Tell the part of the day.", "Time"),
    "job": _Ask("Say which work the person does.", "Job"),
}

ORDERS = {
    "default": tuple(ASKS),
    "reversed": tuple(reversed(ASKS)),
    "alphabetical": tuple(sorted(ASKS)),
}


@BENCHMARKS.register("demo")
def demo(source: Source) -> Benchmark:
    """Generate the demo.

    Raises:
        InputError: files were given, the protocol is not ``demo``, or the order is neither a named
            one nor a comma-separated list of distinct tasks.
    """
    if source.data_dir is not None:
        raise InputError("demo is generated and takes no --data_dir")
    if source.splits:
        raise InputError("demo is generated and takes no splits")
    if source.protocol not in (None, "demo"):
        raise unknown("protocol", source.protocol, ["demo"])
    order, names = choose_order(source.order, named=ORDERS, tasks=tuple(ASKS))
    return Benchmark(
        name="demo",
        order=order,
        protocol="demo",
        tasks=tuple(_task(name, source) for name in names),
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
    )


def _task(name: str, source: Source) -> Task:
    """Draw a task's sentences from its own generator, so that they are the same in every order."""
    rng = random.Random(f"demo/{source.seed}/{name}")
    labels = tuple(SLOTS[name])
    texts: dict[str, str] = {}  # text -> label; repeated texts are dropped, so that train and
    while len(texts) < TRAIN_EXAMPLES + TEST_EXAMPLES:  # test share none
        label = labels[len(texts) % len(labels)]
        texts.setdefault(make_sentence(rng, **{name: label}).text, label)
    pairs = list(texts.items())
    train, test = pairs[:TRAIN_EXAMPLES], pairs[TRAIN_EXAMPLES:]
    rng.shuffle(train)  # otherwise labels alternate, and their position would reveal them
    return Task(
        name=name,
        metric="exact_match_normalised",
        train=_examples(name, "train", train[: source.limit_train]),
        test=_examples(name, "test", test[: source.limit_eval]),
        labels=labels,
        epochs=EPOCHS,
        max_prompt_tokens=64,
        max_answer_tokens=8,
        separator=" ",
    )


def _examples(name: str, split: str, pairs: list[tuple[str, str]]) -> tuple[Example, ...]:
    ask = ASKS[name]
    return tuple(
        Example(f"{split}-{i}", question(ask.instruction, text, ask.cue), (label,))
        for i, (text, label) in enumerate(pairs)
    )
