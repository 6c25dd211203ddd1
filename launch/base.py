"""What a run asks of its base model, looked at before the ranks meet."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

from torch import nn

from moram_dist.adapters.reached import unreached
from moram_dist.adapters.targets import Targets, choose_targets
from moram_dist.config import MethodConfig, RunConfig
from moram_dist.data.encode import fits
from moram_dist.data.limits import LengthRules, check_ids, first_beyond
from moram_dist.decode import is_generated
from moram_dist.methods import METHODS, Method
from moram_dist.models import language_model
from moram_dist.models.positions import positions
from moram_dist.models.probe import check_causal, check_finite
from moram_dist.registry import InputError
from moram_dist.tasks import Benchmark


def check_base(config: RunConfig, benchmark: Benchmark, model: nn.Module) -> Benchmark:
    """Compare a base with its files, and the benchmark with the base.

    Args:
        config: resolved.
        benchmark: that will be run.
        model: the base's skeleton.

    Returns:
        The benchmark, with a note where it goes beyond what the base was made for.

    Raises:
        InputError: weights that do not fill the model, tokens that it has no row for, or texts that
            it has no positions for.
    """
    language_model.check_weights(config.model, model)
    tokenizer = language_model.load_tokenizer(config.model)
    check_ids(tokenizer, benchmark, _rows(model), config.model.model)
    return _check_lengths(config, benchmark, model, tokenizer)


def targets_of(config: MethodConfig, model: nn.Module) -> Targets | None:
    """The linears that the run's method adapts; None for a method that adapts none.

    Args:
        config: the method and its target modules.
        model: the base's skeleton.

    Raises:
        InputError: as ``choose_targets``.
    """
    if METHODS[config.method].build is Method.build:
        return None
    return choose_targets(model, config.target_modules, unreached(model))


def check_loaded(base: language_model.Base, engine: Any, name: str) -> None:
    """Look at what only loaded weights show. All ranks call it, before anything is trained.

    Raises:
        InputError: NaN or infinity in weights or logits, or a model that is not causal.
    """
    check_finite(engine.module, name)
    check_causal(
        engine.module, name, vocabulary=_rows(base.model), decoder_start=base.decoder_start
    )


def _rows(model: Any) -> int:
    """Tokens that the model can read and say."""
    return min(
        getattr(layer.weight, "ds_shape", layer.weight.shape)[0]
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer is not None
    )


def _check_lengths(
    config: RunConfig, benchmark: Benchmark, model: nn.Module, tokenizer: Any
) -> Benchmark:
    there = positions(model)
    start = language_model.decoder_start(config.model, model.config)
    source, tokens = there.source or math.inf, there.tokens or there.trained or math.inf
    if math.isinf(min(source, tokens)):
        return benchmark
    asked = _asked(config, benchmark, tokenizer, min(source, tokens))
    if there.tokens is None and there.source is None:
        # Rotary positions go on, so only what is sure to be read beyond them is worth a note.
        asked = dataclasses.replace(asked, room=False)
    need = first_beyond(tokenizer, asked, start, source=source, tokens=tokens)
    if need is None:
        return benchmark
    takes = f"{need.where} takes {need.prompt} tokens of prompt and {need.answer} of answer"
    if asked.room:
        has = f"{there.tokens} positions"
        if start is not None:
            has = f"{there.source} positions for the one and {there.tokens} for the other"
        raise InputError(
            f"--model {config.model.model} has {has}, and {takes}; lower --max_prompt_tokens "
            f"({_most(benchmark, 'max_prompt_tokens')}) or --max_answer_tokens "
            f"({_most(benchmark, 'max_answer_tokens')})"
        )
    note = f"{takes}, and by its config.json the base model was made for {tokens}"
    return dataclasses.replace(benchmark, notes=(*benchmark.notes, note))


def _most(benchmark: Benchmark, field: str) -> int:
    return max(getattr(task, field) for task in benchmark.tasks)


def _asked(config: RunConfig, benchmark: Benchmark, tokenizer: Any, limit: float) -> LengthRules:
    method = METHODS[config.method.method](
        config.method, config.train.seed, num_tasks=len(benchmark.tasks)
    )
    modes = config.eval.answer_modes
    prompts = benchmark
    if any(task.max_prompt_tokens + task.max_answer_tokens > limit for task in benchmark.tasks):
        prompts = method.asked(benchmark, partial(fits, tokenizer))
    return LengthRules(
        benchmark=prompts,
        trained=any(method.training_data(benchmark, i) for i in range(len(benchmark.tasks))),
        generated=partial(is_generated, modes),
        chosen=any(mode != "generate" for mode in modes),
    )
