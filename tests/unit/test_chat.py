"""Chats: record forms, and prompts written by templates, against literal strings."""

from __future__ import annotations

import json

import pytest

from moram_dist.config import ModelConfig
from moram_dist.data.chat import has_chats, write_chats
from moram_dist.data.encode import encode_prompt, encode_training
from moram_dist.models.language_model import load_tokenizer
from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.tasks.examples import read_examples
from tests.helpers.chats import CHATML, GEMMA, INST

THINKS = CHATML.replace("{{ m['content'] }}", "<think></think>{{ m['content'] }}")
SPACED = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LATE = "{% for m in messages %}{{ m['content'] }};{% endfor %}{{ messages | length }}"

TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "A cat?"},
    {"role": "assistant", "content": "pet"},
    {"role": "user", "content": "A saw?"},
    {"role": "assistant", "content": "tool "},
]


def tokenizer(template):
    found = load_tokenizer(ModelConfig())
    found.chat_template = template
    return found


def benchmark(folder, records, test=None):
    (folder / "t").mkdir()
    for split, lines in (("train", records), ("test", test or records)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "t" / f"{split}.jsonl").write_text(text)
    return BENCHMARKS["jsonl"](Source(data_dir=folder))


def test_forms_of_records(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [
        {"prompt": "p", "answer": ["a", "b"]},
        {"instruction": "Do.", "input": "x", "output": "y"},
        {"instruction": "Do.", "input": "", "output": "y", "system": ""},
        {"instruction": "Do.", "output": "y"},
        {"messages": TURNS},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ]
    found = []
    for record in records:
        path.write_text(json.dumps(record) + "\n")
        found += read_examples(path, split="train")
    assert [(e.prompt, e.references) for e in found] == [
        ("p", ("a", "b")),
        ("Do.\nx", ("y",)),
        ("Do.", ("y",)),
        ("Do.", ("y",)),
        (
            "system: Be short.\nuser: A cat?\nassistant: pet\nuser: A saw?",
            ("tool ",),
        ),
        ("user: q", ("a",)),
    ]
    assert found[4].turns[-1] == ("user", "A saw?")
    assert found[5].turns == (("user", "q"),)
    assert not any(e.turns for e in found[:4])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "x"}, "expected the fields prompt and answer; or instruction and output"),
        (
            {"prompt": "p", "answer": "a", "messages": TURNS},
            "holds prompt and answer and also messages",
        ),
        ({"messages": TURNS[:1]}, "'messages' must be a list of at least two turns"),
        ({"messages": TURNS[:2]}, "the last of 'messages' must be the assistant's answer"),
        ({"messages": [*TURNS[:2], "x"]}, "messages[2]: expected an object, got a text"),
        ({"messages": [{"role": "usr", "content": "x"}, *TURNS]}, "did you mean 'user'"),
        ({"messages": [{"role": "user", "content": None}, *TURNS]}, "'content' must be a text"),
        ({"conversations": {"from": "human"}}, "must be a list of at least two turns"),
        ({"conversations": [{"value": "x"}] * 2}, "conversations[0]: no field 'from'"),
        ({"instruction": "x", "output": "y", "input": 3}, "'input' must be a text, got a number"),
    ],
)
def test_records_of_no_form(tmp_path, record, said):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError) as error:
        read_examples(path, split="train")
    assert said in str(error.value)
    assert str(error.value).startswith(f"{path}, line 1")


def test_other_files_are_named(tmp_path):
    (tmp_path / "t").mkdir()
    for name in ("train.tsv", "test.tsv", ".hidden"):
        (tmp_path / "t" / name).touch()
    with pytest.raises(InputError, match=r"\.csv\.gz; found: test\.tsv, train\.tsv$"):
        BENCHMARKS["jsonl"](Source(data_dir=tmp_path))


@pytest.mark.parametrize(
    ("template", "turns", "prompt", "gap"),
    [
        (
            CHATML,
            TURNS,
            "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nA cat?<|im_end|>\n"
            "<|im_start|>assistant\npet<|im_end|>\n<|im_start|>user\nA saw?<|im_end|>\n"
            "<|im_start|>assistant\n",
            "",
        ),
        (INST, TURNS[1:], "<s>[INST] A cat? [/INST] pet</s>[INST] A saw? [/INST]", " "),
        (
            GEMMA,
            TURNS[1:],
            "<s><start_of_turn>user\nA cat?<end_of_turn>\n<start_of_turn>model\npet<end_of_turn>\n"
            "<start_of_turn>user\nA saw?<end_of_turn>\n<start_of_turn>model\n",
            "",
        ),
    ],
)
def test_prompts_are_the_template_s(tmp_path, template, turns, prompt, gap):
    read = benchmark(tmp_path, [{"messages": turns}])
    assert has_chats(read)
    by = tokenizer(template)
    (task,) = write_chats(read, by, "last").tasks
    assert task.train[0].prompt == task.test[0].prompt == prompt
    assert task.train[0].references == ("tool",)
    assert (task.separator, task.num_bos) == (gap, 0)
    # Learned of the last turn: the answer with the white space before it, and EOS; BOS at most
    # once.
    encoded = encode_training(by, task.train[0], task)
    learned = encoded.tokens[-encoded.num_answer :]
    assert by.decode(learned[:-1]).strip() == "tool"
    assert learned[-1] == by.eos_token_id
    asked = encode_prompt(by, prompt, task)
    assert list(encoded.tokens[: -encoded.num_answer]) == asked
    assert asked.count(by.bos_token_id) == prompt.count("<s>")


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (None, TURNS, "the tokenizer of --model has no chat template"),
        (THINKS, TURNS, "puts '<think></think>tool<|im_end|>' where the answer should begin"),
        (LATE, TURNS, "does not begin a chat with its answer as it begins"),
        (GEMMA, TURNS, "the tokenizer's chat template fails: System role not supported"),
        (SPACED, TURNS, "ends a prompt with ' ', which the tokenizer joins to the answer"),
        ("{% for %}", TURNS, "the tokenizer's chat template fails"),
        ("{{ messages[9].content + 1 }}", TURNS, "the tokenizer's chat template fails"),
    ],
)
def test_templates_that_do_not_serve(tmp_path, template, turns, said):
    read = benchmark(tmp_path, [{"messages": turns}])
    with pytest.raises(InputError) as error:
        write_chats(read, tokenizer(template))
    assert said in str(error.value)
    assert "task t" in str(error.value)


def test_chats_and_prompts_do_not_mix(tmp_path):
    read = benchmark(tmp_path, [{"messages": TURNS}], test=[{"prompt": "p", "answer": "a"}])
    with pytest.raises(InputError, match="task t: some records are chats and some are not"):
        write_chats(read, tokenizer(CHATML))


def test_a_benchmark_without_chats_is_as_it_was(tmp_path):
    read = benchmark(tmp_path, [{"prompt": "p", "answer": "a"}])
    assert not has_chats(read)
    assert write_chats(read, tokenizer(None)) == read
