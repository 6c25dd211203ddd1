"""The published TRACE and MoRAM rules for truncation, BOS, EOS and the answer's mask."""

from __future__ import annotations

import pytest

from moram_dist.config import ModelConfig
from moram_dist.data.encode import cut, encode_prompt, encode_training, plain
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks.task import Example, Task

BOS, EOS = 1, 2


class Letters:
    """A tokenizer of one token a character, as plain as can be."""

    bos_token_id: int | None = BOS
    eos_token_id = EOS

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


class NoBos(Letters):
    bos_token_id = None


class Pairs(Letters):
    """Two characters a token, so that the last of a prompt may merge with the answer's first."""

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": [text[k : k + 2] for k in range(0, len(text), 2)]}


def task(max_prompt=6, max_answer=4, side="left", separator=""):
    return Task(
        name="t",
        metric="choice",
        train=(),
        test=(),
        max_prompt_tokens=max_prompt,
        max_answer_tokens=max_answer,
        truncate_prompt=side,
        joined=side == "left",
        separator=separator,
    )


def ids(*parts):
    """Letters and special ids: ids(BOS, "ab")."""
    return tuple(
        token
        for part in parts
        for token in ([ord(letter) for letter in part] if isinstance(part, str) else [part])
    )


def encoded(prompt, answer, tokenizer=None, **lengths):
    found = encode_training(
        tokenizer or Letters(), Example("e", prompt, (answer,)), task(**lengths)
    )
    return found.tokens, found.num_answer


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("", (BOS,)), ("abcde", ids(BOS, "abcde")), ("abcdef", ids("abcdef"))],
)
def test_a_prompt_has_bos_where_there_is_room(prompt, expected, side):
    assert tuple(encode_prompt(Letters(), prompt, task(side=side))) == expected


def test_a_long_prompt_loses_the_side_that_the_task_says():
    assert tuple(encode_prompt(Letters(), "abcdefgh", task())) == ids("cdefgh")
    assert tuple(encode_prompt(Letters(), "abcdefgh", task(side="right"))) == ids("abcdef")
    assert tuple(encode_prompt(NoBos(), "abc", task())) == ids("abc")


@pytest.mark.parametrize(
    ("prompt", "answer", "expected", "learned"),
    [
        ("abcd", "xy", ids(BOS, "abcdxy", EOS), 3),  # room for all
        ("abcdef", "xy", ids(BOS, "abcdefxy", EOS), 3),  # 8 + EOS + BOS = 10, just so
        ("abcdef", "xyz", ids("abcdefxyz", EOS), 4),  # EOS takes the last place, so no BOS
        ("abcdef", "wxyz", ids("abcdefwxyz"), 4),  # full: neither
        ("abcdefgh", "wxyz", ids("cdefghwxyz"), 4),  # the head is lost
        ("ab", "", ids(BOS, "ab", EOS), 1),
    ],
)
def test_training_on_left_truncation(prompt, answer, expected, learned):
    """At most 6 + 4 tokens; EOS only where they are fewer, then BOS only where still fewer."""
    assert encoded(prompt, answer) == (expected, learned)


def test_an_answer_longer_than_everything_keeps_one_token_to_predict_from():
    assert encoded("ab", "abcdefghijklm") == (ids("defghijklm"), 9)


@pytest.mark.parametrize(
    ("prompt", "answer", "expected", "learned"),
    [
        ("abcd", "xy", ids(BOS, "abcd", "xy", EOS), 3),
        ("p" * 50, "xy", ids(BOS, "p" * 36, "xy", EOS), 3),  # 40 in all: the prompt's tail is lost
        ("p" * 50, "x" * 40, ids(BOS, "p" * 7, "x" * 32), 32),  # an answer keeps at least 32
    ],
)
def test_training_on_right_truncation(prompt, answer, expected, learned):
    assert encoded(prompt, answer, max_prompt=36, max_answer=4, side="right") == (expected, learned)


def test_right_truncation_of_the_answer_at_its_length_plus_two():
    tokens, learned = encoded("pp", "x" * 60, max_prompt=60, max_answer=40, side="right")
    assert (tokens, learned) == (ids(BOS, "pp", "x" * 42), 42)


@pytest.mark.parametrize(
    ("prompt", "answer", "expected", "learned"),
    [
        ("abcd", "xy", (BOS, "ab", "cd", "xy", EOS), 2),
        ("abc", "xy", (BOS, "ab", "cx", "y", EOS), 3),  # alone, the answer would be one token
    ],
)
def test_the_answer_is_counted_in_context(prompt, answer, expected, learned):
    assert encoded(prompt, answer, Pairs()) == (expected, learned)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("prompt", "expected", "learned"),
    [
        ("ab:", ids(BOS, "ab: x", EOS), 3),
        ("ab: ", ids(BOS, "ab: x", EOS), 2),
        ("ab:\n", ids(BOS, "ab:\nx", EOS), 2),
    ],
)
def test_a_separator_joins_unless_the_prompt_ends_in_space(prompt, expected, learned, side):
    assert encoded(prompt, "x", side=side, separator=" ") == (expected, learned)


def test_without_bos():
    assert encoded("ab", "x", NoBos()) == (ids("abx", EOS), 2)


def test_cut():
    assert cut([1, 2, 3], 5, "left") == cut([1, 2, 3], 3, "right") == [1, 2, 3]
    assert (cut([1, 2, 3], 2, "left"), cut([1, 2, 3], 2, "right")) == ([2, 3], [1, 2])
    assert cut([1, 2, 3], 0, "left") == cut([1, 2, 3], 0, "right") == []


def test_the_embedded_tokenizer():
    tokenizer = load_tokenizer(ModelConfig())
    prompt, answer = "Which colour has the sky?\nAnswer:", " blue"
    text = plain(tokenizer, prompt + answer)
    assert tokenizer.bos_token_id not in text and tokenizer.eos_token_id not in text

    learned = len(plain(tokenizer, answer)) + 1
    found = encode_training(tokenizer, Example("e", prompt, (answer,)), task(100, 20))
    assert found.tokens == (tokenizer.bos_token_id, *text, tokenizer.eos_token_id)
    assert found.num_answer == learned
    assert tokenizer.decode(found.tokens[-learned:-1]).strip() == answer.strip()

    limit = len(text) - 2
    found = encode_training(tokenizer, Example("e", prompt, (answer,)), task(limit - 3, 3))
    assert found.tokens == tuple(text[-limit:])
    assert found.num_answer == learned - 1

    assert encode_prompt(tokenizer, prompt, task(100))[0] == tokenizer.bos_token_id
    assert encode_prompt(tokenizer, prompt, task(3)) == plain(tokenizer, prompt)[-3:]
