"""SuperNI: 15 tasks of Super-NaturalInstructions, three of each of five kinds.

Files are ``<data_dir>/<task>/{train,dev,test}.json`` with ``Definition`` and ``Instances``. dev is
the same as test and is not read.

Source: Wang et al. 2022, arXiv:2204.07705, in the selection of Zhao et al. 2024 (SAPT),
arXiv:2401.08295, whose code is protocol ``sapt``; protocol ``default`` is ours. A table in
docs/benchmarks.md compares both.
"""

from __future__ import annotations

from dataclasses import replace

from moram_dist.tasks.published import Published
from moram_dist.tasks.rules import RULES, Protocol
from moram_dist.tasks.samples import Sample
from moram_dist.tasks.task import BENCHMARKS, TaskRules

CUE = "Output:"

LABELS: dict[str, tuple[str, ...]] = {
    # dialogue generation
    "task639_multi_woz_user_utterance_generation": (),
    "task1590_diplomacy_text_generation": (),
    "task1729_personachat_generate_next": (),
    # information extraction
    "task181_outcome_extraction": (),
    "task748_glucose_reverse_cause_event_detection": (),
    "task1510_evalution_relation_extraction": (),
    # question answering
    "task002_quoref_answer_generation": (),
    "task073_commonsenseqa_answer_generation": ("A", "B", "C", "D", "E"),
    "task591_sciq_answer_generation": (),
    # summarisation
    "task511_reddit_tifu_long_text_summarization": (),
    "task1290_xsum_summarization": (),
    "task1572_samsum_summary": (),
    # sentiment
    "task363_sst2_polarity_classification": ("POS", "NEG"),
    "task875_emotion_classification": ("joy", "love", "anger", "fear", "surprise", "sadness"),
    "task1687_sentiment140_classification": ("positive", "negative"),
}
"""Every task with its closed answer set, empty if answers are free text."""

ORDERS: dict[str, tuple[str, ...]] = {
    "1": (
        "task1572_samsum_summary",
        "task363_sst2_polarity_classification",
        "task1290_xsum_summarization",
        "task181_outcome_extraction",
        "task002_quoref_answer_generation",
        "task1510_evalution_relation_extraction",
        "task639_multi_woz_user_utterance_generation",
        "task1729_personachat_generate_next",
        "task073_commonsenseqa_answer_generation",
        "task1590_diplomacy_text_generation",
        "task748_glucose_reverse_cause_event_detection",
        "task511_reddit_tifu_long_text_summarization",
        "task591_sciq_answer_generation",
        "task1687_sentiment140_classification",
        "task875_emotion_classification",
    ),
    "2": (
        "task748_glucose_reverse_cause_event_detection",
        "task073_commonsenseqa_answer_generation",
        "task1590_diplomacy_text_generation",
        "task639_multi_woz_user_utterance_generation",
        "task1572_samsum_summary",
        "task1687_sentiment140_classification",
        "task591_sciq_answer_generation",
        "task363_sst2_polarity_classification",
        "task1510_evalution_relation_extraction",
        "task1729_personachat_generate_next",
        "task181_outcome_extraction",
        "task511_reddit_tifu_long_text_summarization",
        "task002_quoref_answer_generation",
        "task1290_xsum_summarization",
        "task875_emotion_classification",
    ),
}

_RULES = TaskRules(
    metric="rouge_l_stemmed",  # also for classification, as in all published numbers
    max_answer_tokens=50,
    truncate_prompt="right",
    shared_limit=False,
)
_DEFAULT = replace(_RULES, epochs=5, separator=" ", cue=f"\n{CUE}")
_SAPT = replace(_RULES, epochs=50, joined=False, num_bos=0, answer_after=CUE)


def _ask(task: str, sample: Sample) -> tuple[str, tuple[str, ...]]:
    sample.expect("instance")
    head = f"Definition: {sample.definition}\n\nNow complete the following example -\n"
    return f"{head}Input: {sample.text}\n{CUE}", sample.answers


def _ask_sapt(task: str, sample: Sample) -> tuple[str, tuple[str, ...]]:
    prompt, answers = _ask(task, sample)
    return f"{prompt} ", answers  # tokenised alone, the answer gets another leading space


PROTOCOLS = {
    "default": Protocol(
        tasks={task: replace(_DEFAULT, labels=labels) for task, labels in LABELS.items()},
        ask=_ask,
        drop_silent=True,
    ),
    "sapt": Protocol(  # learning rate, epochs and batch size of its LLaMA script
        tasks={task: replace(_SAPT, labels=labels) for task, labels in LABELS.items()},
        ask=_ask_sapt,
        first_reference=True,
        learning_rate=5e-5,
        notes=("of several references the first counts; the published code draws one at random",),
    ),
}

RULES.register("superni")(PROTOCOLS)
BENCHMARKS.register("superni")(Published(name="superni", orders=ORDERS, held_out="dev"))
