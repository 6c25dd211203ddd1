"""All training examples of a task as tokens: encoded in batches, stored compactly and cached.

If there are many examples, the main rank alone encodes them into a file that every rank maps; a
restart finds it. The file is named by a digest of everything that determines its content.
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
"""Examples, each with the task whose rules encode it."""

CHUNK = 1000
"""Most examples whose texts are tokenised in one call."""

CHUNK_CHARACTERS = 8_000_000
"""About the most characters of these texts. A long chat is tokenised up to each of its turns, and
the tokens of all these beginnings are in memory at once."""

CACHED_FROM = 10_000
"""Fewest examples of a task that are cached; fewer are encoded in about a second."""

QUIET_S = 5.0


class Encoder(Protocol):
    """Encodes training examples: a model family (``families.family.Family``)."""

    @property
    def fingerprint(self) -> Any:
        """Everything besides tokenizer, task and example that determines the encoding."""
        ...

    def texts(self, example: Example, task: Task) -> list[str]:
        """All texts that ``encode_training`` passes to the tokenizer unchanged."""
        ...

    def encode_training(self, tokenizer: Any, example: Example, task: Task) -> Any:
        """Encode a training example."""
        ...

    def to_rows(self, encoded: Any) -> dict[str, Tensor]:
        """Store an encoded example as flat tensors (n,) by name."""
        ...

    def from_rows(self, id: str, rows: dict[str, Tensor], num_answer: int) -> Any:
        """Restore an encoded example from ``to_rows``."""
        ...


class Tokens(Sequence[EncodedExample]):
    """Encoded examples in a few flat tensors; a text takes four bytes per token."""

    def __init__(self, encoder: Encoder, ids: Sequence[str], parts: dict[str, Tensor]) -> None:
        """``parts`` come from ``flatten``, in the order of ``ids``."""
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
    """Concatenated rows, the offset of each plus the end of the last, and answer lengths."""
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
    """A tokenizer that tokenises the texts of some examples in advance, in one call.

    One call for many texts is much faster than one call per text, with the same result.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        unique = [*dict.fromkeys(texts)]
        found = tokenizer(unique, add_special_tokens=False)["input_ids"] if unique else []
        self._ids: dict[str, list[int]] = dict(zip(unique, found, strict=True))

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """Token ids of one text, as a new list."""
        if add_special_tokens or text not in self._ids:
            return self._tokenizer(text, add_special_tokens=add_special_tokens)
        return {"input_ids": [*self._ids[text]]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def encode_all(
    encoder: Encoder, tokenizer: Any, pairs: Pairs, done: Callable[[int], None]
) -> Iterator[EncodedExample]:
    """Encode each example for training; ``done`` is called with the number encoded so far."""
    count = 0
    for chunk, texts in _chunks(encoder, pairs):
        batch = InBatches(tokenizer, texts)
        for task, example in chunk:
            yield encoder.encode_training(batch, example, task)
        count += len(chunk)
        done(count)


def _chunks(encoder: Encoder, pairs: Pairs) -> Iterator[tuple[Pairs, list[str]]]:
    """Examples in groups that are tokenised in one call, with their texts."""
    start, texts, size = 0, [], 0
    for index, (task, example) in enumerate(pairs):
        more = encoder.texts(example, task)
        texts += more
        size += sum(map(len, more))
        if index + 1 - start == CHUNK or size > CHUNK_CHARACTERS or index + 1 == len(pairs):
            yield pairs[start : index + 1], texts
            start, texts, size = index + 1, [], 0


@dataclass(frozen=True)
class WorkProgress:
    """Reports the progress of long work every few seconds."""

    what: str
    total: int | None
    """None if not known in advance."""

    say: Callable[[str], None]
    at: Callable[[str], None]
    """Tells the watchdog that the rank is busy with this work and does not hang."""

    def started(self) -> Callable[[int], None]:
        """Start the clock; call the result with the amount done so far."""
        said = [time.monotonic()]

        def done(count: int) -> None:
            self.at(self.what)
            if time.monotonic() - said[0] > QUIET_S:
                said[0] = time.monotonic()
                of = "" if self.total is None else f"/{self.total:,}"
                self.say(f"{self.what}: {count:,}{of}")

        return done

    def calls_of(self, check: Callable[[Task, str], bool]) -> Callable[[Task, str], bool]:
        """The same check, with each call counted as work done."""
        done, count = self.started(), itertools.count(1)

        def counted(task: Task, text: str) -> bool:
            done(next(count))
            return check(task, text)

        return counted


def encode_task(
    encoder: Encoder, tokenizer: Any, pairs: Pairs, folder: Path, told: WorkProgress
) -> Tokens:
    """Encode a task's examples. All ranks call it together.

    Args:
        encoder: the base's family.
        tokenizer: of the base.
        pairs: the same on all ranks.
        folder: the cache for many examples, on a file system that all ranks share.
        told: reports the progress.
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
    """Empty the cache, because the task is done or its examples have changed."""
    for path in folder.glob("*.safetensors"):
        path.unlink(missing_ok=True)


def _digest(encoder: Encoder, tokenizer: Any, pairs: Pairs) -> str | None:
    """Digest of everything that determines the tokens; None if the tokenizer has no backend."""
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
                [
                    rules[id(task)],
                    example.id,
                    example.prompt,
                    example.references[0],
                    *example.learned,
                ]
            ).encode()
        )
    return out.hexdigest()[:32]


def _sealed(parts: dict[str, Tensor]) -> bytes:
    return save(parts | {"sha256": _sha256(parts)})


def _read(path: Path, num_examples: int) -> dict[str, Tensor] | None:
    """Read cached tensors; None if there are none or the file is damaged."""
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
