"""The published TRACE and MoRAM rules for truncation, BOS, EOS and the answer's mask."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from moram_dist.config import ModelConfig
from moram_dist.data.encode import cut, encode_prompt, encode_training, plain
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks.rules import RULES
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


def task(max_prompt=6, max_answer=4, side="left", separator="", **rules):
    return Task(
        name="t",
        metric="choice",
        train=(),
        test=(),
        max_prompt_tokens=max_prompt,
        max_answer_tokens=max_answer,
        truncate_prompt=side,
        separator=separator,
        **{"joined": side == "left"} | rules,
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


OWN = {"shared_limit": False, "side": "right"}  # each part has its own length


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(
    ("prompt", "num_bos", "cue", "expected"),
    [
        ("abcd", 0, "", ids("abcd")),
        ("abcdefgh", 0, "", ids("abcdef")),  # SAPT: no BOS, first tokens, the cue may go
        ("abcdefgh", 2, "", ids(BOS, BOS, "abcd")),  # O-LoRA: BOS twice, and always there
        ("abcdefgh", 1, "", ids(BOS, "abcde")),
        ("abcdefgh", 1, "gh", ids(BOS, "abcgh")),
        ("abc:", 1, ":", ids(BOS, "abc:")),
        ("abcdefgh", 1, "cdefgh", ids(BOS, "defgh")),  # a cue longer than the room: its end
    ],
)
def test_prompts_with_a_length_of_their_own(prompt, num_bos, cue, expected, joined):
    rules = task(num_bos=num_bos, cue=cue, joined=joined, **OWN)
    assert tuple(encode_prompt(Letters(), prompt, rules)) == expected
    found = encode_training(Letters(), Example("e", prompt, ("xy",)), rules)
    assert found.tokens == (*expected, *ids("xy", EOS))  # training sees evaluation's prompt
    assert found.num_answer == 3


def test_a_kept_cue_is_the_tokens_at_the_end_of_the_whole_prompt():
    rules = task(max_prompt=3, num_bos=0, cue=":", **OWN)
    assert encode_prompt(Pairs(), "abcdefgh:", rules) == ["ab", "cd", ":"]
    assert encode_prompt(Pairs(), "abcdefghi:", rules) == ["ab", "cd", "i:"]  # the cue merges


def test_without_a_tokenizer_s_bos_the_prompt_has_all_the_room():
    rules = task(num_bos=2, cue="h", **OWN)
    assert tuple(encode_prompt(NoBos(), "abcdefgh", rules)) == ids("abcdeh")


def test_an_answer_with_a_length_of_its_own():
    assert encoded("ab", "vwxyz", num_bos=0, **OWN) == (ids("abvwxy"), 4)  # EOS is lost
    assert encoded("ab", "vwx", num_bos=0, **OWN) == (ids("abvwx", EOS), 4)
    assert encoded("ab", "", num_bos=0, **OWN) == (ids("ab", EOS), 1)


def test_joined_and_apart():
    rules = {"num_bos": 0, "max_prompt": 9, **OWN}
    assert encoded("abc", "xy", Pairs(), joined=False, **rules) == (("ab", "c", "xy", EOS), 2)
    assert encoded("abc", "xy", Pairs(), joined=True, **rules) == (("ab", "cx", "y", EOS), 3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_shared_lengths_count_every_bos(side):
    assert tuple(encode_prompt(Letters(), "abcd", task(side=side, num_bos=2))) == ids(
        BOS, BOS, "abcd"
    )
    assert tuple(encode_prompt(Letters(), "abcde", task(side=side, num_bos=2))) == ids("abcde")
    assert encoded("ab", "x", num_bos=0, side=side) == (ids("abx", EOS), 2)


def test_published_prompts_on_the_embedded_tokenizer():
    tokenizer = load_tokenizer(ModelConfig())
    bos = tokenizer.bos_token_id
    prompt = "Classify.\n" + "many words and more " * 500 + "\nOutput:"
    whole = plain(tokenizer, prompt)

    def found(benchmark, protocol, name, text):
        rules = RULES[benchmark][protocol].tasks[name]
        return encode_prompt(tokenizer, text, Task(name=name, train=(), test=(), **asdict(rules)))

    default = found("long_sequence", "default", "agnews", prompt)
    assert (len(default), default[0]) == (1024, bos)
    assert default[1:1000] == whole[:999]
    assert tokenizer.decode(default).endswith("\nOutput:")
    assert found("long_sequence", "sapt", "agnews", prompt + " ") == whole[:1024]
    assert found("standard_cl", "o_lora", "agnews", prompt) == [bos, bos, *whole[:510]]
    assert found("standard_cl", "tree_lora", "agnews", prompt) == whole[-1024:]
    assert found("trace", "moram", "MeetingBank", prompt * 9) == plain(tokenizer, prompt * 9)[:4096]


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


def test_an_answer_that_fills_the_shared_limit_leaves_no_prompt():
    """An answer may keep 32 tokens whatever the limit is; nothing of a long prompt comes before."""
    example = Example(id="0", prompt="p" * 100, references=("a" * 40,))
    found = encode_training(Letters(), example, task(max_prompt=6, max_answer=4, side="right"))
    assert found.tokens == ids("a" * 32) and found.num_answer == 32
