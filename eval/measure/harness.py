"""Fill the score matrices: get answers, write predictions to disk, then score them.

A cell is one task's test set after one more task was learned. Its examples are dealt to the ranks
by length, so no rank waits long; the main rank gathers, writes and scores. Unless ranks must run in
step, one stream of prompts runs through all cells of a row: the next cell's prompts start while the
last answers of this cell are still being generated. Answers of a state of the memory that was
measured before are taken from an earlier row (``eval.measure.earlier``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from eval.measure.cell import Cell, ColumnState, without_repeats
from eval.measure.earlier import EarlierAnswers, without_taken
from eval.measure.general import General
from eval.measure.observe import Observer
from eval.measure.recall import Portion, PrefixAssignment
from eval.measure.row_metrics import row_metrics
from eval.predictions import predictions_path, write_lines
from eval.score_matrix import score_matrices
from eval.scoring_modes import ScoringMode, scoring_modes
from moram_dist.comm import env
from moram_dist.comm.zero3 import is_sharded, without_hooks
from moram_dist.config import RECALLS
from moram_dist.decode import Room
from moram_dist.decode.cache import most_tokens
from moram_dist.decode.labels import rows_of_labels
from moram_dist.families import Answered, TextFamily, answer_batch, is_generated
from moram_dist.families.answers import LABELS, LABELS_MEAN
from moram_dist.files import write_atomically
from moram_dist.metrics import score
from moram_dist.tasks.task import Benchmark
from moram_dist.train.context import RunContext

BATCH_TOKENS = 2**16
"""Most tokens of the prompts and answers that are generated together."""

SCORED = {LABELS, LABELS_MEAN}
"""Answer modes that score all labels of a prompt in one pass."""


class Evaluator:
    """Call it with a row to measure: ``evaluate(row)``. Cells already in a matrix are skipped."""

    def __init__(self, context: RunContext, asked: Benchmark) -> None:
        """``asked``: the benchmark with the prompts that the model gets (``Method.asked``)."""
        self.config = context.config.eval
        self.benchmark = context.benchmark
        self.asked = asked
        self.method = context.method
        self.engine = context.engine
        self.family = context.base.family
        self.tokenizer = context.base.tokenizer
        self.run_dir = context.run_dir.path
        self.tracker = context.tracker
        self.progress = context.progress
        self.watchdog = context.watchdog
        self.batch_tokens = BATCH_TOKENS
        if isinstance(self.family, TextFamily):
            model, memory = context.base.model, env.memory_bytes()
            self.batch_tokens = most_tokens(model, memory, BATCH_TOKENS)
        self.prefixes = PrefixAssignment(self.config, asked, context.base, context.run_dir.memory)
        self.modes = scoring_modes(self.config)
        self.matrices = score_matrices(self.run_dir, self.benchmark, self.modes)
        self.main_mode = self.modes[0]
        self.observer = Observer(context, asked)
        self.general = General(context)
        self.earlier = EarlierAnswers(
            self.benchmark, self.matrices, self._path, self.config.unknown
        )

    def __call__(self, row: int) -> None:
        """Measure the missing cells of a row. All ranks call it together."""
        wanted = env.from_main(self._missing(row))
        general = self.general.missing(row)
        if not wanted and not general:
            return
        if env.is_main():
            self._repeat(row)
        missing = env.from_main(self._missing(row))
        # Recall ``all`` comes first in RECALLS: the other recalls reuse its answers.
        cells = [
            cell
            for recall in RECALLS
            if recall in self.config.recalls
            for cell in self._cells(row, missing, recall)
        ]
        self.engine.eval()
        observed = bool(wanted) and self.observer.is_wanted(row, self.engine.module)
        passes = observed or general or any(cell.portions for cell in cells)
        gathers = passes and self._fits()
        when = _when(self.benchmark, row)
        with without_hooks(self.engine) if gathers else nullcontext(self.engine.module) as model:
            if observed:  # before the scores, after which a row counts as done
                self.observer(row, model, when)
            for cell in cells:
                if not cell.portions:  # an earlier row has all of its answers
                    self._score_cell(cell, {}, when)
            with self.watchdog.during_passes(model):  # an answer may take hundreds of them
                self._row(row, cells, model, synced=self.method.in_step or not gathers)
            abilities = self.general(row, model, general, when).metrics if general else {}
        if env.is_main():
            measured = {mode for modes in wanted.values() for mode in modes}
            metrics = row_metrics(self.run_dir, self.matrices, row, measured) if measured else {}
            if metrics := metrics | abilities:
                self.tracker.log_sequence(metrics, row + 1)

    def _missing(self, row: int) -> dict[int, list[ScoringMode]]:
        """Columns of a row -> the scoring modes in which they are still to be measured."""
        out: dict[int, list[ScoringMode]] = {}
        for mode, matrix in self.matrices.items():
            for column in matrix.missing(row, self.config.eval_rows):
                out.setdefault(column, []).append(mode)
        return dict(sorted(out.items()))

    def _cells(
        self, row: int, missing: Mapping[int, Sequence[ScoringMode]], recall: str
    ) -> Iterator[Cell]:
        """The cells of a row to measure with one recall. All ranks call it together."""
        for column, modes in missing.items():
            answer_modes = [mode.answers for mode in modes if mode.recall == recall]
            if answer_modes:
                task = self.asked.tasks[column].name
                self.watchdog.at(f"whose prompts those of {task} are, {_when(self.benchmark, row)}")
                portions, recognised = self.prefixes.portions(row, column, recall)
                cell = Cell(row, column, recall, answer_modes, portions, recognised)
                taken = env.from_main(self.earlier.of(cell) if env.is_main() else None)
                yield without_taken(cell, taken)

    def _repeat(self, row: int) -> None:
        """Copy cells from earlier rows, as long as no task in between was trained. Main rank only.

        The model did not change, and greedy decoding gives the same answers.
        """
        source = row
        while source >= 0 and not self.method.learns(self.benchmark, source):
            source -= 1
            for column, modes in self._missing(row).items():
                for mode in modes:
                    score = self.matrices[mode].get(source, column)
                    measured = self._path(source, column, mode)
                    if score is not None and measured.is_file():
                        write_atomically(self._path(row, column, mode), measured.read_bytes())
                        self.matrices[mode].set(row, column, score)

    def _path(self, row: int, column: int, mode: ScoringMode) -> Path:
        name, suffix = self.benchmark.tasks[column].name, mode.file_suffix(self.main_mode)
        return predictions_path(self.run_dir, row, column, name, suffix)

    def _row(
        self, row: int, cells: Sequence[Cell], model: torch.nn.Module, *, synced: bool
    ) -> None:
        when = _when(self.benchmark, row)
        streams = not synced and self.family.can_stream(model)
        work = without_repeats(cells)
        answered: dict[ColumnState, dict[int, dict[str, Answered]]] = {}
        found: dict[int, dict[str, Answered]] = {}
        kept: dict[int | None, dict[str, Any]] = {}
        for tasks, group in itertools.groupby(work, key=lambda piece: piece[1].tasks):
            together = list(group)
            asked = [self.asked.tasks[p.column] for _, p, new in together if new]
            with (
                self.method.prefix.of(None if tasks is None else (tasks,)),
                self.family.answering(model, self.tokenizer, asked, kept.setdefault(tasks, {})),
            ):
                generated = [p for cell, p, new in together if new and self._is_generated(cell)]
                stream = self._stream(generated if streams else [], model, when)
                for cell, portion, new in together:
                    state = (portion.column, tasks)
                    if new:
                        texts = next(stream) if streams and self._is_generated(cell) else None
                        share = self._answers(cell, portion, when, model, texts, synced=synced)
                        answered.setdefault(state, share)
                    else:
                        earlier = answered[state]
                        share = {i: earlier[i] for i in portion.examples if i in earlier}
                    found |= share
                    if portion is cell.portions[-1]:
                        self._score_cell(cell, found, when)
                        found = {}

    def _is_generated(self, cell: Cell) -> bool:
        return is_generated(cell.answer_modes, self.asked.tasks[cell.column])

    def _score_cell(self, cell: Cell, share: dict[int, dict[str, Answered]], when: str) -> None:
        """Score a cell, given this rank's share of its answers. All ranks call it together."""
        task = self.benchmark.tasks[cell.column]
        self.watchdog.at(f"the score of {task.name} {when}")
        answers = {**cell.taken}
        for part in env.gather_objects(share):
            answers |= part
        if not env.is_main():
            return
        if len(answers) != len(task.test):
            raise RuntimeError(f"{task.name}: {len(answers)} of {len(task.test)} predictions")
        for answer_mode in cell.answer_modes:
            mode = ScoringMode(answer_mode, cell.recall)
            how = f" by {label}" if (label := mode.label(self.modes)) else ""
            value = self._score(cell, mode, [answers[i][answer_mode] for i in sorted(answers)])
            self.progress.say(
                f"  {when}: {task.name} {task.metric} {value:.2f}{how} (n={len(task.test)})"
            )

    def _score(self, cell: Cell, mode: ScoringMode, answers: Sequence[Answered]) -> float:
        """Write a cell's predictions to disk, then with their scores. Returns the mean score."""
        task = self.benchmark.tasks[cell.column]
        path = self._path(cell.row, cell.column, mode)
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
        self.matrices[mode].set(cell.row, cell.column, value)
        return value

    def _stream(
        self, portions: Sequence[Portion], model: torch.nn.Module, when: str
    ) -> Iterator[dict[int, str]]:
        """For each portion in turn, this rank's texts by index in the test set."""
        shares = [self._share(portion) for portion in portions]
        keys = [(p, i) for p, share in enumerate(shares) for i in share]
        tasks = [self.asked.tasks[portion.column] for portion in portions]
        asked = ((key, tasks[p], tasks[p].test[i]) for key, (p, i) in enumerate(keys))
        room = Room(rows=self.config.eval_batch_size, tokens=self.batch_tokens)
        found: list[dict[int, str]] = [{} for _ in portions]
        texts = self.family.stream(model, self.tokenizer, asked, self.benchmark.decoding, room)
        for p, task in enumerate(tasks):
            self.watchdog.at(f"predictions of {task.name} {when}")
            while len(found[p]) < len(shares[p]):
                key, text = next(texts)
                at, i = keys[key]
                found[at][i] = text
                self.watchdog.at(f"predictions of {task.name} {when}")
            yield found[p]

    def _share(self, portion: Portion) -> list[int]:
        """The examples of a portion that this rank answers, shortest first."""
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
        """This rank's share of a portion: index in the test set -> answer mode -> answer."""
        task, mine = self.asked.tasks[cell.column], self._share(portion)
        longest = max(min(len(e.prompt), task.max_prompt_tokens) for e in task.test)
        most = self.batch_tokens
        size = max(1, min(self.config.eval_batch_size, most // (longest + task.max_answer_tokens)))
        if isinstance(self.family, TextFamily) and SCORED & {*cell.answer_modes} and task.labels:
            size = min(size, rows_of_labels(model, self.tokenizer, task, longest, most))
        # Sharded weights need the same number of calls on every rank: a rank with fewer batches
        # repeats an example and drops the answer.
        largest = -(-len(portion.examples) // env.world_size())
        out: dict[int, dict[str, Answered]] = {}
        for start in range(0, largest, size):
            indices = mine[start : start + size]
            if not indices and not synced:
                break
            self.watchdog.at(f"predictions of {task.name} {when}")
            found = answer_batch(
                cell.answer_modes,
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
        """Whether all ranks have free memory for the whole model."""
        if self.config.eval_gather != "auto":
            return self.config.eval_gather == "true"
        parameters = [p for p in self.engine.module.parameters() if is_sharded(p)]
        if not parameters or not torch.cuda.is_available():
            return True
        needed = sum(p.ds_numel * p.element_size() for p in parameters)  # type: ignore[attr-defined]
        free, _ = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # torch's to reuse
        fits = env.all_true(needed < 0.6 * free)  # the rest is for the cache of keys and values
        if not fits:
            self.progress.say(
                f"note: the whole model ({needed / 2**30:,.1f} GB) leaves a rank too little free "
                "memory, so ranks answer in step with sharded weights, which is slower; "
                "--eval_gather true gathers it all the same"
            )
        return fits


def _when(benchmark: Benchmark, row: int) -> str:
    return f"after {benchmark.tasks[row].name}" if row >= 0 else "before training"
