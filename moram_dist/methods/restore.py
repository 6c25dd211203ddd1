"""Load a trained memory into a plain model: one process, no DeepSpeed, ready for ``generate``."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from transformers.pytorch_utils import Conv1D

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.adapters.inject import put
from moram_dist.adapters.prompts import forget
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.config import EvalConfig, MethodConfig
from moram_dist.families import family_of_model
from moram_dist.methods.by_prompt import ByPrompt
from moram_dist.methods.method import METHODS
from moram_dist.methods.saved import RefusedPush, Saver, of_first
from moram_dist.models.identity import is_base, origin
from moram_dist.models.loaded import differs
from moram_dist.recognise import RECOGNISERS, Recogniser
from moram_dist.registry import InputError, one_of

PREFIX = "moram_prefix"
"""Attribute of a model with a memory: its ``Prefix``, and the number of tasks."""


def load_memory(
    model: nn.Module,
    path: str | Path,
    upto: int | None = None,
    *,
    any_base: bool = False,
    recall: str | None = None,
    recogniser: str | None = None,
    unknown: str = EvalConfig.unknown,
) -> nn.Module:
    """Adapt ``model`` in place with a run's memory, and return it in eval mode.

    Afterwards ``save_pretrained`` writes a folder for ``from_pretrained`` of this package, with the
    memory and its recall (``methods.saved``), and ``push_to_hub`` raises an error.

    Args:
        model: the Hugging Face language model that the run started from, on any device and in any
            dtype; the memory gets the same device and dtype. For a model that is quantised to 4 or
            8 bit, the memory gets the dtype that it computes in.
        path: ``RUN/memory``, or RUN itself.
        upto: load only the first ``upto`` tasks; default: all.
        any_base: whether to accept a model other than the run's base, if its layers fit. By default
            a model that is known to differ is refused, and one that cannot be identified, such as a
            model created in memory, causes a warning.
        recall: with ``all``, all tasks answer every prompt, as published; with ``prefix``, a
            recogniser finds the task of a prompt from its tokens, and the tasks up to it answer.
            Default: what the method requires (``any_ssr``: prefix), else all.
        recogniser: means, discriminant or ridge. Default: what the method requires (``any_ssr``:
            ridge), else discriminant.
        unknown: who answers a prompt that resembles no task's: ``all`` tasks, only the ``base``, or
            the ``likeliest`` task, which takes the place of ``all`` if only one task can answer.

    Raises:
        InputError: there is no memory, no statistics of prompts for ``recall="prefix"`` or a model
            that reads pictures, or fewer tasks than ``upto``; a file is missing or changed; the
            model already has a memory or an adapter, is not the base, or has no layers of the
            memory's names and sizes. The model is then unchanged.
    """
    folder = Path(path)
    files = MemoryFiles(folder / "memory" if (folder / "memory").is_dir() else folder)
    manifest = files.manifest()
    if manifest is None:
        raise InputError(f"{files.path} does not exist: no memory was published there")
    count = len(manifest.tasks) if upto is None else upto
    if not 0 <= count <= len(manifest.tasks):
        raise InputError(f"upto={upto}, but {files.path} holds {len(manifest.tasks)} tasks")
    kind = METHODS[manifest.method]
    if kind.reads_features:
        raise InputError(
            f"{files.path}: {manifest.method} answers beside the model, not in it, so there is "
            "nothing to put into a model; its run evaluates it"
        )
    recall = recall or kind.recall or EvalConfig.recall
    recogniser = recogniser or kind.recogniser or EvalConfig.recogniser
    one_of("unknown", unknown, ("all", "base", "likeliest"))
    unknown = kind.answers_unknown(unknown)
    by_prompt = recogniser_of(files, manifest, count, recall, recogniser)
    if by_prompt is not None and family_of_model(model).reads_pictures:
        raise InputError(
            f"recall='prefix': a pass of {type(model).__name__} has pictures and texts, which one "
            "task cannot answer together; use recall='all', or answered_by for a known task"
        )
    _check_plain(model)
    linears = linears_of(model, manifest, files.path)
    if not any_base:
        _check_base(model, manifest, files.path)
    method = kind(config_of(manifest, files.path), seed=0, num_tasks=len(manifest.tasks))
    for i, task in enumerate(manifest.tasks[:count]):
        files.check(task, method.stored_shapes(i, task, linears))  # all, before changing the model
    with _as_it_was_on_error(model, linears):
        method.build(model, manifest.modules)
        for i, task in enumerate(manifest.tasks[:count]):
            method.load_task(i, files.read(task))
    how = {"recall": recall, "recogniser": recogniser, "unknown": unknown}
    saver = Saver(model, method.layers, files, of_first(manifest, count), how)
    for name, replacement in (("save_pretrained", saver), ("push_to_hub", RefusedPush())):
        setattr(model, name, replacement)
    if method.keeps_prefixes:
        setattr(model, PREFIX, (method.prefix, count))
    if by_prompt is not None:
        ByPrompt(method.prefix, by_prompt, unknown).watch(model)
    return model.eval()


@contextmanager
def answered_by(model: nn.Module, tasks: Sequence[int]) -> Iterator[None]:
    """Context in which the first ``tasks[b]`` tasks of the memory answer row b of a batch.

    This is the model right after it learned that task. Later tasks do not contribute, so nothing is
    forgotten if the caller knows the task of each row. 0 is the bare base.

    Args:
        model: from ``load_memory``.
        tasks: one number per row; a single number applies to batches of any size.

    Raises:
        InputError: the model has no memory, its method overwrites what it learned, or the memory
            has fewer tasks.
    """
    prefix, count = getattr(model, PREFIX, (None, 0))
    if prefix is None:
        raise InputError(
            f"this {type(model).__name__} has no earlier states: it needs a memory of a method "
            "that keeps what each task added, such as moram or inc_lora"
        )
    for number in tasks:
        if not 0 <= number <= count:
            raise InputError(f"{number} tasks were asked for, and the memory holds {count}")
    with prefix.of(tasks):
        yield


def recogniser_of(
    files: MemoryFiles, manifest: Manifest, count: int, recall: str, name: str
) -> Recogniser | None:
    """The recogniser of the first ``count`` tasks; None if all tasks answer every prompt.

    Raises:
        InputError: ``load_memory`` would refuse this recall.
    """
    one_of("recall", recall, ("all", "prefix"))
    kind = RECOGNISERS[name]
    if recall == "all" or not count:
        return None
    if not METHODS[manifest.method].keeps_prefixes:
        raise InputError(
            f"recall='prefix': {manifest.method}, which learned {files.path}, does not keep its "
            "earlier states"
        )
    return kind([files.statistics(task) for task in manifest.tasks[:count]])


def config_of(manifest: Manifest, path: Path) -> MethodConfig:
    """The settings of the memory's method; older memories also hold those of all others."""
    known = {name for each in METHODS for name in _names(METHODS[each].Config)}
    strange = sorted(manifest.settings.keys() - known)
    if strange:
        raise InputError(f"{path}: settings: {strange[0]}: unknown to this version of the program")
    kind = METHODS[manifest.method].Config
    own = {name: value for name, value in manifest.settings.items() if name in _names(kind)}
    try:
        return kind(**own | {"method": manifest.method})
    except InputError as error:
        raise InputError(f"{path}: settings: {error}") from None


