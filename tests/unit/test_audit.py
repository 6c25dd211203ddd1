"""The audit of a benchmark: every kind of planted fault is found, and a clean one has none."""

from __future__ import annotations

import dataclasses

import pytest

from eval.audit.benchmark import audit_benchmark
from eval.audit.texts import check_texts
from moram_dist.config import ModelConfig
from moram_dist.families.causal import Causal
from moram_dist.families.encoder_decoder import EncoderDecoder
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks import Benchmark, Example, Task
from tests.helpers.tiny_t5 import save_tiny_t5

CAUSAL = Causal()
GOOD_TRAIN = [("Is snow white?", "yes"), ("Is grass red?", "no"), ("Is coal black?", "yes")]
GOOD_TEST = [("Is milk white?", "yes"), ("Is blood blue?", "no")]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig())


def examples(split, pairs):
    return tuple(
        Example(f"{split}-{i}", prompt, (answer,) if isinstance(answer, str) else tuple(answer))
        for i, (prompt, answer) in enumerate(pairs)
    )


def task(train=GOOD_TRAIN, test=GOOD_TEST, labels=("yes", "no"), **rules):
    return Task(
        **{"name": "colours", "metric": "exact_match_normalised", "labels": labels, **rules},
        train=examples("train", train),
        test=examples("test", test),
    )


def seen(findings):
    """Findings in short: severity, where, kind, text, examples."""
    return [(f.severity, f.where, f.kind, f.text, f.examples) for f in findings]


def audited(tokenizer, *tasks, notes=(), family=CAUSAL):
    benchmark = Benchmark(
        name="planted", order="default", protocol="default", tasks=tasks, notes=notes
    )
    return audit_benchmark(benchmark, tokenizer, family, data_dir=None, say=lambda line: None)


def test_a_clean_task_has_no_findings(tokenizer):
    found = audited(tokenizer, task())
    assert found.findings == ()
    assert not found.has_errors
    train, test = found.splits
    assert (train.task, train.split, train.examples) == ("colours", "train", 3)
    assert (test.oracle, test.empty, test.truncated, test.lost_cue) == (100, 0, 0, 0)
    assert (train.oracle, train.empty) == (None, None)


def test_answers_outside_of_the_label_set():
    planted = [*GOOD_TEST, ("Is a ghost white?", "-"), ("Is it?", "Yes"), ("Is it so?", "-")]
    planted += [("And this?", "maybe"), ("And that?", "never")]
    assert seen(check_texts(task(test=planted))) == [
        (
            "error",
            "colours test",
            "outside_labels",
            "answers outside the label set: 5 of 7: '-' (2), 'Yes' (1), 'maybe' (1), 1 more",
            ("test-2", "test-3", "test-4", "test-5", "test-6"),
        )
    ]


def test_answers_that_say_nothing_in_an_open_task():
    planted = [*GOOD_TRAIN, ("Which?", "-"), ("Who?", ("?", "我"))]
    found = [f for f in check_texts(task(train=planted, labels=())) if f.kind == "no_answer"]
    text = "answers without a letter or a digit: 1 of 5: '-' (1)"
    assert seen(found) == [("warning", "colours train", "no_answer", text, ("train-3",))]


def test_repeats():
    planted = [*GOOD_TRAIN, GOOD_TRAIN[1], GOOD_TRAIN[1], ("is grass red?", "no")]
    text = "repeats of an earlier example (prompt and answer): 2 of 6"
    assert seen(check_texts(task(train=planted))) == [
        ("warning", "colours train", "repeated", text, ("train-3", "train-4"))
    ]


@pytest.mark.parametrize(
    ("split", "labels", "severity"),
    [
        ("train", ("yes", "no"), "warning"),
        ("test", ("yes", "no"), "error"),
        ("test", (), "warning"),
    ],
)
def test_contradictions(split, labels, severity):
    pairs = {"train": GOOD_TRAIN, "test": GOOD_TEST}
    planted = [*pairs[split], ("Is tea brown?", "yes"), ("Is tea brown?", "no")]
    n = len(pairs[split])
    assert seen(check_texts(task(**{split: planted}, labels=labels))) == [
        (
            severity,
            f"colours {split}",
            "contradictory",
            "prompts that occur more than once with different answers: 1",
            (f"{split}-{n}", f"{split}-{n + 1}"),
        )
    ]


def test_no_contradiction_where_one_answer_is_accepted_each_time():
    planted = [*GOOD_TRAIN, ("Name a colour.", ("red", "blue")), ("Name a colour.", ("blue",))]
    kinds = [f.kind for f in check_texts(task(train=planted, labels=()))]
    assert kinds == ["several_references"]


def test_several_references():
    planted = [*GOOD_TEST, ("Name a colour.", ("red", "blue", "green")), ("Another?", ("a", "b"))]
    (found,) = check_texts(task(test=planted, labels=()))
    assert (found.severity, found.where, found.examples) == (
        "note",
        "colours test",
        ("test-2", "test-3"),
    )
    assert found.text.startswith("several references, up to 3: 2 of 4;")


def test_leaks():
    planted = [*GOOD_TEST, GOOD_TRAIN[0], ("Is grass red?", "yes")]
    text = "prompts that occur in train too: 2 of 4, 1 with the answer"
    assert seen(check_texts(task(test=planted))) == [
        ("error", "colours test", "leak", text, ("test-2", "test-3"))
    ]


def test_labels_that_training_never_shows():
    text = "labels that no training example has: 'maybe', 'never'"
    assert seen(check_texts(task(labels=("yes", "maybe", "no", "never")))) == [
        ("warning", "colours train", "unseen_label", text, ())
    ]


