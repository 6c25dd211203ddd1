"""TRACE: eight tasks from stance detection to code, 500 training examples each.

Files are ``<data_dir>/<task>/{train,eval,test}.json``, each one list of ``prompt`` and ``answer``.
The prompt is complete; nothing is added to it. eval and test share no example except in FOMC, where
16 of the 100 eval examples are also in test (docs/data_audit.md).

Source: Wang et al. 2023, arXiv:2310.06762, whose code is protocol ``original``; protocol ``moram``
is the code of Lu et al. 2026, arXiv:2506.21035, and ``moram_published`` also scores exactly as that
code does. A table in docs/benchmarks.md compares them.
"""

from __future__ import annotations

from dataclasses import replace

from moram_dist.tasks.published import Published
from moram_dist.tasks.rules import RULES, Protocol
from moram_dist.tasks.samples import Sample
from moram_dist.tasks.task import BENCHMARKS, Decoding, TaskRules

_ABC = ("A", "B", "C")

TASKS: dict[str, TaskRules] = {
    "C-STANCE": TaskRules(metric="choice", labels=_ABC, epochs=2),
    "FOMC": TaskRules(metric="choice", labels=_ABC, epochs=1),
    # Meetings are long, and the protocol keeps their beginning, so the final cue may be cut.
    "MeetingBank": TaskRules(
        metric="rouge_l_set",
        epochs=3,
        max_prompt_tokens=4096,
        truncate_prompt="right",
        joined=False,
    ),
    "Py150": TaskRules(metric="edit_similarity", epochs=2),
    "ScienceQA": TaskRules(metric="first_character", epochs=1),
    "NumGLUE-cm": TaskRules(metric="math_answer", epochs=2),
    "NumGLUE-ds": TaskRules(metric="math_answer", epochs=2),
    "20Minuten": TaskRules(metric="sari", epochs=3),
}
"""Rules of protocol ``moram`` by task, in the one published order."""

_PUBLISHED = TASKS | {
    name: replace(TASKS[name], metric=metric)
    for name, metric in {
        "MeetingBank": "rouge_l_set_line_break",
        "NumGLUE-cm": "math_answer_arithmetic",
        "NumGLUE-ds": "math_answer_arithmetic",
    }.items()
}
"""Scored as in the published MoRAM script, to compare with the paper's table."""

_ORIGINAL: dict[str, TaskRules] = {
    "C-STANCE": TaskRules(metric="exact_match", labels=_ABC, epochs=5),
    "FOMC": TaskRules(metric="exact_match", labels=_ABC, epochs=3),
    "MeetingBank": TaskRules(metric="rouge_l_set_swapped", epochs=7),
    "Py150": TaskRules(metric="edit_similarity", epochs=5),
    "ScienceQA": TaskRules(metric="first_character", epochs=3),
    "NumGLUE-cm": TaskRules(metric="exact_match", epochs=5),
    "NumGLUE-ds": TaskRules(metric="exact_match", epochs=5),
    "20Minuten": TaskRules(metric="sari", epochs=7),
}


def _ask(task: str, sample: Sample) -> tuple[str, tuple[str, ...]]:
    sample.expect("prompt")
    return sample.text, sample.answers


_MORAM = Protocol(
    tasks=TASKS,
    ask=_ask,
    decoding=Decoding(repetition_penalty=1.2, no_repeat_ngram_size=3),
)
PROTOCOLS = {
    "moram": _MORAM,
    "moram_published": replace(_MORAM, tasks=_PUBLISHED),
    "original": Protocol(  # learning rate and batch size of its LoRA on 4 GPUs
        tasks=_ORIGINAL,
        ask=_ask,
        learning_rate=1e-4,
        notes=("answers are decoded greedily; the published code samples at temperature 0.1",),
    ),
}
ORDERS = {"default": tuple(TASKS)}

RULES.register("trace")(PROTOCOLS)
BENCHMARKS.register("trace")(
    Published(name="trace", orders=ORDERS, held_out="eval", spare_train=True)
)
