"""Read what a run directory, a saved model or a memory folder says about how to use its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moram_dist import config_io
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.config import EvalConfig, ModelConfig
from moram_dist.methods import METHODS
from moram_dist.methods.method import Method
from moram_dist.methods.saved import SAVED, read_saved
from moram_dist.reading import read_mapping, record
from moram_dist.registry import InputError, unknown
from moram_dist.tasks.task import Decoding, Task, TaskRules
from moram_dist.train.inputs import RunInputs, read_inputs
from moram_dist.use.imported import IMPORTED, read_imported

ANY_LENGTH = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class MemorySource:
    """A memory, its base, and the rules by which it was evaluated."""

    path: Path
    files: MemoryFiles
    manifest: Manifest
    model: ModelConfig = field(default_factory=ModelConfig)
    recall: str = EvalConfig.recall
    recogniser: str = EvalConfig.recogniser
    unknown: str = EvalConfig.unknown
    rules: Mapping[str, TaskRules] = field(default_factory=dict)
    """Of each task by name; empty for a memory without its run."""

    decoding: Decoding = field(default_factory=Decoding)
    inputs: RunInputs | None = None
    """Of the run, if there is one."""

    is_saved: bool = False
    """Whether ``save_pretrained`` wrote the folder, with its base in it."""

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of learning."""
        return [task.name for task in self.manifest.tasks]

    def number(self, upto: str | None) -> int:
        """The number of tasks up to one that is given by name or as a number; None: all.

        Raises:
            InputError: the memory has no such task.
        """
        if upto is None:
            return len(self.tasks)
        if upto in self.tasks:
            return self.tasks.index(upto) + 1
        if upto.isascii() and upto.isdigit() and int(upto) <= len(self.tasks):
            return int(upto)
        raise unknown("task", upto, [*self.tasks, f"0 to {len(self.tasks)}"])

    def learned(self, upto: str | None) -> int:
        """``number``, but at least one task. Raises InputError as it does, or if there is none."""
        number = self.number(upto)
        if number == 0:
            raise InputError(f"{self.path}: nothing is learned before the first task")
        return number

    def task(self, name: str | None, upto: int) -> Task:
        """The rules by which prompts are encoded; None: those of the newest of the first tasks.

        A memory without its run has no rules: prompts are whole, after one BOS token.

        Raises:
            InputError: the run has no task of that name.
        """
        if name is not None and name not in self.rules:
            if not self.rules:
                raise InputError(f"--task {name}: {self.path} is not a run, so it has no rules")
            raise unknown("task", name, self.rules)
        if name is None:
            name = self.tasks[max(upto, 1) - 1] if self.tasks else ""
        rules = self.rules.get(name)
        if rules is None:
            rules = TaskRules(metric="exact_match", max_prompt_tokens=ANY_LENGTH)
        return Task(**vars(rules), name=name, train=(), test=())


def read_source(path: Path, model: str | None = None) -> MemorySource:
    """Read a run directory, or one of the other folders that hold a memory.

    Those are what ``save_pretrained`` or an import wrote, and a memory alone, with ``--model``.

    Args:
        path: the folder.
        model: folder or hub id of the base; default: the one that the run or the folder names.

    Raises:
        InputError: there is no memory, a file is damaged, the base is not known, or the method does
            not answer by a memory in the model.
    """
    files = MemoryFiles(path / "memory" if (path / "memory").is_dir() else path)
    manifest = files.manifest()
    if manifest is None:
        raise InputError(
            f"{path}: holds no memory: expected a run directory after its first task, a folder of "
            "save_pretrained, or RUN/memory"
        )
    _check_method(path, METHODS[manifest.method], manifest.method)
    source = MemorySource(path=path, files=files, manifest=manifest)
    if (path / "run.yaml").is_file():
        source = _of_run(source)
    elif (path / SAVED).is_file():
        source = _of_saved(source)
    elif (path / IMPORTED).is_file():
        source = _of_imported(source)
    elif model is None:
        raise InputError(
            f"{path} does not say where its base is: give --model, the folder or hub id of "
            f"{manifest.base['name']}"
        )
    if model is not None:
        source = replace(source, model=replace(source.model, model=model), is_saved=False)
    kind = METHODS[manifest.method]
    return replace(
        source,
        recall=kind.recall or source.recall,
        recogniser=kind.recogniser or source.recogniser,
        unknown=kind.answers_unknown(source.unknown),
    )


def _of_run(source: MemorySource) -> MemorySource:
    record_of, inputs_of = source.path / "run.yaml", source.path / "inputs.json"
    config = config_io.from_saved(read_mapping(record_of), record_of)
    if not inputs_of.is_file():
        raise InputError(
            f"{inputs_of} is missing: rerun the training command once, which writes it, or give "
            f"{source.path / 'memory'} with --model"
        )
    inputs = read_inputs(inputs_of)
    return replace(
        source,
        model=ModelConfig(
            model=config.model.model,
            dtype=_precision(inputs.precision),
            attention=config.model.attention,
            trust_remote_code=config.model.trust_remote_code,
        ),
        recall=config.eval.recalls[0],
        recogniser=config.eval.recogniser,
        unknown=config.eval.unknown,
        rules={
            task.name: record(TaskRules, dict(task.rules), f"{inputs_of}: task {task.name}")
            for task in inputs.tasks
        },
        decoding=record(Decoding, dict(inputs.decoding), f"{inputs_of}: decoding"),
        inputs=inputs,
    )


def _of_saved(source: MemorySource) -> MemorySource:
    saved = read_saved(source.path)
    return replace(
        source,
        model=ModelConfig(model=str(source.path / "base"), dtype=_precision(saved.dtype)),
        recall=saved.recall,
        recogniser=saved.recogniser,
        unknown=saved.unknown,
        is_saved=True,
    )


def _of_imported(source: MemorySource) -> MemorySource:
    path = source.path / IMPORTED
    made = read_imported(source.path)
    return replace(
        source,
        model=ModelConfig(model=made.model, dtype=_precision(made.dtype)),
        recall="prefix" if made.measured else "all",
        rules={
            name: record(TaskRules, dict(rules), f"{path}: task {name}")
            for name, rules in made.rules.items()
        },
        decoding=record(Decoding, dict(made.decoding), f"{path}: decoding"),
    )


def _precision(name: str) -> Any:
    """The value of ``ModelConfig.dtype``."""
    return {"float32": "fp32", "bfloat16": "bf16"}.get(name, "auto")


def _check_method(path: Path, kind: type[Method], name: str) -> None:
    """Refuse methods whose answers do not come from the model with its memory alone."""
    if kind.reads_features:
        raise InputError(f"{path}: {name} answers beside the model; only its run evaluates it")
    if kind.asked is not Method.asked:
        raise InputError(
            f"{path}: {name} puts training examples before each prompt, and they are not in the "
            "memory; write them into the prompts and ask the base"
        )
