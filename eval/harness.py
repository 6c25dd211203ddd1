"""Fill the score matrices: get answers, put predictions on disk, then score them.

A cell is one task's test set after one more task was learned. Its examples are dealt to the ranks
by length, so no rank waits long; the main rank gathers, writes and scores. Where ranks need not
keep step, one stream of prompts runs through all cells of a row: the next cell's begin while the
last answers of this one are still being generated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from eval.continual import sequence_metrics
from eval.predictions import predictions_path, write_lines
from eval.score_matrix import score_matrices
from moram_dist.comm import env
from moram_dist.comm.watch import Watch
from moram_dist.comm.zero3 import is_sharded, without_hooks
from moram_dist.config import EvalConfig
from moram_dist.decode import (
    Answered,
    Room,
    answer_batch,
    can_take_turns,
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
        watch: Watch,
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
        self.watch = watch
        self.matrices = score_matrices(run_dir, benchmark, config.answer_modes)
        self.first = config.answer_modes[0]
        """The mode that counts: its scores are logged and make AP and the like."""

    def __call__(self, row: int) -> None:
        """Measure what is missing of a row. All ranks call it together."""
        wanted = env.from_main(self._missing(row))
        if not wanted:
            return
        if env.is_main():
            self._repeat(row)
        missing = env.from_main(self._missing(row))
        self.engine.eval()
        if missing and self._fits():
            with without_hooks(self.engine) as model:
                self._row(row, missing, model, synced=self.method.in_step)
        else:
            self._row(row, missing, self.engine.module, synced=True)
        if env.is_main() and any(self.first in modes for modes in wanted.values()):
            self._report(row)

    def _missing(self, row: int) -> dict[int, list[str]]:
        """Columns of a row -> the modes in which they are to be measured."""
        out: dict[int, list[str]] = {}
        for mode, matrix in self.matrices.items():
            for column in matrix.missing(row, self.config.eval_rows):
                out.setdefault(column, []).append(mode)
        return dict(sorted(out.items()))

    def _repeat(self, row: int) -> None:
        """Copy cells from earlier rows, as far back as no task was trained on. Main rank only.

        The model is the same there, and greedy decoding makes the same of it.
        """
        source = row
        while source >= 0 and not self.method.training_data(self.benchmark, source):
            source -= 1
            for column, modes in self._missing(row).items():
                for mode in modes:
                    score = self.matrices[mode].get(source, column)
                    measured = self._path(source, column, mode)
                    if score is not None and measured.is_file():
                        write_atomically(self._path(row, column, mode), measured.read_bytes())
                        self.matrices[mode].set(row, column, score)

    def _path(self, row: int, column: int, mode: str) -> Path:
        further = None if mode == self.first else mode
        name = self.benchmark.tasks[column].name
        return predictions_path(self.run_dir, row, column, name, further)

    def _row(
        self, row: int, missing: dict[int, list[str]], model: torch.nn.Module, *, synced: bool
    ) -> None:
        when = f"after {self.benchmark.tasks[row].name}" if row >= 0 else "before training"
        generated = [j for j, modes in missing.items() if is_generated(modes, self.asked.tasks[j])]
        streams = not synced and can_take_turns(model)
        stream = self._stream(generated if streams else [], model, when)
        for column, modes in missing.items():
            texts = next(stream) if streams and column in generated else None
            share = self._answers(column, modes, when, model, texts, synced=synced)
            self._cell(row, column, modes, share, when)

    def _cell(
        self,
        row: int,
        column: int,
        modes: Sequence[str],
        share: dict[int, dict[str, Answered]],
        when: str,
    ) -> None:
        """From this rank's share of the answers to a cell's scores. All ranks call it together."""
        task = self.benchmark.tasks[column]
        self.watch.at(f"the score of {task.name} {when}")
        answers = {k: v for part in env.gather_objects(share) for k, v in part.items()}
        if not env.is_main():
            return
        if len(answers) != len(task.test):
            raise RuntimeError(f"{task.name}: {len(answers)} of {len(task.test)} predictions")
        for mode in modes:
            how = f" by {mode}" if len(modes) > 1 else ""
            value = self._score(row, column, mode, [answers[i][mode] for i in sorted(answers)])
            self.progress.say(
                f"  {when}: {task.name} {task.metric} {value:.2f}{how} (n={len(task.test)})"
            )

    def _score(self, row: int, column: int, mode: str, answers: Sequence[Answered]) -> float:
        """Put a cell's predictions of one mode on disk, score them there; their mean."""
        task = self.benchmark.tasks[column]
        path = self._path(row, column, mode)
        lines: list[dict[str, Any]] = [
            {
                "id": example.id,
                "prompt": example.prompt,
                "references": list(example.references),
                "prediction": answer.text,
                "score": None,
            }
            for example, answer in zip(task.test, answers, strict=True)
        ]
        for line, answer in zip(lines, answers, strict=True):
            if answer.log_likelihoods is not None:
                line["log_likelihoods"] = answer.log_likelihoods
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
        self.matrices[mode].set(row, column, value)
        return value

    def _stream(
        self, columns: Sequence[int], model: torch.nn.Module, when: str
    ) -> Iterator[dict[int, str]]:
        """For one column after the other, this rank's texts by their index in the test set."""
        shares = {j: self._share(j) for j in columns}
        keys = [(j, i) for j in columns for i in shares[j]]
        tasks = self.asked.tasks
        asked = ((key, tasks[j], tasks[j].test[i]) for key, (j, i) in enumerate(keys))
        room = Room(rows=self.config.eval_batch_size, tokens=BATCH_TOKENS)
        found: dict[int, dict[int, str]] = {j: {} for j in columns}
        texts = generate_stream(model, self.tokenizer, asked, self.benchmark.decoding, room)
        for j in columns:
            self.watch.at(f"predictions of {tasks[j].name} {when}")
            while len(found[j]) < len(shares[j]):
                key, text = next(texts)
                at, i = keys[key]
                found[at][i] = text
                self.watch.at(f"predictions of {tasks[j].name} {when}")
            yield found.pop(j)

    def _share(self, column: int) -> list[int]:
        """Which of a column's examples this rank answers, the shortest first."""
        test = self.asked.tasks[column].test
        by_length = sorted(range(len(test)), key=lambda i: (len(test[i].prompt), i))
        return by_length[env.rank() :: env.world_size()]

    def _answers(
        self,
        column: int,
        modes: Sequence[str],
        when: str,
        model: torch.nn.Module,
        texts: dict[int, str] | None,
        *,
        synced: bool,
    ) -> dict[int, dict[str, Answered]]:
        """This rank's share of a cell: index in the test set to mode to answer."""
        task, mine = self.asked.tasks[column], self._share(column)
        longest = max(min(len(e.prompt), task.max_prompt_tokens) for e in task.test)
        size = BATCH_TOKENS // (longest + task.max_answer_tokens)
        size = max(1, min(size, self.config.eval_batch_size))
        # Every rank must make the same number of calls when weights are sharded: those that a rank
        # lacks are made up by an example again, and not kept.
        largest = -(-len(task.test) // env.world_size())
        out: dict[int, dict[str, Answered]] = {}
        for start in range(0, largest, size):
            indices = mine[start : start + size]
            if not indices and not synced:
                break
            self.watch.at(f"predictions of {task.name} {when}")
            found = answer_batch(
                modes,
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

    def _report(self, row: int) -> None:
        matrix = self.matrices[self.first]
        scores = matrix.rows[row]
        learned = row + 1
        metrics = {
            f"score/{task.name}": value
            for task, value in zip(self.benchmark.tasks, scores, strict=True)
            if value is not None
        }
        if row >= 0:
            seen = [value for value in scores[:learned] if value is not None]
            if len(seen) == learned:
                metrics["average_so_far"] = math.fsum(seen) / learned
        if learned == len(self.benchmark.tasks):
            final = sequence_metrics(matrix.scores, base=matrix.base)
            metrics |= {name: value for name, value in final.items() if value is not None}
        self.tracker.log_sequence(metrics, learned)
