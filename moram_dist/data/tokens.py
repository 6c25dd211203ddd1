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
from typing import Any, Protocol, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from moram_dist.comm import env
from moram_dist.data.encode import EncodedExample
from moram_dist.files import WriteError, write_atomically
from moram_dist.tasks.task import Example, Task

Pairs = Sequence[tuple[Task, Example]]
"""Examples, each with the task by whose rules it is encoded."""

CHUNK = 1000
"""Examples whose texts a tokenizer gets at once."""

CACHED_FROM = 10_000
"""Examples of a task; fewer take a second, which is not worth a file."""

QUIET_S = 5.0


class Encoder(Protocol):
    """Encodes training examples: a model family (``families.family.Family``)."""

    @property
    def fingerprint(self) -> Any:
        """What its encoding follows from beside tokenizer, task and example."""
        ...

    def texts(self, example: Example, task: Task) -> list[str]:
        """All that ``encode_training`` gives to the tokenizer as it is."""
        ...

    def encode_training(self, tokenizer: Any, example: Example, task: Task) -> Any:
        """What is learned from an example."""
        ...

    def to_rows(self, encoded: Any) -> dict[str, Tensor]:
        """Names to the flat tensors (n,) that an encoded example is kept as."""
        ...

    def from_rows(self, id: str, rows: dict[str, Tensor], num_answer: int) -> Any:
        """The encoded example again."""
        ...


class Tokens(Sequence[EncodedExample]):
    """Encoded examples in a few flat tensors: of texts, four bytes a token."""

    def __init__(self, encoder: Encoder, ids: Sequence[str], parts: dict[str, Tensor]) -> None:
        """``parts`` as ``flatten`` makes them, in the order of ``ids``."""
        self.encoder = encoder
        self.ids = ids
        self._parts = parts
        self._names = [name for name in parts if f"{name}_at" in parts]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> EncodedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedExample]: ...
    def __getitem__(self, index: int | slice) -> EncodedExample | list[EncodedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        rows = {name: self._row(name, i) for name in self._names}
        return self.encoder.from_rows(self.ids[i], rows, int(self._parts["answers"][i]))

    def _row(self, name: str, i: int) -> Tensor:
        first, last = self._parts[f"{name}_at"][i : i + 2].tolist()
        return self._parts[name][first:last]


def flatten(encoder: Encoder, examples: Iterator[EncodedExample]) -> dict[str, Tensor]:
    """Rows one after the other, where each begins and the last ends, and lengths of answers."""
    chunks: dict[str, list[Tensor]] = {}
    at: dict[str, list[int]] = {}
    answers: list[int] = []
    for example in examples:
        answers.append(example.num_answer)
        for name, row in encoder.to_rows(example).items():
            chunks.setdefault(name, []).append(row)
            ends = at.setdefault(name, [0])
            ends.append(ends[-1] + len(row))
    out = {"answers": torch.tensor(answers, dtype=torch.int32)}
    for name, rows in chunks.items():
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
    encoder: Encoder, tokenizer: Any, pairs: Pairs, done: Callable[[int], None]
) -> Iterator[EncodedExample]:
    """What ``encode_training`` makes of each; ``done`` hears how many there are so far."""
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        texts = [text for task, example in chunk for text in encoder.texts(example, task)]
        batch = InBatches(tokenizer, texts)
        for task, example in chunk:
            yield encoder.encode_training(batch, example, task)
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
    encoder: Encoder, tokenizer: Any, pairs: Pairs, folder: Path, told: WorkProgress
) -> Tokens:
    """A task's examples. All ranks call it together.

    Args:
        encoder: the base's family.
        tokenizer: of the base.
        pairs: the same on all ranks.
        folder: where many examples are cached, seen by all ranks.
        told: says how far it is.
    """

    def encode() -> dict[str, Tensor]:
        return flatten(encoder, encode_all(encoder, tokenizer, pairs, told.started()))

    ids = [example.id for _, example in pairs]
    if len(pairs) < CACHED_FROM:
        return Tokens(encoder, ids, encode())
    path = None
    if env.is_main() and (key := _digest(encoder, tokenizer, pairs)):
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
    return Tokens(encoder, ids, encode() if parts is None else parts)


def clear(folder: Path) -> None:
    """Remove what is cached there: the task is done, or its examples are others now."""
    for path in folder.glob("*.safetensors"):
        path.unlink(missing_ok=True)


def _digest(encoder: Encoder, tokenizer: Any, pairs: Pairs) -> str | None:
    """Of all that tokens follow from; None for a tokenizer that does not say what it is."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, encoder.fingerprint]
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
