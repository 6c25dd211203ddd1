"""Measure general abilities by lm-eval, with the model in hand.

Every rank asks all requests, in the same order: ranks that hold shards stay in step, and each gets
the same result, of which the main rank's is kept. All tasks of a memory answer (recall ``all``).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eval.general import GeneralRow, GeneralScore, missing_tasks, read_general, write_general
from moram_dist.comm import env
from moram_dist.config import EMBEDDED, RunConfig
from moram_dist.families import Family, TextFamily
from moram_dist.methods import METHODS
from moram_dist.registry import InputError
from moram_dist.tasks.demo_text import make_sentence
from moram_dist.train.context import RunContext

BATCH_SIZE = 16
"""Requests in a pass. Other sizes change results by rounding; lm-eval's own default is 1."""

DEMO_SENTENCES = 64
DEMO_SEED = 13


def check_general(config: RunConfig, family: Family) -> None:
    """Check what ``--general`` asks for, before any work.

    Raises:
        InputError: lm-eval is not installed or has no such task, or neither the base nor the method
            can be asked by it.
    """
    asked = config.record.general_tasks
    if not asked:
        return
    if not isinstance(family, TextFamily):
        raise InputError("--general: lm-eval asks models of texts, and this base reads pictures")
    kind = METHODS[config.method.method]
    if kind.reads_features or kind.reads_texts or kind.recall == "prefix":
        raise InputError(
            f"--general: {config.method.method} needs to know where a prompt ends, which lm-eval "
            "does not tell"
        )
    if find_spec("lm_eval") is None:
        raise InputError("--general needs lm-eval: pip install 'moram-dist[general]'")
    for name in asked:
        if name != EMBEDDED and not _is_file(name):
            _manager(name)
        elif name != EMBEDDED and not Path(name).is_file():
            raise InputError(f"--general {name}: no such file")


class General:
    """Measures the tasks that a row lacks. All ranks call it together."""

    def __init__(self, context: RunContext) -> None:
        record = context.config.record
        self.asked = record.general_tasks
        self.rows = record.general_rows
        self.last = len(context.benchmark.tasks) - 1
        self.base = context.base
        self.run_dir = context.run_dir.path
        self.watchdog = context.watchdog
        self.progress = context.progress

    def missing(self, row: int) -> list[str]:
        """The tasks to measure in a row."""
        if not is_measured(row, self.last, self.rows):
            return []
        found: list[str] = env.from_main(missing_tasks(self.run_dir, row, self.asked))
        return found

    def __call__(self, row: int, model: nn.Module, names: Sequence[str], when: str) -> GeneralRow:
        """Measure tasks, write them to the row's file and return the row."""
        for name in names:
            label = f"lm-eval's {name} {when}"
            self.watchdog.at(label)
            with self.watchdog.during_passes(model):
                scores = measure(model, self.base.tokenizer, name)
            if env.is_main():
                kept = read_general(self.run_dir, row)
                write_general(
                    self.run_dir, row, GeneralRow(scores={**kept.scores, name: tuple(scores)})
                )
            for one in scores:
                metric = one.metric.removesuffix(",none")
                self.progress.say(f"  {when}: {one.task} {metric} {one.value:.4f} (lm-eval)")
        return read_general(self.run_dir, row) if env.is_main() else GeneralRow()


def is_measured(row: int, last: int, rows: str) -> bool:
    """Whether ``--general_rows`` names a row."""
    return rows == "all" or row in (-1, last)


