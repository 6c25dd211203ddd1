"""Published benchmarks: orders and templates literally, files in each layout, what is left out."""

from __future__ import annotations

import json

import pytest

from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source, long_sequence, standard_cl, superni
from moram_dist.tasks.rules import RULES

ORDERS = {
    ("superni", "1"): "task1572_samsum_summary, task363_sst2_polarity_classification, "
    "task1290_xsum_summarization, task181_outcome_extraction, task002_quoref_answer_generation, "
    "task1510_evalution_relation_extraction, task639_multi_woz_user_utterance_generation, "
    "task1729_personachat_generate_next, task073_commonsenseqa_answer_generation, "
    "task1590_diplomacy_text_generation, task748_glucose_reverse_cause_event_detection, "
    "task511_reddit_tifu_long_text_summarization, task591_sciq_answer_generation, "
    "task1687_sentiment140_classification, task875_emotion_classification",
    ("superni", "2"): "task748_glucose_reverse_cause_event_detection, "
    "task073_commonsenseqa_answer_generation, task1590_diplomacy_text_generation, "
    "task639_multi_woz_user_utterance_generation, task1572_samsum_summary, "
    "task1687_sentiment140_classification, task591_sciq_answer_generation, "
    "task363_sst2_polarity_classification, task1510_evalution_relation_extraction, "
    "task1729_personachat_generate_next, task181_outcome_extraction, "
    "task511_reddit_tifu_long_text_summarization, task002_quoref_answer_generation, "
    "task1290_xsum_summarization, task875_emotion_classification",
    ("long_sequence", "4"): "mnli, cb, wic, copa, qqp, boolq, rte, imdb, yelp, amazon, sst2, "
    "dbpedia, agnews, multirc, yahoo",
    ("long_sequence", "5"): "multirc, boolq, wic, mnli, cb, copa, qqp, rte, imdb, sst2, dbpedia, "
    "agnews, yelp, amazon, yahoo",
    ("long_sequence", "6"): "yelp, amazon, mnli, cb, copa, qqp, rte, imdb, sst2, dbpedia, agnews, "
    "yahoo, multirc, boolq, wic",
    ("standard_cl", "1"): "dbpedia, amazon, yahoo, agnews",
    ("standard_cl", "2"): "dbpedia, amazon, agnews, yahoo",
    ("standard_cl", "3"): "yahoo, amazon, agnews, dbpedia",
}
OPTIONS_NLI = (
    'What is the logical relationship between the "sentence 1" and the "sentence 2"? '
    "Choose one from the option.\nOption: neutral, entailment, contradiction \n"
)
QQP_SAPT = (
    'Whether the "first sentence" and the "second sentence" have the same meaning? '
    "Choose one from the option: yes or no."
)
QQP_O_LORA = (
    'Whether the "first sentence" and the "second sentence" have the same meaning? '
    "Choose one from the option.\nOption: False, True \n"
)


@pytest.mark.parametrize(("benchmark", "order"), ORDERS)
def test_orders(benchmark, order):
    found = {"superni": superni, "long_sequence": long_sequence, "standard_cl": standard_cl}
    assert found[benchmark].ORDERS[order] == tuple(ORDERS[benchmark, order].split(", "))
    assert set(found[benchmark].ORDERS[order]) <= set(RULES[benchmark]["default"].tasks)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def instances(*pairs, definition=()):
    return {
        "Definition": list(definition),
        "Instances": [{"input": text, "output": output} for text, output in pairs],
    }


def sentences(*pairs):
    return [{"sentence": text, "label": label} for text, label in pairs]


def read(benchmark, data_dir, order, **fields):
    return BENCHMARKS[benchmark](Source(data_dir=data_dir, order=order, **fields))


def read_one(tmp_path, benchmark, folder, content, order, **fields):
    """The only task, both of whose splits hold ``content``."""
    for split in ("train", "test"):
        write(tmp_path / folder / f"{split}.json", content)
    (task,) = read(benchmark, tmp_path, order, **fields).tasks
    return task


@pytest.mark.parametrize("protocol", [None, "default", "sapt"])
def test_the_prompt_of_superni(tmp_path, protocol):
    name = "task363_sst2_polarity_classification"
    content = instances((" so so\n", "NEG"), definition=["  Judge {it}.\n"])
    task = read_one(tmp_path, "superni", name, content, name, protocol=protocol)
    expected = (
        "Definition: Judge {it}.\n\nNow complete the following example -\nInput:  so so\n\nOutput:"
    )
    assert task.train[0].prompt == expected + (" " if protocol == "sapt" else "")
    assert task.labels == ("POS", "NEG")
    assert task.train[0].prompt.endswith(task.cue)


