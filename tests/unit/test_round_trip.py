"""Answers through tokens and back: what a perfect model cannot say is found."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eval.audit.benchmark import audit_benchmark
from eval.audit.table import markdown
from moram_dist.config import ModelConfig
from moram_dist.data.round_trip import lost_answers, lost_labels, round_trip_notes
from moram_dist.families.causal import Causal
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks import Benchmark, Example, Task


@pytest.fixture(scope="module")
def tokenizer():
    """Of the demo's base, which knows all bytes."""
    return load_tokenizer(ModelConfig())


@pytest.fixture(scope="module")
def words():
    """Of four words: all others are unknown, and white space is lost."""
    vocabulary = {"<unk>": 0, "</s>": 1, "yes": 2, "no": 3, "maybe": 4}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")


def task(*answers, labels=(), metric="exact_match", **rules):
    examples = tuple(Example(f"test-{i}", f"Question {i}?", (a,)) for i, a in enumerate(answers))
    return Task(
        name="odd", metric=metric, labels=labels, train=examples[:1], test=examples, **rules
    )


def lost(tokenizer, one, **limits):
    return {
        e.example.references[0]: e.text for e in lost_answers(tokenizer, one.test, one, **limits)
    }


def test_special_tokens_in_answers_are_lost(tokenizer):
    end = tokenizer.eos_token
    start = tokenizer.bos_token
    odd = task("yes", f"yes{end}", f"{end}yes", f"{start}no", "naïve 好 \t½\n", "two  spaces")
    assert lost(tokenizer, odd) == {f"yes{end}": "yes", f"{end}yes": "", f"{start}no": "no"}


def test_a_loss_that_the_metric_does_not_see_is_none(tokenizer):
    odd = task(f"B{tokenizer.eos_token}", "B and why", metric="first_character")
    assert lost(tokenizer, odd) == {}


def test_unknown_words_and_white_space(words):
    assert lost(words, task("yes", "perhaps", "yes  no", "no maybe")) == {
        "perhaps": "",
        "yes  no": "yes no",
    }
    loose = task("yes", "perhaps", "yes  no", metric="exact_match_normalised")
    assert lost(words, loose) == {"perhaps": ""}
    assert lost_labels(words, task("yes", labels=("yes", "no", "perhaps", "never"))) == [
        "perhaps",
        "never",
    ]


def test_what_is_read_of_an_answer_with_a_mark(tokenizer):
    marked = task("yes", "yes Output: no", answer_after="Output:")
    assert lost(tokenizer, marked) == {"yes Output: no": "no"}


def test_the_limit_of_generation(tokenizer):
    long = task("a long answer " * 40, max_answer_tokens=8)
    assert lost(tokenizer, long) == {}
    assert len(lost(tokenizer, long, limited=True)) == 1


def test_notes_say_how_many_and_show_one(tokenizer):
    end = tokenizer.eos_token
    odd = task(f"yes{end}", "no", f"no{end}", labels=(f"yes{end}", "no"))
    benchmark = Benchmark(name="b", order="1", protocol="p", tasks=(odd, task("yes")))
    assert round_trip_notes(tokenizer, benchmark) == [
        "odd: 3 of 4 answers do not survive the tokenizer, so no model can give them: "
        f"'yes{end}' comes back as 'yes' (test-0)",
        f"odd: labels that do not survive the tokenizer: 'yes{end}'",
    ]


def test_the_audit_finds_them(tokenizer):
    end = tokenizer.eos_token
    odd = task(f"yes{end}", "no", labels=(f"yes{end}", "no"))
    benchmark = Benchmark(name="b", order="1", protocol="p", tasks=(odd,))
    found = audit_benchmark(benchmark, tokenizer, Causal(), data_dir=None, say=lambda line: None)
    kinds = {(f.severity, f.where, f.kind) for f in found.findings}
    assert ("error", "odd test", "lost_answer") in kinds
    assert ("warning", "odd train", "lost_answer") in kinds
    assert ("error", "odd", "lost_label") in kinds
    test = found.splits[1]
    assert (test.oracle, test.through_tokens) == (100, 50)
    text = markdown(found)
    assert "by tokens" in text and f"1 of 2: 'yes{end}' comes back as 'yes' (test-0)" in text
