"""A prompt and every label behind it are tokenised as training would."""

from __future__ import annotations

import dataclasses

import pytest

from moram_dist.config import ModelConfig
from moram_dist.data.candidates import encode_candidates
from moram_dist.data.encode import encode_prompt, encode_training, plain
from moram_dist.models.language_model import load_tokenizer
from moram_dist.registry import InputError
from moram_dist.tasks.task import Example
from tests.helpers.closed_choice import EXAMPLES, LABELS, task


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)
def test_candidates_are_what_training_sees(tokenizer, example):
    found = encode_candidates(tokenizer, example, task())
    for label, tail in zip(LABELS, found.tails, strict=True):
        learned = encode_training(tokenizer, Example("e", example.prompt, (label,)), task())
        assert (*found.prefix, *tail) == learned.tokens
        assert len(tail) >= learned.num_answer
    prompt = encode_prompt(tokenizer, example.prompt, task())
    assert [*found.prefix] == prompt[: len(found.prefix)]
    merges = example.prompt.endswith(" ")
    assert (len(prompt) - len(found.prefix) == 1) == merges


OWN_LENGTHS = {"shared_limit": False, "max_prompt_tokens": 12}


OTHER_RULES = [
    {"joined": False},
    {"joined": False, "num_bos": 0},
    OWN_LENGTHS,
    {**OWN_LENGTHS, "truncate_prompt": "right"},
    {**OWN_LENGTHS, "truncate_prompt": "right", "joined": False, "num_bos": 2},
    {**OWN_LENGTHS, "truncate_prompt": "right", "cue": "\nOutput: "},
]


@pytest.mark.parametrize(
    ("example", "rules"),
    [
        pytest.param(example, rules, id=f"{example.id} {rules}")
        for rules in OTHER_RULES
        for example in EXAMPLES
        if example.prompt.endswith(rules.get("cue", ""))  # a cue is how every prompt ends
    ],
)
def test_candidates_by_other_rules_are_what_training_sees(tokenizer, example, rules):
    found = encode_candidates(tokenizer, example, task(**rules))
    exact = 0
    for label, tail in zip(LABELS, found.tails, strict=True):
        learned = encode_training(tokenizer, Example("e", example.prompt, (label,)), task(**rules))
        assert tail[-1] == tokenizer.eos_token_id
        if learned.num_answer == len(tail):  # it is among those that begin first
            assert (*found.prefix, *tail) == learned.tokens
            exact += 1
        num = learned.num_answer
        assert learned.tokens[-num:] == tail[-num:]
    assert exact >= 4


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_prompt_is_cut_as_for_generation_and_labels_stay_whole(tokenizer, side):
    rules = task(max_prompt_tokens=12, max_answer_tokens=1, truncate_prompt=side)
    for example in EXAMPLES:
        found = encode_candidates(tokenizer, example, rules)
        whole = encode_candidates(
            tokenizer, example, dataclasses.replace(rules, max_prompt_tokens=999)
        )
        assert found.tails == whole.tails
        assert all(tail[-1] == tokenizer.eos_token_id for tail in found.tails)
        prompt = encode_prompt(tokenizer, example.prompt, rules)
        if len(whole.prefix) <= 12 or side == "right":
            assert [*found.prefix] == prompt[: len(found.prefix)]
        else:
            assert found.prefix == whole.prefix[-12:]


class Pairs:
    """Two characters a token and no BOS, so that a prompt's last token may merge."""

    bos_token_id, eos_token_id, pad_token_id = None, 2, 0

    def __call__(self, text, *, add_special_tokens):
        if isinstance(text, list):
            each = [self(one, add_special_tokens=add_special_tokens) for one in text]
            return {"input_ids": [one["input_ids"] for one in each]}
        return {"input_ids": [text[k : k + 2] for k in range(0, len(text), 2)]}


def test_labels_that_merge_and_labels_that_do_not_begin_at_one_place():
    rules = task(labels=("x", ""), separator="")
    found = encode_candidates(Pairs(), Example("e", "abc", ("x",)), rules)
    assert found.prefix == ("ab",)
    assert found.tails == (("cx", 2), ("c", 2))


def test_no_prompt_before_the_labels():
    rules = task(labels=("x", "yz"), separator="")
    with pytest.raises(InputError, match=r"t: nothing of the prompt of e stands before every"):
        encode_candidates(Pairs(), Example("e", "a", ("x",)), rules)


def test_prompts_are_of_unequal_length(tokenizer):
    assert len({len(plain(tokenizer, one.prompt)) for one in EXAMPLES}) == len(EXAMPLES)
