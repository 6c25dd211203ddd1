"""Read a benchmark that was published with its tasks, orders and protocols.

For all such benchmarks, this module decides which file an example comes from, which examples are
left out, and which notes the run must record about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from moram_dist.registry import InputError, unknown
from moram_dist.tasks.orders import choose_order
from moram_dist.tasks.rules import Protocol, choose_protocol
from moram_dist.tasks.samples import Sample, is_silent, read_samples
from moram_dist.tasks.task import Benchmark, Example, Source, Task

_USED = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Published:
    """Reads a benchmark's files when called with a ``Source``; registered in ``BENCHMARKS``."""

    name: str
    """Also the name of its protocols in ``RULES``."""

    orders: Mapping[str, tuple[str, ...]]
    """Name -> tasks; the first is the default."""

    held_out: str
    """The split other than train and test; it is read only if ``Source.splits`` names it."""

    spare_train: bool = False
    """A task without train.json trains on ``held_out``, with a note. (The data audit counts its
    examples that are also in test.)"""

    folders: Mapping[str, tuple[str, ...]] | None = None
    """Per task, candidate folders, of which the first that exists is used; default: its name."""

    def __call__(self, source: Source) -> Benchmark:
        """The benchmark, with the tasks that ``source.order`` names.

        Raises:
            InputError: no ``data_dir``, an unknown order, protocol, task or split, or a bad file.
        """
        protocol_name, protocol = choose_protocol(self.name, source.protocol)
        tasks = tuple(protocol.tasks)
        order, names = choose_order(source.order, named=self.orders, tasks=tasks)
        for task, splits in source.splits.items():
            if task not in tasks:
                raise unknown("task in splits", task, tasks)
            for split in splits:
                if split not in _USED:
                    raise unknown(f"split of {task}", split, _USED)
        if source.data_dir is None:
            raise InputError(
                f"{self.name} needs --data_dir, the folder that holds <task>/train.json"
            )
        if not source.data_dir.is_dir():
            raise InputError(f"--data_dir: no such folder: {source.data_dir}")
        read, notes = [], list(protocol.notes)
        for task in names:
            train, train_notes = self._examples(source, protocol, task, "train")
            test, test_notes = self._examples(source, protocol, task, "test")
            rules = asdict(protocol.tasks[task])
            read.append(Task(name=task, train=train, test=test, **rules))
            notes += train_notes + test_notes
        return Benchmark(
            name=self.name,
            order=order,
            protocol=protocol_name,
            tasks=tuple(read),
            decoding=protocol.decoding,
            learning_rate=protocol.learning_rate,
            batch_size=protocol.batch_size,
            notes=tuple(notes),
        )

    def _examples(
        self, source: Source, protocol: Protocol, task: str, split: str
    ) -> tuple[tuple[Example, ...], list[str]]:
        """A split's examples and the notes about them."""
        limit = {"train": source.limit_train, "test": source.limit_eval}[split]
        if limit is not None and limit < 1:
            raise InputError(f"limit on {split} examples must be at least 1, got {limit}")
        path, file_split, notes = self._file(source, task, split)
        silent: list[str] = []
        found = _taken(read_samples(path), protocol, task, file_split, silent)
        examples = tuple(islice(found, limit))
        if not examples:
            raise InputError(f"{path}: holds no examples")
        if silent:
            notes.append(
                f"{task}: left out {len(silent)} {split} examples, whose answers have neither "
                f"letter nor digit: {', '.join(sorted(set(map(repr, silent))))}"
            )
        return examples, notes

    def _file(self, source: Source, task: str, split: str) -> tuple[Path, str, list[str]]:
        """A split's file, the split that the file belongs to, and a note if it is a replacement."""
        folder = self._folder(source.data_dir or Path(), task)
        path = folder / f"{split}.json"
        replacement = source.splits.get(task, {}).get(split)
        did = {"train": "trained", "test": "tested"}[split]
        known = ("train", self.held_out, "test")
        if replacement in known:
            notes = [f"{task}: {did} on {replacement}.json instead of {split}.json"]
            return folder / f"{replacement}.json", replacement, notes
        if replacement is not None:
            if not Path(replacement).is_file():
                raise InputError(
                    f"splits of {task}: {split} is {replacement!r}, which is neither a file nor "
                    f"one of {', '.join(known)}"
                )
            notes = [f"{task}: {did} on {replacement} instead of {split}.json"]
            return Path(replacement), split, notes
        spare = folder / f"{self.held_out}.json"
        if split == "train" and self.spare_train and not path.exists() and spare.exists():
            notes = [f"{task}: train.json is missing, trained on {spare.name}"]
            return spare, self.held_out, notes
        return path, split, []

    def _folder(self, root: Path, task: str) -> Path:
        places = [root / place for place in (self.folders or {}).get(task, (task,))]
        return next((place for place in places if place.is_dir()), places[-1])


def _taken(
    samples: Iterator[Sample], protocol: Protocol, task: str, split: str, silent: list[str]
) -> Iterator[Example]:
    """A protocol's examples of samples; answers of examples left out are added to ``silent``."""
    for index, sample in enumerate(samples):
        prompt, answers = protocol.ask(task, sample)
        references = answers[:1] if protocol.first_reference else answers
        if protocol.drop_silent:
            references = tuple(text for text in references if not is_silent(text))
        if references:
            yield Example(f"{split}-{index}", prompt, references)
        else:
            silent.append(answers[0])
