"""Numbers and metrics of the published protocols."""

from __future__ import annotations

import pytest

from moram_dist.tasks import Decoding
from moram_dist.tasks.rules import RULES
from tests.unit.test_published import XSUM

RULES_OF = {  # prompt and answer tokens, epochs, learning rate, batch size, BOS, answer after
    ("superni", "default", XSUM): (1024, 50, 5, 5e-4, 32, 1, ""),
    ("superni", "sapt", XSUM): (1024, 50, 50, 5e-5, 32, 0, "Output:"),
    ("long_sequence", "default", "agnews"): (1024, 50, 1, 5e-4, 32, 1, ""),
    ("standard_cl", "bare", "agnews"): (1024, 50, 1, 5e-4, 32, 1, ""),
    ("long_sequence", "sapt", "agnews"): (1024, 50, 20, 5e-5, 32, 0, "Output:"),
    ("long_sequence", "sapt", "cb"): (1024, 50, 100 / 8, 5e-5, 32, 0, "Output:"),
    ("long_sequence", "o_lora", "mnli"): (512, 50, 1, 1e-4, 64, 2, "Answer:"),
    ("standard_cl", "o_lora", "yahoo"): (512, 50, 1, 1e-4, 64, 2, "Answer:"),
    ("standard_cl", "tree_lora", "yahoo"): (1024, 512, 1, 1e-4, 8, 1, ""),
    ("trace", "moram", "FOMC"): (1024, 512, 1, 5e-4, 32, 1, ""),
    ("trace", "original", "MeetingBank"): (1024, 512, 7, 1e-4, 32, 1, ""),
}


@pytest.mark.parametrize(("benchmark", "protocol", "task"), RULES_OF)
def test_settings(benchmark, protocol, task):
    found = RULES[benchmark][protocol]
    rules = found.tasks[task]
    assert (
        rules.max_prompt_tokens,
        rules.max_answer_tokens,
        rules.epochs,
        found.learning_rate,
        found.batch_size,
        rules.num_bos,
        rules.answer_after,
    ) == RULES_OF[benchmark, protocol, task]
    if protocol != "moram":
        assert found.decoding == Decoding()


def test_sapt_counts_steps_for_some_tasks():
    tasks = RULES["long_sequence"]["sapt"].tasks
    steps = {
        name: round(rules.epochs * -(-size // 32))
        for name, (rules, size) in {
            "cb": (tasks["cb"], 250),
            "copa": (tasks["copa"], 400),
            "boolq": (tasks["boolq"], 2000),
            "imdb": (tasks["imdb"], 2000),
            "dbpedia": (tasks["dbpedia"], 14000),
            "multirc": (tasks["multirc"], 2000),
        }.items()
    }
    assert steps == {
        "cb": 100,
        "copa": 200,
        "boolq": 500,
        "imdb": 250,
        "dbpedia": 200,
        "multirc": 500,
    }
    assert {rules.epochs for name, rules in tasks.items() if name not in steps} == {20}


def test_metrics_by_protocol():
    def metrics(benchmark, protocol):
        return {rules.metric for rules in RULES[benchmark][protocol].tasks.values()}

    assert metrics("superni", "default") == metrics("superni", "sapt") == {"rouge_l_stemmed"}
    for protocol in ("default", "sapt", "o_lora"):
        assert metrics("long_sequence", protocol) == {"exact_match_normalised"}
    assert metrics("standard_cl", "tree_lora") == {"accuracy_prefix"}
    original = RULES["trace"]["original"].tasks
    assert {name: (rules.metric, rules.epochs) for name, rules in original.items()} == {
        "C-STANCE": ("exact_match", 5),
        "FOMC": ("exact_match", 3),
        "MeetingBank": ("rouge_l_set_swapped", 7),
        "Py150": ("edit_similarity", 5),
        "ScienceQA": ("first_character", 3),
        "NumGLUE-cm": ("exact_match", 5),
        "NumGLUE-ds": ("exact_match", 5),
        "20Minuten": ("sari", 7),
    }
