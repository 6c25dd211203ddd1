"""Checks of a run's base model, made before the ranks meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from moram_dist.adapters.targets import Targets
from moram_dist.config import MethodConfig, RunConfig, TrainConfig
from moram_dist.data.limits import check_ids
from moram_dist.families import Family, TextFamily, family_of_model, is_generated
from moram_dist.families.targets import choose_targets
from moram_dist.methods import METHODS
from moram_dist.methods.adapting import AdapterConfig
from moram_dist.models import language_model
from moram_dist.models.lengths import LengthRules, first_beyond
from moram_dist.models.probe import check_causal, check_finite
from moram_dist.presets import OF_BENCHMARK
from moram_dist.registry import InputError
from moram_dist.tasks import Benchmark, Task


def check_base(config: RunConfig, benchmark: Benchmark, model: nn.Module) -> Benchmark:
    """Compare a base with its files, and the benchmark with the base.

    Args:
        config: resolved.
        benchmark: the run's.
        model: the base's skeleton.

    Returns:
        The benchmark, with a note if its texts are longer than the base was made for.

    Raises:
        InputError: the benchmark is not for this kind of base, weights do not fill the model, or it
            has no row for some token, or no positions for some text.
    """
    family = family_of_model(model)
    check_fit(config, benchmark, family)
    language_model.check_weights(config.model, model)
    tokenizer = language_model.load_tokenizer(config.model)
    if not isinstance(family, TextFamily):
        return benchmark
    check_ids(tokenizer, benchmark, family.vocabulary(model), config.model.model)
    return _check_lengths(config, benchmark, family, model, tokenizer)


def check_fit(config: RunConfig, benchmark: Benchmark, family: Family) -> None:
    """Compare the benchmark, the method and the size of a pass with the kind of base.

    Raises:
        InputError: texts for a base that reads pictures, or the reverse; a method for the other
            kind; or steps in several passes, for a family that cannot split them.
    """
    base = f"--model {config.model.model}"
    for task in benchmark.tasks:
        if family.reads_pictures and task.pictures is None:
            raise InputError(
                f"{base} reads pictures, and the prompts of --benchmark {benchmark.name} are "
                f"texts; benchmarks of pictures: {', '.join(OF_BENCHMARK)}"
            )
        if task.pictures is not None and not family.reads_pictures:
            raise InputError(
                f"--benchmark {benchmark.name} is of pictures, and {base} reads texts; give the "
                "folder or id of a CLIP"
            )
    method, train = config.method.method, config.train
    if family.reads_pictures and METHODS[method].reads_texts:
        raise InputError(f"--method {method} reads prompts as texts, and {base} reads pictures")
    if METHODS[method].reads_features and not family.reads_pictures:
        raise InputError(
            f"--method {method} answers pictures by classes, and {base} reads texts; give the "
            "folder or id of a CLIP"
        )
    if family.splits_steps:
        return
    for name in ("micro_batch_size", "micro_batch_tokens"):
        value = getattr(train, name)
        if value != getattr(TrainConfig, name):
            raise InputError(
                f"--{name} {value}: {base} compares the pictures of a step with each other, so a "
                "rank reads its part of a step in one pass; to save memory, lower --batch_size or "
                "use more ranks"
            )


def targets_of(config: MethodConfig, model: nn.Module) -> Targets | None:
    """The linears that the run's method adapts; None for a method that adapts none.

    Args:
        config: of the method.
        model: the base's skeleton.

    Raises:
        InputError: as ``choose_targets``.
    """
    if not isinstance(config, AdapterConfig):
        return None
    return choose_targets(model, config.target_modules, is_skeleton=True)


def check_loaded(base: language_model.Base, engine: Any, name: str) -> None:
    """Check the loaded weights. All ranks call it, before anything is trained.

    Raises:
        InputError: NaN or infinity in weights or logits, or a model that is not causal.
    """
    check_finite(engine.module, name)
    if isinstance(base.family, TextFamily):
        vocabulary = base.family.vocabulary(base.model)
        check_causal(engine.module, name, base.family, vocabulary=vocabulary)


def _check_lengths(
    config: RunConfig, benchmark: Benchmark, family: TextFamily, model: nn.Module, tokenizer: Any
) -> Benchmark:
    there = family.positions(model)
    limits = [limit for limit in dataclasses.astuple(there) if limit]
    if not limits:
        return benchmark
    asked = _asked(config, benchmark, partial(family.question_fits, tokenizer), min(limits))
    if not there.has_table:
        # Rotary positions have no end, so a note needs texts that are sure to exceed the limit.
        asked = dataclasses.replace(asked, room=False)
    need = first_beyond(family, tokenizer, asked, there)
    if need is None:
        return benchmark
    takes = f"{need.where} takes {need.prompt} tokens of prompt and {need.answer} of answer"
    if asked.room:
        has = family.describe(there)
        raise InputError(
            f"--model {config.model.model} has {has}, and {takes}; lower --max_prompt_tokens "
            f"({_most(benchmark, 'max_prompt_tokens')}) or --max_answer_tokens "
            f"({_most(benchmark, 'max_answer_tokens')})"
        )
    note = f"{takes}, and by its config.json the base model was made for {there.trained}"
    return dataclasses.replace(benchmark, notes=(*benchmark.notes, note))


def _most(benchmark: Benchmark, field: str) -> int:
    return max(getattr(task, field) for task in benchmark.tasks)


def _asked(
    config: RunConfig, benchmark: Benchmark, fits: Callable[[Task, str], bool], limit: int
) -> LengthRules:
    method = METHODS[config.method.method](
        config.method, config.train.seed, num_tasks=len(benchmark.tasks)
    )
    modes = config.eval.answer_modes
    prompts = benchmark
    if any(task.max_prompt_tokens + task.max_answer_tokens > limit for task in benchmark.tasks):
        prompts = method.asked(benchmark, fits)
    return LengthRules(
        benchmark=prompts,
        trained=any(method.training_data(benchmark, i) for i in range(len(benchmark.tasks))),
        generated=partial(is_generated, modes),
        chosen=any(mode != "generate" for mode in modes),
    )