LONG = "The quick brown fox jumps over the lazy dog again and again and again. Colour:"


KEPT = {"cue": "Colour:", "joined": False, "shared_limit": False}


@pytest.mark.parametrize(
    ("side", "rules", "lost"),
    [("left", {}, 0), ("right", {}, 1), ("right", KEPT, 0), ("right", {**KEPT, "cue": ""}, 1)],
)
def test_truncation(tokenizer, side, rules, lost):
    """A cut head keeps the cue; a cut tail loses it, unless the rules leave it in place."""
    limit = len(tokenizer(LONG, add_special_tokens=False)["input_ids"]) - 1
    fits = LONG.replace("quick brown", "")
    found = audited(
        tokenizer,
        task(
            train=[*GOOD_TRAIN, (fits, "yes")],
            test=[*GOOD_TEST, (LONG, "yes")],
            max_prompt_tokens=limit,
            truncate_prompt=side,
            **rules,
        ),
    )
    train, test = found.splits
    assert (train.truncated, train.lost_cue) == (0, 0)
    assert test.truncated == pytest.approx(100 / 3)
    assert test.lost_cue == pytest.approx(lost * 100 / 3)
    assert test.prompt.longest == limit + 1
    cut = (
        "warning",
        "colours test",
        "truncated",
        f"prompts cut to {limit} tokens: 1 of 3",
        ("test-2",),
    )
    assert (cut in seen(found.findings)) and found.has_errors == bool(lost)
    assert [(f.severity, f.examples) for f in found.findings if f.kind == "lost_cue"] == [
        ("error", ("test-2",))
    ] * lost


def test_a_prompt_that_fills_the_limit_loses_bos_and_is_not_truncated(tokenizer):
    limit = len(tokenizer(LONG, add_special_tokens=False)["input_ids"])
    found = audited(tokenizer, task(test=[*GOOD_TEST, (LONG, "yes")], max_prompt_tokens=limit))
    assert found.findings == ()


def test_answers_that_do_not_fit(tokenizer):
    answer = "red and blue and green and yellow"
    length = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
    rules = {"labels": (), "max_prompt_tokens": 40, "truncate_prompt": "right"}
    planted = {
        "train": [*GOOD_TRAIN, ("All?", answer * 20)],
        "test": [*GOOD_TEST, ("All?", answer)],
    }
    found = audited(tokenizer, task(**planted, **rules, max_answer_tokens=length - 1))
    assert {(f.kind, f.examples) for f in found.findings} == {
        ("no_end", ("train-3",)),
        ("long_answer", ("test-2",)),
        ("leak", ("test-2",)),
    }
    assert found.splits[1].answer.longest == length


def test_gold_and_empty_scores(tokenizer):
    """``-`` is all punctuation, so normalised it equals no answer; ``neutral`` reads as an A."""
    found = audited(
        tokenizer,
        task(test=[*GOOD_TEST, ("Is a ghost white?", "-"), ("Is air?", "-")]),
        task(
            name="stance",
            metric="choice",
            labels=("A", "B"),
            train=[("p", "A"), ("q", "B")],
            test=[("r", "B"), ("s", "neutral")],
        ),
    )
    assert [(s.oracle, s.empty) for s in found.splits if s.split == "test"] == [(100, 50), (50, 0)]
    scores = [f for f in seen(found.findings) if f[2] in ("gold_is_wrong", "empty_scores")]
    assert scores == [
        (
            "error",
            "stance test",
            "gold_is_wrong",
            "gold answers that score under 50 by choice: 1 of 2",
            ("test-1",),
        ),
        (
            "warning",
            "colours test",
            "empty_scores",
            "empty predictions that score above 0 by exact_match_normalised: 2 of 4",
            ("test-2", "test-3"),
        ),
    ]


def test_gold_that_cannot_reach_100(tokenizer):
    """SARI: one of two deleted words is rightly gone, yet the rule grants it for ``b`` alone.

    So the deletion of single words is 1/2, the other eleven parts are 1.
    """
    found = audited(tokenizer, task(labels=(), metric="sari", test=[("a a b", "a"), ("a b", "a")]))
    assert found.splits[1].oracle == pytest.approx((100 * 11.5 / 12 + 100) / 2)
    text = "gold answers that score under 100 by sari: 1 of 2"
    below = ("warning", "colours test", "gold_below_100", text, ("test-0",))
    assert below in seen(found.findings)


def test_notes_of_the_benchmark_are_findings(tokenizer):
    found = audited(tokenizer, task(), notes=("colours: trained on eval.json",))
    assert seen(found.findings) == [
        ("note", "protocol", "note", "colours: trained on eval.json", ())
    ]


def test_an_encoder_decoder_is_audited_by_its_own_rules(tmp_path):
    """Its prompts have no BOS, and its answers always keep their end."""
    folder = save_tiny_t5(tmp_path / "t5")
    tokenizer = load_tokenizer(ModelConfig(model=str(folder)))
    long = task([("Is snow white? " * 4, "yes and " * 8 + "no")], max_answer_tokens=4)
    limit = len(tokenizer(long.train[0].prompt)["input_ids"])  # with EOS
    for room, cut in ((limit, False), (limit - 1, True)):
        one = dataclasses.replace(long, max_prompt_tokens=room)
        found = audited(tokenizer, one, family=EncoderDecoder(0))
        of_train = {f.kind for f in found.findings if f.where == "colours train"}
        assert ("truncated" in of_train) == cut
        assert "no_end" not in of_train
    assert found.splits[0].prompt.longest == limit - 1  # of the text