def _names(kind: type[MethodConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _check_plain(model: nn.Module) -> None:
    """Refuse a model that is adapted already."""
    kind = type(model).__name__
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            raise InputError(
                f"this {kind} has a memory already, at {name}: load its base again for another one"
            )
        if type(module).__module__.partition(".")[0] == "peft":
            raise InputError(
                f"this {kind} has an adapter of PEFT: a memory needs the plain base; give "
                "model.unload(), or the base itself"
            )


def linears_of(model: nn.Module, manifest: Manifest, path: Path) -> dict[str, nn.Module]:
    """The linears that the memory belongs to, by full name. Raises InputError if one is gone."""
    present = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    lacking = [name for name in manifest.modules if name not in present]
    if lacking:
        raise InputError(
            f"{path} belongs to {manifest.base.get('name')}: "
            f"this {type(model).__name__} has no linear {lacking[0]}"
        )
    return {name: present[name] for name in manifest.modules}


def _check_base(model: nn.Module, manifest: Manifest, path: Path) -> None:
    """Refuse a model that is known to differ from the base; warn if it cannot be identified."""
    kind, base = type(model).__name__, manifest.base.get("name")
    found = origin(model)
    if found is not None:
        source, revision = found
        try:
            same = is_base(manifest.base, source, revision=revision)
        except InputError:
            same = None  # its files are gone
        if same is False:
            raise InputError(
                f"{path} was trained on {base}, and {source} is another model or another version "
                "of it; give any_base=True to use it nevertheless"
            )
        if same:
            other = differs(model, source)
            if other is not None:
                raise InputError(
                    f"{path} was trained on {base}, and {other} of this {kind} is not what "
                    f"{source} holds; load it by from_pretrained, or give any_base=True"
                )
            return
    warnings.warn(
        f"{path} was trained on {base}; whether this {kind} is that model is not known, because "
        "it was not loaded from files that are here (any_base=True says that it is meant)",
        stacklevel=3,
    )


@contextmanager
def _as_it_was_on_error(model: nn.Module, linears: dict[str, nn.Module]) -> Iterator[None]:
    """Restore the original model on any error, such as lack of memory or an interrupt."""
    learned = [p for p in model.parameters() if p.requires_grad]
    try:
        yield
    except BaseException:
        for name, linear in linears.items():
            put(model, name, linear)
        forget(model)
        for parameter in learned:
            parameter.requires_grad_(True)
        raise
