"""What of a generated text is the answer."""

from __future__ import annotations

import pytest

from moram_dist.config import ModelConfig
from moram_dist.data.answers import read_answers
from moram_dist.data.encode import plain
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks.task import Task


def answers(*pairs, after=""):
    """Of (prompt, new text) pairs; new tokens are padded on the right as in generation."""
    tokenizer = load_tokenizer(ModelConfig())
    prompts = [plain(tokenizer, prompt) for prompt, _ in pairs]
    news = [[*plain(tokenizer, new), tokenizer.eos_token_id] for _, new in pairs]
    longest = max(map(len, news))
    padded = [new + [tokenizer.pad_token_id] * (longest - len(new)) for new in news]
    task = Task(name="t", metric="exact_match", train=(), test=(), answer_after=after)
    return read_answers(tokenizer, prompts, padded, task)


def test_all_that_is_new():
    found = answers(("What is it?\nOutput:", " a cat\nOutput: two"), ("And this?", " red"))
    assert [text.strip() for text in found] == ["a cat\nOutput: two", "red"]


@pytest.mark.parametrize(
    ("prompt", "new", "expected"),
    [
        ("What is it?\nOutput: ", "a cat ", "a cat"),
        ("What is it?\nOutput: ", "a cat\nOutput: two", "two"),  # the last one counts
        ("What is it, and many mo", "a cat", ""),  # the cue was cut away: the published rule
        ("Output: is a word, and many mo", "a cat", "is a word, and many moa cat"),
    ],
)
def test_what_follows_the_last_cue(prompt, new, expected):
    found, other = answers((prompt, new), ("A longer one of them\nOutput: ", "x"), after="Output:")
    assert other == "x"
    assert found.replace(" ", "") == expected.replace(" ", "")  # words may gain a space between