def measure(model: nn.Module, tokenizer: Any, name: str) -> list[GeneralScore]:
    """What lm-eval's own command finds with ``--batch_size 16``, for a model in hand.

    Args:
        model: on its device; ranks that hold shards of it call this together.
        tokenizer: of the model.
        name: ``demo``, a YAML file, or a task or group that comes with lm-eval.

    Raises:
        InputError: lm-eval cannot read the task or its data.
    """
    import datasets
    from lm_eval import simple_evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with _own_random_numbers(), _without_bars():
        try:
            found = simple_evaluate(
                model=_quiet(model, tokenizer),
                tasks=[_demo() if name == EMBEDDED else name],
                task_manager=_manager(name),
                log_samples=False,
            )
        except (KeyError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"--general {name}: lm-eval cannot use it: {reason}") from None
    # On ranks whose LOCAL_RANK is not 0, lm-eval keeps the results to itself.
    results: dict[str, dict[str, Any]] = env.from_main(found and _plain(found))
    scores = [one for task, result in results.items() if (one := _first(task, result))]
    if not scores:
        raise InputError(f"--general {name}: lm-eval gives no number for it")
    groups = [one for one in scores if one.task == name]
    return groups or scores


def _quiet(model: nn.Module, tokenizer: Any) -> Any:
    """The model as lm-eval takes it, without bars of progress."""
    from lm_eval.models.huggingface import HFLM

    class Quiet(HFLM):
        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            if attn_mask is not None or labels is not None:
                return super()._model_call(inps, attn_mask, labels)
            with torch.no_grad():  # keys and values of all tokens would be kept for nothing
                return self.model(inps, use_cache=False).logits

        def _loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> Any:
            return super()._loglikelihood_tokens(*args, **kwargs | {"disable_tqdm": True})

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    return Quiet(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE)


def _manager(name: str) -> Any:
    """Where lm-eval finds a task. A scan of all its tasks takes half a minute, a folder none."""
    from lm_eval import tasks as shipped
    from lm_eval.tasks import TaskManager

    if name == EMBEDDED or _is_file(name):
        return TaskManager(include_defaults=False)
    folder = Path(str(shipped.__file__)).parent / name
    if folder.is_dir():
        found = TaskManager(include_path=str(folder), include_defaults=False)
        if name in found.all_tasks:
            return found
    found = TaskManager()
    if name not in found.all_tasks:
        raise InputError(f"--general {name}: neither a YAML file nor a task of lm-eval")
    return found


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _plain(found: Any) -> dict[str, dict[str, Any]]:
    """The results of each task, in the order in which its file lists the metrics."""
    plain = {}
    for task, result in found["results"].items():
        listed = [one["metric"] for one in found["configs"].get(task, {}).get("metric_list") or ()]
        names = sorted(result, key=lambda key: _place(key.partition(",")[0], listed))
        plain[task] = {name: result[name] for name in names}
    return plain


def _place(metric: str, listed: Sequence[Any]) -> int:
    return listed.index(metric) if metric in listed else len(listed)


def _first(task: str, result: dict[str, Any]) -> GeneralScore | None:
    """The first metric of a task; None for a group without one."""
    for key, value in result.items():
        metric, _, how = key.partition(",")
        if how and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = result.get(f"{metric}_stderr,{how}")
            stderr = float(stderr) if isinstance(stderr, int | float) else None
            return GeneralScore(task=task, metric=key, value=float(value), stderr=stderr)
    return None


@contextmanager
def _without_bars() -> Iterator[None]:
    """lm-eval shows a bar for each task on every rank, and has no setting for it."""
    from lm_eval.api import task

    kept = task.tqdm
    task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        task.tqdm = kept


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """lm-eval seeds all generators; training continues with its own numbers."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)


def _demo() -> dict[str, Any]:
    """How well the model knows the demo's sentences, which its base learned and no task asks."""
    return {
        "task": "demo_sentences",
        "custom_dataset": _demo_sentences,
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {
                "metric": "bits_per_byte",
                "aggregation": "bits_per_byte",
                "higher_is_better": False,
            }
        ],
    }


def _demo_sentences(**kwargs: Any) -> Any:
    from datasets import Dataset

    numbers = random.Random(DEMO_SEED)
    texts = [make_sentence(numbers).text for _ in range(DEMO_SENTENCES)]
    return {"test": Dataset.from_dict({"text": texts})}
