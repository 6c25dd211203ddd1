"""Every form of records in every type of file, with exact tokens; and how each is refused."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from moram_dist import reading
from moram_dist.data.chat import write_chats
from moram_dist.data.encode import encode_training
from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.tasks.examples import read_examples
from moram_dist.tasks.record_files import FILE_TYPES
from tests.helpers.chats import CHATML, letters, with_marks

CHAT = [
    ("user", "A cat?"),
    ("assistant", "pet"),
    ("user", "A saw?"),
    ("assistant", "tool"),
]
CHAT_TEXT = (
    "<|im_start|>user\nA cat?<|im_end|>\n<|im_start|>assistant\n[[pet<|im_end|>]]\n"
    "<|im_start|>user\nA saw?<|im_end|>\n<|im_start|>assistant\n[[tool<|im_end|></s>]]"
)
FORMS = {  # form -> a record, and its training text
    "plain": ({"prompt": "A cat?", "answer": "NA"}, "<s>A cat?[[ NA</s>]]"),
    "alpaca": (
        {"instruction": "Sort, please:", "input": "cat", "output": "pet"},
        "<s>Sort, please:\ncat[[ pet</s>]]",
    ),
    "alpaca without input": (
        {"instruction": "Sort:", "input": "", "output": "pet"},
        "<s>Sort:[[ pet</s>]]",
    ),
    "messages": ({"messages": [{"role": r, "content": t} for r, t in CHAT]}, CHAT_TEXT),
    "sharegpt": (
        {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[r], "value": t} for r, t in CHAT
            ]
        },
        CHAT_TEXT,
    ),
}


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return path
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        if ".csv" in path.suffixes:
            rows = csv.DictWriter(file, [*records[0]])
            rows.writeheader()
            rows.writerows(records)
        elif ".jsonl" in path.suffixes:
            file.writelines(json.dumps(record) + "\n" for record in records)
        else:
            json.dump(records, file)
    return path


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (kind, form)
        for kind in FILE_TYPES
        for form in FORMS
        if not (".csv" in kind and FORMS[form][1] is CHAT_TEXT)  # all its values are texts
    ],
)
def test_tokens(tmp_path, kind, form):
    record, text = FORMS[form]
    for split in ("train", "test"):
        write(tmp_path / "t" / f"{split}{kind}", [record, record])
    tokenizer = letters(CHATML)
    (task,) = write_chats(BENCHMARKS["jsonl"](Source(data_dir=tmp_path)), tokenizer).tasks
    assert [example.id for example in (*task.train, *task.test)] == [
        *("train-0", "train-1"),
        *("test-0", "test-1"),
    ]
    for example in task.train:
        found = encode_training(tokenizer, example, task)
        assert with_marks(tokenizer, found.tokens, found.learned) == text


def test_names_of_columns(tmp_path):
    write(tmp_path / "talks.parquet", [{"talk": FORMS["sharegpt"][0]["conversations"], "n": 1}])
    (tmp_path / "tasks.yaml").write_text(
        "- {name: t, train: talks.parquet, test: talks.parquet, chat_field: talk}\n"
    )
    tokenizer = letters(CHATML)
    (task,) = write_chats(BENCHMARKS["jsonl"](Source(data_dir=tmp_path)), tokenizer).tasks
    found = encode_training(tokenizer, task.train[0], task)
    assert with_marks(tokenizer, found.tokens, found.learned) == CHAT_TEXT


def test_a_csv_holds_no_chat(tmp_path):
    path = write(tmp_path / "a.csv", [{"messages": "[]"}])
    with pytest.raises(InputError, match=r"line 2: 'messages' must be a list .* got a text"):
        read_examples(path, split="train")


def test_turns_are_read_by_their_own_keys(tmp_path):
    record = {"conversations": FORMS["messages"][0]["messages"]}
    (example,) = read_examples(write(tmp_path / "a.jsonl", [record]), split="train")
    assert (example.turns, example.references) == (tuple(CHAT[:-1]), ("tool",))


def test_a_column_of_another_form_may_be_empty(tmp_path):
    """As in a table that once held records of several forms."""
    record = FORMS["messages"][0] | {"prompt": None, "answer": None}
    (example,) = read_examples(write(tmp_path / "a.jsonl", [record]), split="train")
    assert example.turns == tuple(CHAT[:-1])


def test_what_other_programs_read_is_told(tmp_path):
    record = {"instruction": "i", "output": "o", "system": "Be short.", "history": [], "id": 1}
    told = []
    path = write(tmp_path / "a.json", [record, record])
    read_examples(path, split="train", say=told.append)
    assert told == [
        f"{path}: 'system' of its records is not read; write it into the prompt or the chat"
    ]


PLAIN, ALPACA = FORMS["plain"][0], FORMS["alpaca"][0]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([PLAIN, ALPACA], "holds instruction and output, and the records before it prompt and ans"),
        ([PLAIN | ALPACA], "holds prompt and answer and also instruction and output; keep one, or"),
        ([{"text": "x"}], "expected the fields prompt and answer; or instruction and output; or m"),
        ([{"text": "x"}], "found: 'text' (tasks.yaml can name others: prompt_field and answer_f"),
    ],
)
def test_forms_that_are_refused(tmp_path, records, said):
    path = write(tmp_path / "a.json", records)
    with pytest.raises(InputError) as error:
        read_examples(path, split="train")
    assert str(error.value).startswith(f"{path}, record {len(records) - 1}: ")
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": "3"},
        {"from": "observation", "value": "3"},
        {"from": "function_call", "value": "{}"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
    ],
)
def test_tools_are_refused(tmp_path, turn):
    field = "messages" if "role" in turn else "conversations"
    record = {field: [{"role": "user", "content": "x"}, turn]}
    with pytest.raises(InputError, match=rf"{field}\[1\]: calls of tools and their results are"):
        read_examples(write(tmp_path / "a.json", [record]), split="train")


BAD = [
    ("a.csv", b"prompt,answer\nHello, world,pet\n", "line 2: 3 values, but the header has 2"),
    ("a.csv", b"prompt,answer\nHello\n", "line 2: 1 values, but the header has 2"),
    ("a.csv", b"prompt,prompt\na,b\n", "its header names a field twice: prompt, prompt"),
    ("a.csv", b'prompt,answer\n"Hello,pet\n', "line 2: malformed CSV: unexpected end of data"),
    ("a.csv", b"prompt,answer\n,b\n", "line 2: 'prompt' is empty"),
    ("a.csv", b"", "holds no examples"),
    ("a.csv", b"prompt,answer\n", "holds no examples"),
    ("a.csv", b"prompt,answer\n\xff,b\n", "not UTF-8 at byte 14"),
    ("a.jsonl.gz", b"no gzip", "no whole gzip file: Not a gzipped file"),
    ("a.json.gz", gzip.compress(b"[" * 99)[:-9], "no whole gzip file: Compressed file ended"),
    ("a.csv.gz", gzip.compress(b"prompt\na\n"), "line 2: no field 'answer'; found: 'prompt'"),
    ("a.parquet", b"no parquet", "no parquet file that can be read: "),
    ("a.parquet.gz", b"", "expected a name that ends in .json, .jsonl, .csv, .parquet, .json.gz"),
    ("a.txt", b"", "expected a name that ends in .json, .jsonl, .csv, .parquet, .json.gz"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=[bad[2] for bad in BAD])
def test_files_that_are_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_examples(path, split="train")
    assert str(error.value).startswith(str(path))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_value_of_a_table_that_is_no_text(tmp_path):
    path = write(tmp_path / "a.parquet", [{"prompt": "x", "answer": 1}])
    with pytest.raises(InputError, match="record 0: 'answer' must be a text, got a number"):
        read_examples(path, split="train")
    with pytest.raises(InputError, match="no such file"):
        read_examples(tmp_path / "none.parquet", split="train")


def test_an_archive_that_unpacks_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_UNPACKED", 1000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 1001))
    with pytest.raises(InputError, match="more than 1,000 bytes unpacked; split the file"):
        read_examples(path, split="train")


def test_lines_of_a_quoted_value(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfprompt,answer\r\n"a ""b"",\r\nc",NA\r\n\r\nd,None\r\n')
    found = read_examples(path, split="train")
    assert [(e.prompt, e.references) for e in found] == [('a "b",\nc', ("NA",)), ("d", ("None",))]
