"""All training examples of a task as tokens: encoded in batches, kept compactly, cached by content.

Many examples are encoded by the main rank alone, into a file that every rank maps; a second start
finds it. Its name is the digest of all that its content follows from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from moram_dist.comm import env
from moram_dist.data.encode import Encoded, answer_text, encode_training
from moram_dist.files import WriteError, write_atomically
from moram_dist.tasks.task import Example, Task

Pairs = Sequence[tuple[Task, Example]]
"""Examples, each with the task by whose rules it is encoded."""

CHUNK = 1000
"""Examples whose texts a tokenizer gets at once."""

CACHED_FROM = 10_000
"""Examples of a task; fewer take a second, which is not worth a file."""

QUIET_S = 5.0


class Tokens(Sequence[Encoded]):
    """Encoded examples in a few flat tensors: four bytes a token."""

    def __init__(self, ids: Sequence[str], parts: dict[str, Tensor]) -> None:
        """``parts`` as ``flatten`` makes them, in the order of ``ids``."""
        self.ids = ids
        self._parts = parts

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        source = self._row("sources", i) if "sources" in self._parts else None
        return Encoded(self.ids[i], self._row("tokens", i), int(self._parts["answers"][i]), source)

    def _row(self, name: str, i: int) -> tuple[int, ...]:
        first, last = self._parts[f"{name}_at"][i : i + 2].tolist()
        return tuple(self._parts[name][first:last].tolist())


def flatten(examples: Iterator[Encoded]) -> dict[str, Tensor]:
    """Rows one after the other, where each begins and the last ends, and lengths of answers."""
    chunks: dict[str, list[Tensor]] = {"tokens": [], "sources": []}
    at: dict[str, list[int]] = {"tokens": [0], "sources": [0]}
    answers: list[int] = []
    for example in examples:
        answers.append(example.num_answer)
        for name, row in (("tokens", example.tokens), ("sources", example.source)):
            if row is not None:
                chunks[name].append(torch.tensor(row, dtype=torch.int32))
                at[name].append(at[name][-1] + len(row))
    out = {"answers": torch.tensor(answers, dtype=torch.int32)}
    for name, rows in chunks.items():
        if rows:
            out[name] = torch.cat(rows)
            out[f"{name}_at"] = torch.tensor(at[name])
    return out


class InBatches:
    """A tokenizer that has been given the texts of some examples beforehand, all at once.

    One call for many texts takes a fraction of the time of as many calls, and gives the same.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        unique = [*dict.fromkeys(texts)]
        found = tokenizer(unique, add_special_tokens=False)["input_ids"] if unique else []
        self._ids: dict[str, list[int]] = dict(zip(unique, found, strict=True))

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """Token ids of one text, a list of its own."""
        if add_special_tokens or text not in self._ids:
            return self._tokenizer(text, add_special_tokens=add_special_tokens)
        return {"input_ids": [*self._ids[text]]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def encode_all(
    tokenizer: Any, pairs: Pairs, decoder_start: int | None, done: Callable[[int], None]
) -> Iterator[Encoded]:
    """What ``encode_training`` makes of each; ``done`` hears how many there are so far."""
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        texts: list[str] = []
        for task, example in chunk:
            answer = answer_text(example, task)
            texts += [example.prompt, answer if decoder_start is None else example.references[0]]
            if task.joined and decoder_start is None:
                texts.append(example.prompt + answer)
        batch = InBatches(tokenizer, texts)
        for task, example in chunk:
            yield encode_training(batch, example, task, decoder_start)
        done(start + len(chunk))


@dataclass(frozen=True)
class WorkProgress:
    """Says every few seconds how far a long piece of work is."""

    what: str
    total: int | None
    """None where it is not known beforehand."""

    say: Callable[[str], None]
    at: Callable[[str], None]
    """The watchdog's: a rank that does this does not hang."""

    def started(self) -> Callable[[int], None]:
        """To be called with what is done so far."""
        said = [time.monotonic()]

        def done(count: int) -> None:
            self.at(self.what)
            if time.monotonic() - said[0] > QUIET_S:
                said[0] = time.monotonic()
                of = "" if self.total is None else f"/{self.total:,}"
                self.say(f"{self.what}: {count:,}{of}")

        return done

    def calls_of(self, check: Callable[[Task, str], bool]) -> Callable[[Task, str], bool]:
        """The check itself, whose calls are the work."""
        done, count = self.started(), itertools.count(1)

        def counted(task: Task, text: str) -> bool:
            done(next(count))
            return check(task, text)

        return counted


def encode_task(
    tokenizer: Any, pairs: Pairs, decoder_start: int | None, folder: Path, told: WorkProgress
) -> Tokens:
    """A task's examples. All ranks call it together.

    Args:
        tokenizer: of the base.
        pairs: the same on all ranks.
        decoder_start: as for ``encode_training``.
        folder: where many examples are cached, seen by all ranks.
        told: says how far it is.
    """

    def encode() -> dict[str, Tensor]:
        return flatten(encode_all(tokenizer, pairs, decoder_start, told.started()))

    ids = [example.id for _, example in pairs]
    if len(pairs) < CACHED_FROM:
        return Tokens(ids, encode())
    path = None
    if env.is_main() and (key := _digest(tokenizer, pairs, decoder_start)):
        path = folder / f"{key}.safetensors"
        if _read(path, len(pairs)) is None:
            clear(folder)
            try:
                write_atomically(path, _sealed(encode()))
            except WriteError as error:
                told.say(f"the tokens are not cached: {error}")
                path = None
    path = env.from_main(path)
    parts = _read(path, len(pairs)) if path else None
    return Tokens(ids, encode() if parts is None else parts)


def clear(folder: Path) -> None:
    """Remove what is cached there: the task is done, or its examples are others now."""
    for path in folder.glob("*.safetensors"):
        path.unlink(missing_ok=True)


def _digest(tokenizer: Any, pairs: Pairs, decoder_start: int | None) -> str | None:
    """Of all that tokens follow from; None for a tokenizer that does not say what it is."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, decoder_start]
    out = hashlib.sha256(f"{type(tokenizer)} {special} {backend.to_str()}".encode())
    rules: dict[int, str] = {}
    for task, example in pairs:
        if id(task) not in rules:
            rules[id(task)] = json.dumps(
                {k: v for k, v in vars(task).items() if k not in ("train", "test")}
            )
        out.update(
            json.dumps(
                [rules[id(task)], example.id, example.prompt, example.references[0]]
            ).encode()
        )
    return out.hexdigest()[:32]


def _sealed(parts: dict[str, Tensor]) -> bytes:
    return save(parts | {"sha256": _sha256(parts)})


def _read(path: Path, num_examples: int) -> dict[str, Tensor] | None:
    """What is cached, None where nothing is, or where it is not what was written."""
    try:
        parts = load_file(path)
        seal = parts.pop("sha256")
        whole = torch.equal(seal, _sha256(parts)) and len(parts["answers"]) == num_examples
    except (OSError, KeyError, SafetensorError):
        return None
    return parts if whole else None


def _sha256(parts: dict[str, Tensor]) -> Tensor:
    out = hashlib.sha256()
    for name in sorted(parts):
        out.update(name.encode())
        out.update(parts[name].numpy().data)
    return torch.frombuffer(bytearray(out.digest()), dtype=torch.uint8)
