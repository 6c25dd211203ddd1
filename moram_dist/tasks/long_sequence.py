"""Long Sequence: 15 classification tasks, 1000 training examples per class.

Files are ``{train,dev,test}.json`` in ``<data_dir>/<task>`` (SAPT's layout) or
``<data_dir>/<group>/<dataset>`` (O-LoRA's), or ``<data_dir>/<dataset>`` (the 500-sample version,
with complete prompts). dev is the same as test and is not read.

Source: Razdaibiedina et al. 2023 (Progressive Prompts), arXiv:2301.12314, for the tasks. Protocols:
``o_lora`` is the code of Wang et al. 2023, arXiv:2310.14152; ``sapt`` that of Zhao et al. 2024,
arXiv:2401.08295; ``tree_lora`` that of Qian et al. 2025, arXiv:2506.10355. ``default`` is ours;
``bare`` is ``default`` without instructions, so that only the texts identify a task. A table in
docs/benchmarks.md compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moram_dist.tasks.long_sequence_data import DATASETS, INSTRUCTIONS, Dataset
from moram_dist.tasks.published import Published
from moram_dist.tasks.rules import RULES, Protocol
from moram_dist.tasks.samples import Sample
from moram_dist.tasks.task import BENCHMARKS, TaskRules

CUE = "Output:"

_ORDER_4 = "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo"
_ORDER_5 = "multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo"
_ORDER_6 = "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolq wic"
ORDERS = {
    "4": tuple(_ORDER_4.split()),
    "5": tuple(_ORDER_5.split()),
    "6": tuple(_ORDER_6.split()),
    "sapt_3": tuple(_ORDER_4.split()),
    "sapt_4": tuple(_ORDER_6.split()),
}
"""By O-LoRA's numbers, and by SAPT's for two of them."""

SAPT_STEPS = {"cb": 100, "copa": 200, "boolq": 500, "imdb": 250, "dbpedia": 200, "multirc": 500}
"""Tasks for which SAPT's LLaMA script fixes the number of training steps."""

_TRUE_FALSE = {"yes": "True", "no": "False"}
_YES_NO = {"True": "yes", "False": "no"}

Words = dict[str, str]


def _labels(task: str, words: Words) -> tuple[str, ...]:
    return tuple(_said(task, label, words) for label in DATASETS[task].labels)


def _said(task: str, answer: str, words: Words) -> str:
    """An answer in a protocol's words: for qqp, SAPT's files say yes and no, O-LoRA's do not."""
    return words.get(answer, answer) if task == "qqp" else answer


def _asks(
    template: Callable[[Dataset, Sample], str], words: Words, *shapes: str
) -> Callable[[str, Sample], tuple[str, tuple[str, ...]]]:
    """A protocol's ``ask`` for records of these shapes; a complete prompt stays unchanged."""

    def ask(task: str, sample: Sample) -> tuple[str, tuple[str, ...]]:
        sample.expect(*shapes)
        data = DATASETS[task]
        prompt = sample.text if sample.shape == "prompt" else template(data, sample)
        return prompt, tuple(_said(task, answer, words) for answer in sample.answers)

    return ask


def _prompt(data: Dataset, sample: Sample) -> str:
    definition = sample.definition or data.definition
    return f"{definition}\n{sample.text}\n{CUE}" if definition else f"{sample.text}\n{CUE}"


def _bare_prompt(data: Dataset, sample: Sample) -> str:
    return f"{sample.text}\n{CUE}"


def _sapt_prompt(data: Dataset, sample: Sample) -> str:
    return f"{_prompt(data, sample)} "


def _options(data: Dataset, sample: Sample) -> str:
    """The 500-sample version's prompt, and the part of O-LoRA's prompt after its two names."""
    instruction = INSTRUCTIONS.get(data.group)
    if instruction is None:
        return f"{sample.text}\nAnswer:"
    return f"{instruction}\nOption: {', '.join(data.labels)} \n{sample.text}\nAnswer:"


def _o_lora_prompt(data: Dataset, sample: Sample) -> str:
    return f"Task:{data.group}\nDataset:{data.dataset}\n{_options(data, sample)}"


_RULES = TaskRules(
    metric="exact_match_normalised",
    max_answer_tokens=50,
    truncate_prompt="right",
    shared_limit=False,
)
_DEFAULT = replace(_RULES, separator=" ", cue=f"\n{CUE}")
_SAPT = replace(_RULES, epochs=20, joined=False, num_bos=0, answer_after=CUE)
_O_LORA = replace(_RULES, max_prompt_tokens=512, num_bos=2, answer_after="Answer:")
_TREE_LORA = TaskRules(metric="accuracy_prefix")


def _sapt_epochs(task: str, batch_size: int = 32) -> float:
    if task not in SAPT_STEPS:
        return _SAPT.epochs
    return SAPT_STEPS[task] / -(-DATASETS[task].num_train // batch_size)


_default = Protocol(
    tasks={task: replace(_DEFAULT, labels=_labels(task, _YES_NO)) for task in DATASETS},
    ask=_asks(_prompt, _YES_NO, "instance", "sentence"),
    drop_silent=True,
)

PROTOCOLS = {
    "default": _default,
    "bare": replace(_default, ask=_asks(_bare_prompt, _YES_NO, "instance", "sentence")),
    "sapt": Protocol(  # learning rate, epochs and batch size of its LLaMA script
        tasks={
            task: replace(_SAPT, labels=_labels(task, _YES_NO), epochs=_sapt_epochs(task))
            for task in DATASETS
        },
        ask=_asks(_sapt_prompt, _YES_NO, "instance", "sentence"),
        learning_rate=5e-5,
    ),
    "o_lora": Protocol(  # batch size and learning rate of its LLaMA script, from the second task on
        tasks={task: replace(_O_LORA, labels=_labels(task, {})) for task in DATASETS},
        ask=_asks(_o_lora_prompt, _TRUE_FALSE, "instance", "sentence"),
        learning_rate=1e-4,
        batch_size=64,
        notes=("the published code learns the first task at 1e-3, this all of them at one rate",),
    ),
    "tree_lora": Protocol(
        tasks={task: replace(_TREE_LORA, labels=_labels(task, {})) for task in DATASETS},
        ask=_asks(_options, _TRUE_FALSE, "prompt", "instance", "sentence"),
        learning_rate=1e-4,
        batch_size=8,
        notes=("answers are decoded greedily; the published code samples at temperature 0.1",),
    ),
}

FOLDERS = {
    task: (f"{data.group}/{data.dataset}", data.dataset, task) for task, data in DATASETS.items()
}

RULES.register("long_sequence")(PROTOCOLS)
BENCHMARKS.register("long_sequence")(
    Published(name="long_sequence", orders=ORDERS, held_out="dev", folders=FOLDERS)
)
