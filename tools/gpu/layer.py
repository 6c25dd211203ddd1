"""One linear with its memory, forward and backward: bare, published, PEFT's LoRA, and ours.

Each implementation is checked against float64, in float32 and in the type that is timed. The
published formulation scores in bf16 and so chooses other atoms there: it is timed if it is right in
float32, and its error in bf16 is only shown. All others must be right in both.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bench import exact, variants
from bench.contest import LINEAR, OURS, PEFT_ACTIVE, PUBLISHED
from bench.layer import LARGEST_LORA
from bench.measure import look, one_pass
from bench.variants import Case, CaseInputs, Contender, on_linear
from tools.gpu.models import has_peft, left_out
from tools.gpu.record import How, Record
from tools.gpu.steps import Stopped
from tools.gpu.timing import seconds

WIDTH = 4096
CASES = [
    Case(num_tokens=num_tokens, width=WIDTH, num_atoms=num_atoms)
    for num_atoms, num_tokens in (
        *((240, tokens) for tokens in (4096, 16, 1024, 128)),
        *((4096, tokens) for tokens in (4096, 16, 1024, 128)),
        *((1024, tokens) for tokens in (4096, 16, 1024, 128)),
        *((65536, tokens) for tokens in (4096, 16, 1024, 128)),
    )
]
"""What matters most comes first: time may run out."""

TINY = [Case(num_tokens=16, width=64, num_atoms=num_atoms) for num_atoms in (40, 128)]

FLOAT32, HALF = 1e-4, 3e-2
"""Largest errors, relative to the largest number of a tensor: sums over 65,536 numbers in float32,
and results that are rounded to bf16."""

Make = Callable[[CaseInputs], Contender]


def run(record: Record, how: How) -> None:
    """Measure case by case. Raises Stopped when the next one may take too long."""
    cases = TINY if how.tiny else CASES
    dtype = torch.bfloat16 if how.device == "cuda" else torch.float32
    rows: list[dict[str, Any]] = []
    longest = 0.0
    record.put(**left_out())
    for case in cases:
        if how.left() < 2 * longest + 1:
            raise Stopped(f"{len(rows)} of {len(cases)} cases")
        began = time.monotonic()
        try:
            ways = one_case(case, dtype, how)
        except Exception as error:  # out of memory, say: smaller cases follow
            ways = {"all": failure(error)}
        gc.collect()
        if how.device == "cuda":
            torch.cuda.empty_cache()
        rows.append({**asdict(case), "dtype": str(dtype), "ways": ways})
        record.put(cases=rows)
        longest = max(longest, time.monotonic() - began)
    wrong = [
        f"{name} at {row['num_tokens']} tokens, {row['num_atoms']} atoms"
        for row in rows
        for name, way in row["ways"].items()
        if not way["passed"]
    ]
    if wrong:
        raise RuntimeError("; ".join(wrong))


def ways_of(case: Case) -> dict[str, Make]:
    """The implementations that are compared."""
    ways: dict[str, Make] = {
        LINEAR: variants.bare_linear,
        PUBLISHED: on_linear(variants.published_eager),
        OURS: on_linear(variants.ours),
    }
    if case.num_atoms <= LARGEST_LORA and has_peft():
        ways[PEFT_ACTIVE] = variants.peft_active_layer
    return ways


def one_case(case: Case, dtype: torch.dtype, how: How) -> dict[str, dict[str, Any]]:
    """Errors and seconds of each implementation."""
    inputs = variants.draw(case, device=how.device, dtype=dtype)
    answers = references(inputs)
    found: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name, make in ways_of(case).items():
        try:
            found[name] = checked(make, inputs, answers[name], name)
            if not found[name]["passed"]:
                continue
            way = make(inputs)
            calls[name] = _pass_of(way, inputs.upstream_TD)
        except Exception as error:
            found[name] = failure(error)
    for name in {LINEAR, OURS} & calls.keys() if how.device == "cuda" else ():
        graph = f"{name}, graph"
        try:
            way = ways_of(case)[name](inputs)
            calls[graph], worst = captured(way, inputs.upstream_TD, answers[name])
            found[graph] = {"worst_error": worst, "passed": worst <= HALF}
            if not found[graph]["passed"]:
                del calls[graph]
        except Exception as error:
            found[graph] = failure(error)
    repeats = 3 if how.tiny else 20
    for name, times in seconds(calls, how.device, repeats=repeats, left=how.left).items():
        found[name] |= times
    return found


def failure(error: Exception) -> dict[str, Any]:
    """What is recorded of an implementation that raised an error."""
    return {"error": f"{type(error).__name__}: {error}", "passed": False}


def references(inputs: CaseInputs) -> dict[str, exact.Answers]:
    """What each implementation must give, in float64."""
    base = exact.linear(inputs)
    memory = exact.layer(exact.memory(inputs), base)
    out: dict[str, exact.Answers] = {LINEAR: base, PUBLISHED: memory, OURS: memory}
    if inputs.case.num_atoms <= LARGEST_LORA:
        out[PEFT_ACTIVE] = exact.layer(exact.lora(inputs), base)
    return out


def checked(make: Make, inputs: CaseInputs, expected: exact.Answers, name: str) -> dict[str, Any]:
    """Errors of an implementation, in float32 and in the inputs' own type."""
    top_k = inputs.case.top_k
    upstream = inputs.upstream_TD
    single = in_float32(inputs)
    seen = look(make(single), single.upstream_TD, top_k=top_k)
    check = exact.compare(seen.answers, expected, seen.chosen_TK)
    passed = check.worst <= FLOAT32 and check.sets_equal is not False
    found: dict[str, Any] = {"float32_errors": dict(check.errors), "same_atoms": check.sets_equal}
    if upstream.dtype != torch.float32:
        del seen, single
        seen = look(make(inputs), upstream, top_k=top_k)
        check = exact.compare(seen.answers, expected, seen.chosen_TK)
        found |= {"errors": dict(check.errors), "same_atoms": check.sets_equal}
        if name != PUBLISHED:
            passed &= check.worst <= HALF and check.sets_equal is not False
    return {**found, "saved_bytes": seen.counts.saved_bytes, "passed": passed}


def in_float32(inputs: CaseInputs) -> CaseInputs:
    """The same numbers in float32, which holds those of bf16 exactly."""

    def single(tensor: Tensor) -> Tensor:
        return tensor.detach().float().requires_grad_(tensor.requires_grad)

    keys, values = inputs.frozen
    return CaseInputs(
        case=inputs.case,
        x_TD=single(inputs.x_TD),
        weight_DD=single(inputs.weight_DD),
        frozen=(single(keys), single(values)),
        active=(single(inputs.active[0]), single(inputs.active[1])),
        upstream_TD=single(inputs.upstream_TD),
    )


def captured(
    way: Contender, upstream: Tensor, expected: Mapping[str, Tensor]
) -> tuple[Callable[[], object], float]:
    """A pass as a CUDA graph, and its largest error."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            one_pass(way, upstream)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, *gradients = one_pass(way, upstream)
    graph.replay()
    answers = {"y": y, **dict(zip(way.wanted, gradients, strict=True))}
    return graph.replay, exact.compare(answers, expected).worst


def _pass_of(way: Contender, upstream: Tensor) -> Callable[[], object]:
    return lambda: one_pass(way, upstream)
