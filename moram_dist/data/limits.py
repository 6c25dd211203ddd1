"""Check that a model has an embedding row for every token of a benchmark.

The check comes before any work, because a token without a row is an error in the middle of a run.
Texts are tokenised only if they might contain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark

TEXTS_AT_ONCE = 1000


def check_ids(tokenizer: Any, benchmark: Benchmark, rows: int, name: str) -> None:
    """Check that the model has a row for every token of the benchmark.

    Raises:
        InputError: a special token that is used, or a token of an example, has no row.
    """
    special = {"eos_token": tokenizer.eos_token_id, "pad_token": tokenizer.pad_token_id}
    if any(task.num_bos for task in benchmark.tasks):
        special["bos_token"] = tokenizer.bos_token_id
    for kind, token in special.items():
        if token is not None and token >= rows:
            raise InputError(
                f"--model {name}: its tokenizer's {kind} is token {token}, and the model has rows "
                f"0 to {rows - 1}; tokenizer and model do not go together"
            )
    beyond = {word for word, token in tokenizer.get_vocab().items() if token >= rows}
    if not beyond - {tokenizer.unk_token}:
        return
    for where, texts in _texts(benchmark):
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            if max(ids, default=0) >= rows:
                raise InputError(
                    f"--model {name}: {where} holds token {max(ids)} "
                    f"({tokenizer.convert_ids_to_tokens(max(ids))!r}), and the model has rows 0 to "
                    f"{rows - 1}; tokenizer and model do not go together"
                )


def _texts(benchmark: Benchmark) -> Iterator[tuple[str, list[str]]]:
    """All texts in chunks, each with a description of its origin for messages."""
    for task in benchmark.tasks:
        for split, examples in (("training", task.train), ("test", task.test)):
            for start in range(0, len(examples), TEXTS_AT_ONCE):
                some = examples[start : start + TEXTS_AT_ONCE]
                texts = [text for e in some for text in (e.prompt, *e.references)]
                yield f"a {split} example of task {task.name}", texts
        if task.ending:
            yield f"the end of a turn in task {task.name}", [task.ending]
        if task.labels:
            yield f"a label of task {task.name}", [*task.labels]
