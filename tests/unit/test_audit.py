"""The audit of a benchmark: every kind of planted fault is found, and a clean one has none."""

from __future__ import annotations

import json

import pytest

from eval.audit import audit_benchmark
from eval.audit_checks import check_texts
from eval.audit_files import check_files
from eval.run import main
from moram_dist.config import ModelConfig
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks import Benchmark, Example, Task

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


def audited(tokenizer, *tasks, notes=()):
    benchmark = Benchmark(
        name="planted", order="default", protocol="default", tasks=tasks, notes=notes
    )
    return audit_benchmark(benchmark, tokenizer, data_dir=None, say=lambda line: None)


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
            "answers outside of its label set: 5 of 7: '-' (2), 'Yes' (1), 'maybe' (1), 1 more",
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
    text = "repeats of an earlier example, prompt and answer: 2 of 6"
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
            "prompts that stand more than once with different answers: 1",
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
    text = "prompts that stand in train too: 2 of 4, 1 with the answer"
    assert seen(check_texts(task(test=planted))) == [
        ("error", "colours test", "leak", text, ("test-2", "test-3"))
    ]


def test_labels_that_training_never_shows():
    text = "labels that no example has: 'maybe', 'never'"
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


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def instances(pairs, **header):
    return {"Definition": [], "Instances": [{"input": p, "output": a} for p, a in pairs], **header}


def test_files(tmp_path):
    mnli, other = tmp_path / "mnli", tmp_path / "group" / "MNLI"
    write(mnli / "train.json", instances([("a", "yes"), ("b", "no")], _provenance="elsewhere"))
    write(mnli / "test.json", instances([("c", "-"), ("d", "yes")]))
    write(tmp_path / "cb" / "test.json", instances([("f", "no")], _provenance="a", Source="b"))
    write(tmp_path / "cb" / "train.json", instances([("g", "no")], _provenance="a"))
    write(mnli / "dev.json", instances([("c", "-"), ("e", "yes")]))
    write(mnli / "labels.json", ["yes", "no", "True"])
    write(other / "train.json", [{"id": 0, "prompt": "a", "answer": "x"}])
    write(other / "test.json", [{"id": 0, "prompt": "b", "answer": "y"}])
    write(other / "eval.json", [{"id": 7, "prompt": "a", "answer": "x"}])
    (other / "broken.json").write_text("{")
    write(tmp_path / "not_asked_for" / "test.json", [{"prompt": "a", "answer": "x"}] * 2)
    write(tmp_path / "not_asked_for" / "dev.json", [{"prompt": "a", "answer": "x"}])
    found = seen(check_files(tmp_path, ["mnli", "cb"]))
    broken = found.pop(0)
    assert broken[:3] == ("warning", "MNLI files", "unreadable")
    assert "broken.json, line 1" in broken[3]
    assert found == [
        (
            "warning",
            "MNLI files",
            "spare_split",
            "1 of the 1 records of eval.json stand in train.json",
            (),
        ),
        (
            "warning",
            "mnli files",
            "spare_split",
            "1 of the 2 records of dev.json stand in test.json",
            (),
        ),
        ("warning", "mnli files", "label_list", "labels.json lacks the answers '-' (1)", ()),
        (
            "warning",
            "mnli files",
            "label_list",
            "labels.json has labels that are no answer: 'True'",
            (),
        ),
        (
            "note",
            "files",
            "odd_key",
            "2 of 5 files lack the key '_provenance': mnli/dev.json, mnli/test.json",
            (),
        ),
        ("note", "files", "odd_key", "1 of 5 files have the key 'Source': cb/test.json", ()),
    ]
    assert check_files(None, ["mnli"]) == []


@pytest.mark.parametrize(
    ("content", "kind", "text"),
    [
        ("{", "unreadable", "malformed JSON"),
        ('{"a": 1}', "label_list", "is no list, but an object"),
    ],
)
def test_a_label_list_that_is_none(tmp_path, content, kind, text):
    write(tmp_path / "cb" / "test.json", instances([("a", "yes")]))
    (tmp_path / "cb" / "labels.json").write_text(content)
    (found,) = check_files(tmp_path, ["cb"])
    assert (found.severity, found.where, found.kind) == ("warning", "cb files", kind)
    assert text in found.text


