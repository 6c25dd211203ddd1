"""Fill the score matrices: get answers, put predictions on disk, then score them.

A cell is one task's test set after one more task was learned. Its examples are dealt to the ranks
by length, so no rank waits long; the main rank gathers, writes and scores. Where ranks need not
keep step, one stream of prompts runs through all cells of a row: the next cell's begin while the
last answers of this one are still being generated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eval.measure.cell import Cell, ColumnState, without_repeats
from eval.measure.recall import Portion, PrefixAssignment
from eval.measure.row_metrics import row_metrics
from eval.predictions import predictions_path, write_lines
from eval.score_matrix import score_matrices
from eval.ways import Way, ways_of
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.comm import env
from moram_dist.comm.watchdog import PeerWatchdog
from moram_dist.comm.zero3 import is_sharded, without_hooks
from moram_dist.config import RECALLS, EvalConfig
from moram_dist.decode import (
    Answered,
    Room,
    answer_batch,
    can_batch_continuously,
    generate_stream,
    is_generated,
)
from moram_dist.files import write_atomically
from moram_dist.methods import Method
from moram_dist.metrics import score
from moram_dist.models.language_model import Base
from moram_dist.tasks.task import Benchmark
from moram_dist.tracking import Tracker
from moram_dist.train.progress import Progress

BATCH_TOKENS = 2**16
"""Of the prompts and answers that go on together: keys and values of so many tokens are kept, half
a megabyte each in a model of 7 B."""


class Evaluator:
    """Callable as ``evaluate(row)``; what is already in a matrix is not measured again."""

    def __init__(
        self,
        *,
        config: EvalConfig,
        benchmark: Benchmark,
        asked: Benchmark,
        method: Method,
        engine: Any,
        base: Base,
        run_dir: Path,
        tracker: Tracker,
        progress: Progress,
        watchdog: PeerWatchdog,
    ) -> None:
        """``asked`` is the benchmark with the prompts that the model gets (``Method.asked``)."""
        self.config = config
        self.benchmark = benchmark
        self.asked = asked
        self.method = method
        self.engine = engine
        self.tokenizer = base.tokenizer
        self.run_dir = run_dir
        self.tracker = tracker
        self.progress = progress
        self.watchdog = watchdog
        self.recall = PrefixAssignment(config, asked, base, MemoryFiles(run_dir / "memory"))
        self.ways = ways_of(config)
        self.matrices = score_matrices(run_dir, benchmark, self.ways)
        self.first = self.ways[0]
        """The way that counts: its scores are logged and make AP and the like."""

    def __call__(self, row: int) -> None:
        """Measure what is missing of a row. All ranks call it together."""
        wanted = env.from_main(self._missing(row))
        if not wanted:
            return
        if env.is_main():
            self._repeat(row)
        missing = env.from_main(self._missing(row))
        # PrefixAssignment all comes first: what it answers, others need not ask again.
        cells = [
            cell
            for recall in RECALLS
            if recall in self.config.recalls
            for cell in self._cells(row, missing, recall)
        ]
        self.engine.eval()
        if cells and self._fits():
            with without_hooks(self.engine) as model:
                self._row(row, cells, model, synced=self.method.in_step)
        else:
            self._row(row, cells, self.engine.module, synced=True)
        if env.is_main():
            measured = {way for ways in wanted.values() for way in ways}
            if metrics := row_metrics(self.run_dir, self.matrices, row, measured):
                self.tracker.log_sequence(metrics, row + 1)

    def _missing(self, row: int) -> dict[int, list[Way]]:
        """Columns of a row -> the ways in which they are to be measured."""
        out: dict[int, list[Way]] = {}
        for way, matrix in self.matrices.items():
            for column in matrix.missing(row, self.config.eval_rows):
                out.setdefault(column, []).append(way)
        return dict(sorted(out.items()))

    def _cells(self, row: int, missing: Mapping[int, Sequence[Way]], recall: str) -> Iterator[Cell]:
        """What is to be measured of a row with one recall. All ranks call it together."""
        for column, ways in missing.items():
            modes = [way.answers for way in ways if way.recall == recall]
            if modes:
                task = self.asked.tasks[column].name
                self.watchdog.at(f"whose prompts those of {task} are, {_when(self.benchmark, row)}")
                portions, recognised = self.recall.portions(row, column, recall)
                yield Cell(row, column, recall, modes, portions, recognised)

    def _repeat(self, row: int) -> None:
        """Copy cells from earlier rows, as far back as no task was trained on. Main rank only.

        The model is the same there, and greedy decoding makes the same of it.
        """
        source = row
        while source >= 0 and not self.method.training_data(self.benchmark, source):
            source -= 1
            for column, ways in self._missing(row).items():
                for way in ways:
                    score = self.matrices[way].get(source, column)
                    measured = self._path(source, column, way)
                    if score is not None and measured.is_file():
                        write_atomically(self._path(row, column, way), measured.read_bytes())
                        self.matrices[way].set(row, column, score)

    def _path(self, row: int, column: int, way: Way) -> Path:
        name = self.benchmark.tasks[column].name
        return predictions_path(self.run_dir, row, column, name, way.differs(self.first))

    def _row(
        self, row: int, cells: Sequence[Cell], model: torch.nn.Module, *, synced: bool
    ) -> None:
        when = _when(self.benchmark, row)
        streams = not synced and can_batch_continuously(model)
        work = without_repeats(cells)
        answered: dict[ColumnState, dict[int, dict[str, Answered]]] = {}
        found: dict[int, dict[str, Answered]] = {}
        for tasks, group in itertools.groupby(work, key=lambda piece: piece[1].tasks):
            together = list(group)
            with self.method.prefix.of(None if tasks is None else (tasks,)):
                generated = [p for cell, p, new in together if new and self._is_generated(cell)]
                stream = self._stream(generated if streams else [], model, when)
                for cell, portion, new in together:
                    place = (portion.column, tasks)
                    if new:
                        texts = next(stream) if streams and self._is_generated(cell) else None
                        share = self._answers(cell, portion, when, model, texts, synced=synced)
                        answered.setdefault(place, share)
                    else:
                        there = answered[place]
                        share = {i: there[i] for i in portion.examples if i in there}
                    found |= share
                    if portion is cell.portions[-1]:
                        self._score_cell(cell, found, when)
                        found = {}

    def _is_generated(self, cell: Cell) -> bool:
        return is_generated(cell.modes, self.asked.tasks[cell.column])

    def _score_cell(self, cell: Cell, share: dict[int, dict[str, Answered]], when: str) -> None:
        """From this rank's share of the answers to a cell's scores. All ranks call it together."""
        task = self.benchmark.tasks[cell.column]
        self.watchdog.at(f"the score of {task.name} {when}")
        answers = {k: v for part in env.gather_objects(share) for k, v in part.items()}
        if not env.is_main():
            return
        if len(answers) != len(task.test):
            raise RuntimeError(f"{task.name}: {len(answers)} of {len(task.test)} predictions")
        for mode in cell.modes:
            way = Way(mode, cell.recall)
            how = f" by {way.among(self.ways)}" if way.among(self.ways) else ""
            value = self._score(cell, way, [answers[i][mode] for i in sorted(answers)])
            self.progress.say(
                f"  {when}: {task.name} {task.metric} {value:.2f}{how} (n={len(task.test)})"
            )

    def _score(self, cell: Cell, way: Way, answers: Sequence[Answered]) -> float:
        """Put a cell's predictions of one way on disk, score them there; their mean."""
        task = self.benchmark.tasks[cell.column]
        path = self._path(cell.row, cell.column, way)
        lines = cell.lines(self.benchmark, answers)
        write_lines(path, lines)
        for line, example in zip(lines, task.test, strict=True):
            line["score"] = score(
                task.metric,
                prompt=example.prompt,
                prediction=line["prediction"],
                references=example.references,
                labels=task.labels,
            )
        write_lines(path, lines)
        value = sum(line["score"] for line in lines) / len(lines)
        self.matrices[way].set(cell.row, cell.column, value)
        return value

    def _stream(
        self, portions: Sequence[Portion], model: torch.nn.Module, when: str
    ) -> Iterator[dict[int, str]]:
        """For one portion after the other, this rank's texts by their index in the test set."""
        shares = [self._share(portion) for portion in portions]
        keys = [(p, i) for p, share in enumerate(shares) for i in share]
        tasks = [self.asked.tasks[portion.column] for portion in portions]
        asked = ((key, tasks[p], tasks[p].test[i]) for key, (p, i) in enumerate(keys))
        room = Room(rows=self.config.eval_batch_size, tokens=BATCH_TOKENS)
        found: list[dict[int, str]] = [{} for _ in portions]
        texts = generate_stream(model, self.tokenizer, asked, self.benchmark.decoding, room)
        for p, task in enumerate(tasks):
            self.watchdog.at(f"predictions of {task.name} {when}")
            while len(found[p]) < len(shares[p]):
                key, text = next(texts)
                at, i = keys[key]
                found[at][i] = text
                self.watchdog.at(f"predictions of {task.name} {when}")
            yield found[p]

    def _share(self, portion: Portion) -> list[int]:
        """Which of a portion's examples this rank answers, the shortest first."""
        test = self.asked.tasks[portion.column].test
        by_length = sorted(portion.examples, key=lambda i: (len(test[i].prompt), i))
        return by_length[env.rank() :: env.world_size()]

    def _answers(
        self,
        cell: Cell,
        portion: Portion,
        when: str,
        model: torch.nn.Module,
        texts: dict[int, str] | None,
        *,
        synced: bool,
    ) -> dict[int, dict[str, Answered]]:
        """This rank's share of a portion: index in the test set to mode to answer."""
        task, mine = self.asked.tasks[cell.column], self._share(portion)
        longest = max(min(len(e.prompt), task.max_prompt_tokens) for e in task.test)
        size = BATCH_TOKENS // (longest + task.max_answer_tokens)
        size = max(1, min(size, self.config.eval_batch_size))
        # Every rank must make the same number of calls when weights are sharded: those that a rank
        # lacks are made up by an example again, and not kept.
        largest = -(-len(portion.examples) // env.world_size())
        out: dict[int, dict[str, Answered]] = {}
        for start in range(0, largest, size):
            indices = mine[start : start + size]
            if not indices and not synced:
                break
            self.watchdog.at(f"predictions of {task.name} {when}")
            found = answer_batch(
                cell.modes,
                model,
                self.tokenizer,
                [task.test[i] for i in indices or [0]],
                task,
                self.benchmark.decoding,
                synced=synced,
                texts=None if texts is None else [texts[i] for i in indices],
            )
            for k, i in enumerate(indices):
                out[i] = {mode: answers[k] for mode, answers in found.items()}
        return out

    def _fits(self) -> bool:
        """Whether all ranks can hold the whole model beside what they hold now."""
        if self.config.eval_gather != "auto":
            return self.config.eval_gather == "true"
        parameters = [p for p in self.engine.module.parameters() if is_sharded(p)]
        if not parameters or not torch.cuda.is_available():
            return True
        needed = sum(p.ds_numel * p.element_size() for p in parameters)  # type: ignore[attr-defined]
        free, _ = torch.cuda.mem_get_info()
        return env.all_true(needed < 0.6 * free)  # the rest is for the cache of keys and values


def _when(benchmark: Benchmark, row: int) -> str:
    return f"after {benchmark.tasks[row].name}" if row >= 0 else "before training"
