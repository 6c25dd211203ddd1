"""Which tokens of a chat are learned, against masks worked by hand: ``[[`` to ``]]``."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moram_dist.data.answers import read_answers
from moram_dist.data.chat import write_chats
from moram_dist.data.encode import encode_prompt, encode_training, plain, texts_of
from moram_dist.data.stream import IGNORED
from moram_dist.data.tokens import InBatches, Tokens, flatten
from moram_dist.families.causal import Causal
from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source, digest
from tests.helpers.chats import (
    CHATML,
    GEMMA,
    INST,
    LLAMA3,
    PHI3,
    QWEN,
    QWEN3,
    letters,
    split,
    with_marks,
)

SYSTEM = {"role": "system", "content": "Be short."}
CHAT = [
    {"role": "user", "content": "A cat?"},
    {"role": "assistant", "content": "pet"},
    {"role": "user", "content": "A saw?"},
    {"role": "assistant", "content": "tool"},
]


def task_of(folder, chat, tokenizer, turns="all", test=None, **options):
    (folder / "t").mkdir(exist_ok=True)
    for name, one in (("train", chat), ("test", test or chat)):
        (folder / "t" / f"{name}.jsonl").write_text(json.dumps({"messages": one}) + "\n")
    read = BENCHMARKS["jsonl"](Source(data_dir=folder))
    (task,) = write_chats(read, tokenizer, turns, **options).tasks
    return task


CHATML_TEXT = (
    "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nA cat?<|im_end|>\n"
    "<|im_start|>assistant\n{first}\n<|im_start|>user\nA saw?<|im_end|>\n"
    "<|im_start|>assistant\n{last}"
)
QWEN_TEXT = CHATML_TEXT.replace("Be short.", "You are Qwen.")
LLAMA3_TEXT = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
    "Be short.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nA cat?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{first}"
    "<|start_header_id|>user<|end_header_id|>\n\nA saw?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{last}"
)
GEMMA_TEXT = (
    "<bos><start_of_turn>user\nA cat?<end_of_turn>\n<start_of_turn>model\n{first}\n"
    "<start_of_turn>user\nA saw?<end_of_turn>\n<start_of_turn>model\n{last}"
)
PHI3_TEXT = (
    "<|user|>\nA cat?<|end|>\n<|assistant|>\n{first}\n"
    "<|user|>\nA saw?<|end|>\n<|assistant|>\n{last}"
)
INST_TEXT = "<s>[INST] A cat? [/INST]{first}[INST] A saw? [/INST]{last}"

MASKS = [  # template, special tokens, chat, text, first answer, last of all turns, last alone
    (
        CHATML,
        {"eos": "</s>"},
        [SYSTEM, *CHAT],
        CHATML_TEXT,
        "pet<|im_end|>",
        "tool<|im_end|></s>",
        "tool</s>",
    ),
    (QWEN, {"eos": "<|im_end|>"}, CHAT, QWEN_TEXT, "pet<|im_end|>", *["tool<|im_end|>"] * 2),
    (
        LLAMA3,
        {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"},
        [SYSTEM, *CHAT],
        LLAMA3_TEXT,
        "pet<|eot_id|>",
        *["tool<|eot_id|>"] * 2,
    ),
    (
        GEMMA,
        {"bos": "<bos>", "eos": "<eos>"},
        CHAT,
        GEMMA_TEXT,
        "pet<end_of_turn>",
        "tool<end_of_turn><eos>",
        "tool<eos>",
    ),
    (PHI3, {}, CHAT, PHI3_TEXT, "pet<|end|>", "tool<|end|></s>", "tool</s>"),
    (INST, {}, CHAT, INST_TEXT, " pet</s>", *[" tool</s>"] * 2),
]


@pytest.mark.parametrize(("template", "special", "chat", "text", "first", "last", "alone"), MASKS)
def test_masks(tmp_path, template, special, chat, text, first, last, alone):
    tokenizer = letters(template, **special)
    of_all = task_of(tmp_path, chat, tokenizer)
    found = encode_training(tokenizer, of_all.train[0], of_all)
    expected = text.format(first=f"[[{first}]]", last=f"[[{last}]]")
    assert with_marks(tokenizer, found.tokens, found.learned) == expected
    assert found.num_answer == len(split(first)) + len(split(last))

    of_last = task_of(tmp_path, chat, tokenizer, "last")
    found = encode_training(tokenizer, of_last.train[0], of_last)
    expected = text.format(first=first, last=f"[[{alone}]]")
    assert with_marks(tokenizer, found.tokens, found.learned) == expected
    assert (of_last.ending, of_last.train[0].learned) == ("", ())

    # What is asked and scored is the last answer, whatever is learned.
    assert of_all.test == of_last.test
    assert of_all.test[0].references == ("tool",)
    asked = with_marks(tokenizer, encode_prompt(tokenizer, of_all.test[0].prompt, of_all), [])
    assert asked == text.format(first=first, last="")


def test_one_answer_is_learned_alike_where_eos_ends_a_turn(tmp_path):
    tokenizer = letters(QWEN, eos="<|im_end|>")
    of_all, of_last = (task_of(tmp_path, CHAT[:2], tokenizer, t) for t in ("all", "last"))
    assert of_all == of_last
    assert digest(of_all.train) == digest(of_last.train)


def test_digests_tell_which_turns_are_learned(tmp_path):
    tokenizer = letters(QWEN, eos="<|im_end|>")
    of_all, of_last = (task_of(tmp_path, CHAT, tokenizer, t) for t in ("all", "last"))
    assert digest(of_all.train) != digest(of_last.train)
    assert digest(of_all.test) == digest(of_last.test)


def test_a_thought_before_the_last_answer(tmp_path):
    tokenizer = letters(QWEN3, eos="<|im_end|>")
    task = task_of(tmp_path, CHAT[:2], tokenizer)
    found = encode_training(tokenizer, task.train[0], task)
    assert with_marks(tokenizer, found.tokens, found.learned) == (
        "<|im_start|>user\nA cat?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        "[[pet<|im_end|>]]"
    )
    with pytest.raises(InputError, match=r"task t, train-0, turn 1: .* take --loss_turns last$"):
        task_of(tmp_path, CHAT, tokenizer)
    task = task_of(tmp_path, CHAT, tokenizer, "last")
    found = encode_training(tokenizer, task.train[0], task)
    assert with_marks(tokenizer, found.tokens, found.learned).endswith(
        "assistant\npet<|im_end|>\n<|im_start|>user\nA saw?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n[[tool<|im_end|>]]"
    )


ENDS_BY_NUMBER = CHATML.replace("<|im_end|>", "({{ messages | length }})").replace("\n", "")
ENDS_BY_PLACE = CHATML.replace("<|im_end|>", "{{ 'A' if loop.index > 2 else 'B' }}")


@pytest.mark.parametrize(
    ("template", "chat", "test", "said"),
    [
        (ENDS_BY_NUMBER, CHAT, None, "does not begin a chat with its answer as it begins"),
        (CHATML.replace("{{ m['content']", "Well: {{ m['content']"), CHAT, None, "should begin;"),
        (ENDS_BY_PLACE, CHAT, CHAT[:2], "does not end all answers alike: 'A' and 'B'; take --loss"),
        (
            GEMMA,
            [SYSTEM, *CHAT],
            None,
            "template fails: System role not supported; write what the system says into the "
            "user's first turn",
        ),
        (None, CHAT, None, "has no chat template"),
    ],
)
def test_templates_that_are_refused(tmp_path, template, chat, test, said):
    with pytest.raises(InputError) as error:
        task_of(tmp_path, chat, letters(template), test=test)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_base_of_one_answer_refuses_several(tmp_path):
    tokenizer = letters(CHATML)
    with pytest.raises(InputError, match=r"task t, train-0: the assistant answers more than once"):
        task_of(tmp_path, CHAT, tokenizer, several=False)
    assert task_of(tmp_path, CHAT, tokenizer, "last", several=False).train
    assert task_of(tmp_path, CHAT[:2], tokenizer, several=False).train  # there is only one


@pytest.mark.parametrize(
    ("room", "expected"),
    [  # the whole chat has 32 tokens with EOS
        (32, "<s>[INST] A cat? [/INST][[ pet</s>]][INST] A saw? [/INST][[ tool</s>]]"),
        (31, "<s>[INST] A cat? [/INST][[ pet</s>]][INST] A saw? [/INST][[ tool]]"),
        (30, "[INST] A cat? [/INST][[ pet</s>]][INST] A saw? [/INST][[ tool]]"),
        (17, "t[[</s>]][INST] A saw? [/INST][[ tool]]"),
        (15, "[INST] A saw? [/INST][[ tool]]"),
        (5, " [[tool]]"),  # nothing predicts a row's first token
    ],
)
def test_a_long_chat_keeps_its_end(tmp_path, room, expected):
    tokenizer = letters(INST)
    task = task_of(tmp_path, CHAT, tokenizer)
    task = replace(task, max_prompt_tokens=room - 1, max_answer_tokens=1)
    found = encode_training(tokenizer, task.train[0], task)
    assert with_marks(tokenizer, found.tokens, found.learned) == expected
    labels = Causal().collate([found], 0).labels[0, 1:]
    assert int((labels != IGNORED).sum()) == found.num_answer


def test_everything_that_is_tokenised_is_tokenised_in_batches(tmp_path):
    tokenizer = letters(CHATML)
    task = task_of(tmp_path, [SYSTEM, *CHAT], tokenizer)

    class Strict(InBatches):
        def __call__(self, text, *, add_special_tokens):
            assert text in self._ids
            return super().__call__(text, add_special_tokens=add_special_tokens)

    batch = Strict(tokenizer, texts_of(task.train[0], task))
    assert encode_training(batch, task.train[0], task) == encode_training(
        tokenizer, task.train[0], task
    )


def test_what_is_learned_is_stored_and_labelled(tmp_path):
    family, tokenizer = Causal(), letters(QWEN, eos="<|im_end|>")
    task = task_of(tmp_path, CHAT, tokenizer)
    chat = encode_training(tokenizer, task.train[0], task)
    pair = encode_training(tokenizer, replace(task.train[0], id="p", learned=()), task)
    stored = Tokens(family, ["train-0", "p"], flatten(family, iter([chat, pair])))
    assert [*stored] == [chat, pair]
    batch = family.collate([chat, pair], 0)
    found = [
        tokenizer.convert_ids_to_tokens([t for t in row if t != IGNORED])
        for row in batch.labels.tolist()
    ]
    assert found == [split("pet<|im_end|>tool<|im_end|>"), split("tool<|im_end|>")]
    first, last = ("".join(tokenizer.convert_ids_to_tokens(p.tolist())) for p in batch.prompts)
    assert first.endswith("A cat?<|im_end|>\n<|im_start|>assistant\n")
    assert last.endswith("A saw?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("template", "eos", "said"),
    [
        (GEMMA, "<eos>", "tool<end_of_turn>\n<start_of_turn>user\nA"),
        (GEMMA, "<eos>", "tool<eos>"),
        (CHATML.replace("<|im_end|>", "(end)"), "</s>", "tool(end)\nA"),
        (CHATML.replace("<|im_end|>", "(end)"), "</s>", "tool</s>"),
    ],
)
def test_an_answer_ends_with_its_turn(tmp_path, template, eos, said):
    tokenizer = letters(template, eos=eos)
    task = task_of(tmp_path, CHAT, tokenizer)
    assert read_answers(tokenizer, [[]], [plain(tokenizer, said)], task) == ["tool"]