@pytest.fixture
def planted(tmp_path):
    """A jsonl benchmark of a clean task and one with a leak, a repeat and a label that is none."""
    lines = {
        "clean/train": GOOD_TRAIN,
        "clean/test": GOOD_TEST,
        "planted/train": [*GOOD_TRAIN, GOOD_TRAIN[0]],
        "planted/test": [*GOOD_TEST, GOOD_TRAIN[2], ("Is a ghost white?", "-")],
    }
    for name, pairs in lines.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        records = (json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in pairs)
        path.write_text("".join(records))
    tasks = [
        {"name": name, "train": f"{name}/train.jsonl", "test": f"{name}/test.jsonl"}
        for name in ("clean", "planted")
    ]
    (tmp_path / "tasks.yaml").write_text(
        json.dumps([{**entry, "labels": ["yes", "no"]} for entry in tasks])
    )
    return ["audit", "--benchmark", "jsonl", "--data_dir", str(tmp_path)]


LINES = [
    "- error: planted test: answers outside of its label set: 1 of 4: '-' (1) (test-3)",
    "- error: planted test: prompts that stand in train too: 1 of 4, 1 with the answer (test-2)",
    "- warning: planted train: repeats of an earlier example, prompt and answer: 1 of 4 (train-3)",
    "- warning: planted test: empty predictions that score above 0 by exact_match_normalised: "
    "1 of 4 (test-3)",
]


def test_the_command(planted, tmp_path, capsys):
    out = tmp_path / "audit.md"
    assert main([*planted, "--out", str(out)]) == 0
    printed, progress = capsys.readouterr()
    assert out.read_text() == printed
    assert [line for line in printed.splitlines() if line.startswith("- ")] == LINES
    assert "## Findings: 2 errors, 2 warnings, 0 notes" in printed
    assert progress.splitlines() == ["1/2 clean: findings: 0", "2/2 planted: findings: 4"]
    rows = [[c.strip() for c in x.split("|")[1:-1]] for x in printed.splitlines() if x[:1] == "|"]
    assert rows[0][:3] == ["task", "split", "examples"]
    assert [row[:3] for row in rows[2:]] == [
        ["clean", "train", "3"],
        ["clean", "test", "2"],
        ["planted", "train", "4"],
        ["planted", "test", "4"],
    ]
    assert [row[-2:] for row in rows[2:]] == [
        ["", ""],
        ["100.00", "0.00"],
        ["", ""],
        ["100.00", "25.00"],
    ]


def test_the_command_for_scripts(planted, tmp_path, capsys):
    out = tmp_path / "audit.json"
    assert main([*planted, "--out", str(out), "--strict"]) == 1
    found = json.loads(out.read_text())
    assert found["findings"][0]["examples"] == ["test-3"]
    assert [split["examples"] for split in found["splits"]] == [3, 2, 4, 4]
    assert main([*planted, "--order", "clean", "--strict"]) == 0  # nothing wrong with this one
    assert "0 errors, 0 warnings, 0 notes" in capsys.readouterr().out


def test_the_demo_is_clean(capsys):
    assert main(["audit", "--benchmark", "demo", "--strict"]) == 0
    assert "0 errors, 0 warnings, 0 notes" in capsys.readouterr().out


def test_published_data(shared, tmp_path):
    """What is wrong with it, seen in the files themselves; docs/data_audit.md has all of it."""
    out = tmp_path / "audit.json"
    data = str(shared / "data" / "long_sequence")
    command = ["audit", "--benchmark", "long_sequence", "--data_dir", data, "--out", str(out)]
    assert main([*command, "--protocol", "sapt", "--order", "mnli,qqp", "--strict"]) == 1
    found = json.loads(out.read_text())["findings"]
    assert [(f["severity"], f["where"], f["text"]) for f in found if f["kind"] != "truncated"] == [
        ("error", "mnli test", "answers outside of its label set: 38 of 2000: '-' (38)"),
        (
            "warning",
            "mnli test",
            "empty predictions that score above 0 by exact_match_normalised: 38 of 2000",
        ),
        ("warning", "mnli files", "200 of the 200 records of dev.json stand in test.json"),
        ("warning", "mnli files", "labels.json lacks the answers '-' (38)"),
        ("warning", "qqp files", "200 of the 200 records of dev.json stand in test.json"),
        ("warning", "qqp files", "labels.json lacks the answers 'no' (2493), 'yes' (1507)"),
        ("warning", "qqp files", "labels.json has labels that are no answer: 'False', 'True'"),
    ]
    data = str(shared / "data" / "trace")
    command = ["audit", "--benchmark", "trace", "--data_dir", data, "--out", str(out)]
    assert main([*command, "--order", "FOMC,NumGLUE-cm"]) == 0
    found = {f["kind"]: f for f in json.loads(out.read_text())["findings"]}
    assert (found["leak"]["where"], found["leak"]["examples"]) == ("FOMC test", ["test-51"])
    assert found["repeated"]["text"].endswith("244 of 500")
    assert found["spare_split"]["text"] == "16 of the 100 records of eval.json stand in test.json"