TEMPLATES = [
    (
        "default",
        "cb",
        instances(("s1\ns2", "neutral"), definition=["Say.\n"]),
        "Say.\ns1\ns2\nOutput:",
    ),
    (
        "sapt",
        "cb",
        instances(("s1\ns2\n", "neutral"), definition=["Say."]),
        "Say.\ns1\ns2\n\nOutput: ",
    ),
    ("sapt", "copa", instances(("Which?", "A")), "Which?\nOutput: "),
    (
        "sapt",
        "rte",
        sentences(("s1", "entailment")),
        "Does the following sentence 1 contradict or entailment the sentence 2?\ns1\nOutput: ",
    ),
    ("default", "qqp", sentences(("s", "True")), f"{QQP_SAPT}\ns\nOutput:"),
    ("bare", "qqp", instances(("s", "no"), definition=["not used"]), "s\nOutput:"),
    (
        "o_lora",
        "mnli",
        sentences(("s1", "-")),
        f"Task:NLI\nDataset:MNLI\n{OPTIONS_NLI}s1\nAnswer:",
    ),
    ("o_lora", "qqp", sentences(("s", "True")), f"Task:QQP\nDataset:QQP\n{QQP_O_LORA}s\nAnswer:"),
    ("o_lora", "copa", sentences(("Which?", "B")), "Task:COPA\nDataset:COPA\nWhich?\nAnswer:"),
    (
        "o_lora",
        "sst2",
        instances(("Text: good\n", "Good"), definition=["not used"]),
        "Task:SC\nDataset:SST-2\nWhat is the sentiment of the following paragraph? Choose one from "
        "the option.\nOption: Good, Bad \nText: good\n\nAnswer:",
    ),
    (
        "tree_lora",
        "agnews",
        sentences(("Title: x", "World")),
        "What is the topic of the following paragraph? Choose one from the option.\n"
        "Option: World, Sports, Business, Science or Technology \nTitle: x\nAnswer:",
    ),
    (
        "tree_lora",
        "boolq",
        sentences(("question: x", "True")),
        "According to the following passage, is the question true or false? Choose one from the "
        "option.\nOption: True, False \nquestion: x\nAnswer:",
    ),
    (
        "tree_lora",
        "multirc",
        sentences(("paragraph: x", "True")),
        "According to the following passage and question, is the candidate answer true or false? "
        "Choose one from the option.\nOption: False, True \nparagraph: x\nAnswer:",
    ),
    (
        "tree_lora",
        "wic",
        sentences(("word: x", "True")),
        "Given a word and two sentences, whether the word is used with the same sense in both "
        "sentence? Choose one from the option.\nOption: True, False \nword: x\nAnswer:",
    ),
    ("tree_lora", "cb", [{"prompt": "whole\nAnswer:", "answer": "neutral"}], "whole\nAnswer:"),
]


@pytest.mark.parametrize(("protocol", "name", "content", "prompt"), TEMPLATES)
def test_prompts_of_long_sequence(tmp_path, protocol, name, content, prompt):
    fields = {"protocol": protocol}
    if protocol == "default":
        task = read_one(tmp_path, "long_sequence", name, content, name)
        assert task.test[0].prompt.endswith(task.cue)
    task = read_one(tmp_path, "long_sequence", name, content, name, **fields)
    assert task.test[0].prompt == prompt


@pytest.mark.parametrize(
    ("protocol", "said", "expected", "labels"),
    [
        ("default", "True", "yes", ("no", "yes")),
        ("sapt", "no", "no", ("no", "yes")),
        ("o_lora", "no", "False", ("False", "True")),
        ("tree_lora", "True", "True", ("False", "True")),
    ],
)
def test_the_two_wordings_of_qqp(tmp_path, protocol, said, expected, labels):
    content = instances(("x", said))
    task = read_one(tmp_path, "long_sequence", "qqp", content, "qqp", protocol=protocol)
    assert (task.test[0].references, task.labels) == ((expected,), labels)
    content = instances(("x", "True"))
    task = read_one(tmp_path, "long_sequence", "boolq", content, "boolq", protocol=protocol)
    assert (task.test[0].references, task.labels) == (("True",), ("True", "False"))


@pytest.mark.parametrize(
    ("folder", "task"),
    [
        ("boolq", "boolq"),
        ("BoolQA", "boolq"),
        ("BoolQA/BoolQA", "boolq"),
        ("NLI/MNLI", "mnli"),
        ("SC/SST-2", "sst2"),
        ("TC/yahoo", "yahoo"),
        ("MultiRC/MultiRC", "multirc"),
        ("IMDB", "imdb"),
    ],
)
def test_layouts(tmp_path, folder, task):
    found = read_one(tmp_path, "long_sequence", folder, sentences(("text", "label")), task)
    assert found.name == task
    assert found.test[0].id == "test-0"


