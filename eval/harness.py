"""Fill the score matrix: generate, put predictions on disk, then score them.

A cell is one task's test set after one more task was learned. Its examples are dealt to the ranks
in small batches of like length, so no rank waits long; the main rank gathers, writes and scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from eval.continual import average_so_far, sequence_metrics
from eval.score_matrix import ScoreMatrix
from moram_dist.comm import env
from moram_dist.comm.watch import Watch
from moram_dist.comm.zero3 import is_sharded, without_hooks
from moram_dist.config import EvalConfig
from moram_dist.decode import generate_batch
from moram_dist.files import safe_name, write_atomically
from moram_dist.metrics import score
from moram_dist.models.language_model import Base
from moram_dist.tasks.task import Benchmark, Example, Task
from moram_dist.tracking import Tracker
from moram_dist.train.progress import Progress


class Evaluator:
    """Callable as ``evaluate(row)``; what is already in the matrix is not measured again."""

    def __init__(
        self,
        *,
        config: EvalConfig,
        benchmark: Benchmark,
        engine: Any,
        base: Base,
        run_dir: Path,
        tracker: Tracker,
        progress: Progress,
        watch: Watch,
        in_step: bool,
    ) -> None:
        """``in_step``: ranks must make equally many forward passes, whatever ZeRO asks."""
        self.config = config
        self.benchmark = benchmark
        self.engine = engine
        self.tokenizer = base.tokenizer
        self.run_dir = run_dir
        self.tracker = tracker
        self.progress = progress
        self.watch = watch
        self.in_step = in_step
        self.matrix = ScoreMatrix(run_dir / "scores.json", benchmark)

    def __call__(self, row: int) -> None:
        """Measure what is missing of a row. All ranks call it together."""
        columns = env.from_main(self.matrix.missing(row, self.config.eval_rows))
        if not columns:
            return
        self.engine.eval()
        if self._fits():
            with without_hooks(self.engine) as model:
                for column in columns:
                    self._cell(row, column, model, synced=self.in_step)
        else:
            for column in columns:
                self._cell(row, column, self.engine.module, synced=True)
        if env.is_main():
            self._report(row)

    def _cell(self, row: int, column: int, model: torch.nn.Module, *, synced: bool) -> None:
        task = self.benchmark.tasks[column]
        when = f"after {self.benchmark.tasks[row].name}" if row >= 0 else "before training"
        share = self._generate(task, when, model, synced=synced)
        self.watch.at(f"the score of {task.name} {when}")
        predictions = {k: v for part in env.gather_objects(share) for k, v in part.items()}
        if not env.is_main():
            return
        if len(predictions) != len(task.test):
            raise RuntimeError(f"{task.name}: {len(predictions)} of {len(task.test)} predictions")
        path = predictions_path(self.run_dir, row, column, task.name)
        lines = [
            {
                "id": example.id,
                "prompt": example.prompt,
                "references": list(example.references),
                "prediction": predictions[i],
                "score": None,
            }
            for i, example in enumerate(task.test)
        ]
        write_lines(path, lines)
        for line, example in zip(lines, task.test, strict=True):
            line["score"] = score(
                task.metric,
                prompt=example.prompt,
                prediction=str(line["prediction"]),
                references=example.references,
                labels=task.labels,
            )
        write_lines(path, lines)
        value = sum(float(line["score"]) for line in lines) / len(lines)  # type: ignore[arg-type]
        self.matrix.set(row, column, value)
        self.progress.say(f"  {when}: {task.name} {task.metric} {value:.2f} (n={len(lines)})")

    def _generate(
        self, task: Task, when: str, model: torch.nn.Module, *, synced: bool
    ) -> dict[int, str]:
        """This rank's share of a cell: index in the test set to prediction."""
        # Small test sets are cut finer, so that no rank is without work.
        size = min(self.config.eval_batch_size, -(-len(task.test) // env.world_size()))
        by_length = sorted(range(len(task.test)), key=lambda i: (len(task.test[i].prompt), i))
        batches = [by_length[k : k + size] for k in range(0, len(by_length), size)]
        # Every rank must make the same number of calls when weights are sharded: the batches that a
        # rank lacks are made up by the first one again, and not kept.
        rounds = -(-len(batches) // env.world_size())
        out: dict[int, str] = {}
        for turn in range(rounds):
            index = turn * env.world_size() + env.rank()
            if index >= len(batches) and not synced:
                break
            self.watch.at(f"predictions of {task.name} {when}")
            indices = batches[index] if index < len(batches) else batches[0]
            examples: list[Example] = [task.test[i] for i in indices]
            answers = generate_batch(
                model, self.tokenizer, examples, task, self.benchmark.decoding, synced=synced
            )
            if index < len(batches):
                out.update(zip(indices, answers, strict=True))
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
        scores = self.matrix.rows[row]
        learned = row + 1
        metrics = {
            f"score/{task.name}": value
            for task, value in zip(self.benchmark.tasks, scores, strict=True)
            if value is not None
        }
        if row >= 0:
            so_far = average_so_far(self.matrix.scores)[row]
            if so_far is not None:
                metrics["average_so_far"] = so_far
        if learned == len(self.benchmark.tasks):
            final = sequence_metrics(self.matrix.scores, base=self.matrix.base)
            metrics |= {name: value for name, value in final.items() if value is not None}
        self.tracker.log_sequence(metrics, learned)


def predictions_path(run_dir: Path, row: int, column: int, name: str) -> Path:
    """``predictions/after_002/on_000_C-STANCE.jsonl``; row -1 is ``base``."""
    after = f"after_{row:03d}" if row >= 0 else "base"
    return run_dir / "predictions" / after / f"on_{column:03d}_{safe_name(name)}.jsonl"


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """One JSON object a line, atomically."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(path, text)