def test_what_a_protocol_cannot_ask(tmp_path):
    whole = [{"prompt": "p", "answer": "a"}]
    with pytest.raises(InputError, match=r"cb/train.json, record 0: the protocol has no template"):
        read_one(tmp_path, "long_sequence", "cb", whole, "cb")
    with pytest.raises(
        InputError, match=r"FOMC/train.json, record 0: the protocol has no template"
    ):
        read_one(tmp_path, "trace", "FOMC", sentences(("s", "l")), "FOMC")


MIXED = instances(("a", ["", "x"]), ("b", "-"), ("c", ["y", "z"]), ("d", ""), ("e", "w"))
XSUM = "task1290_xsum_summarization"


def test_answers_that_say_nothing_are_left_out_by_default(tmp_path):
    write(tmp_path / XSUM / "train.json", MIXED)
    write(tmp_path / XSUM / "test.json", MIXED)
    found = read("superni", tmp_path, XSUM, limit_train=2)
    assert [(e.id, e.references) for e in found.tasks[0].train] == [
        ("train-0", ("x",)),
        ("train-2", ("y", "z")),
    ]
    assert [e.id for e in found.tasks[0].test] == ["test-0", "test-2", "test-4"]
    rest = "examples, whose answers have neither letter nor digit"
    assert found.notes == (
        f"{XSUM}: left out 1 train {rest}: '-'",
        f"{XSUM}: left out 2 test {rest}: '', '-'",
    )


def test_the_published_protocol_keeps_all_and_scores_the_first(tmp_path):
    task = read_one(tmp_path, "superni", XSUM, MIXED, XSUM, protocol="sapt")
    assert [e.references for e in task.test] == [("",), ("-",), ("y",), ("",), ("w",)]


def test_nothing_but_silence_is_no_task(tmp_path):
    with pytest.raises(InputError, match=r"train\.json: holds no examples"):
        read_one(tmp_path, "superni", XSUM, instances(("a", "-")), XSUM)


def test_splits_can_be_replaced_but_dev_is_never_taken_by_itself(tmp_path):
    for split in ("dev", "test"):
        write(tmp_path / "cb" / f"{split}.json", instances((split, "neutral")))
    with pytest.raises(InputError, match=r"cb/train\.json: no such file"):
        read("long_sequence", tmp_path, "cb")
    other = write(tmp_path / "other.jsonl", '{"sentence": "mine", "label": "neutral"}\n')
    splits = {"cb": {"train": str(other), "test": "dev"}}
    found = read("long_sequence", tmp_path, "cb", splits=splits)
    assert "\nmine\n" in found.tasks[0].train[0].prompt
    assert found.tasks[0].test[0].id == "dev-0"
    assert found.notes == (
        f"cb: trained on {other} instead of train.json",
        "cb: tested on dev.json instead of test.json",
    )


def test_an_alias_is_known_by_the_first_name(tmp_path):
    for name in long_sequence.ORDERS["4"]:
        for split in ("train", "test"):
            write(tmp_path / name / f"{split}.json", instances(("x", "y")))
    for alias, order in {"sapt_3": "4", "sapt_4": "6", None: "4", "5": "5"}.items():
        found = read("long_sequence", tmp_path, alias)
        assert found.order == order
        assert tuple(task.name for task in found.tasks) == long_sequence.ORDERS[order]
    assert read("standard_cl", tmp_path, None).order == "1"


@pytest.mark.parametrize(
    ("benchmark", "fields", "complaint"),
    [
        ("superni", {"order": "3"}, "unknown order '3'; known: 1, 2, task002_quoref"),
        ("long_sequence", {"order": "3"}, "unknown order '3'; known: 4, 5, 6, agnews"),
        ("long_sequence", {"order": "order4"}, "unknown order 'order4'; "),
        ("standard_cl", {"order": "mnli,yelp"}, "unknown task 'mnli'"),
        ("standard_cl", {"protocol": "sapt"}, "unknown protocol of standard_cl 'sapt'; known: "),
        ("superni", {"protocol": "o_lora"}, "unknown protocol of superni 'o_lora'"),
        ("superni", {"splits": {"cb": {"train": "dev"}}}, "unknown task in splits 'cb'"),
        (
            "long_sequence",
            {"order": "cb", "splits": {"cb": {"train": "eval"}}},
            "one of train, dev, test",
        ),
        ("superni", {}, "task1572_samsum_summary/train.json: no such file"),
        ("superni", {"limit_train": 0}, "limit on train examples must be at least 1, got 0"),
    ],
)
def test_bad_sources(tmp_path, benchmark, fields, complaint):
    with pytest.raises(InputError) as caught:
        BENCHMARKS[benchmark](Source(data_dir=tmp_path, **fields))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
