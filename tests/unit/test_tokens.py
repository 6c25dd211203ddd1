"""All examples of a task at once: the same tokens as one by one, and cached by content."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from moram_dist.config import ModelConfig, RunConfig, TrainConfig
from moram_dist.data import tokens
from moram_dist.data.encode import encode_training
from moram_dist.data.tokens import WorkProgress, encode_task
from moram_dist.families.causal import Causal
from moram_dist.families.encoder_decoder import EncoderDecoder
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.tasks.rules import RULES
from moram_dist.tasks.task import Example
from moram_dist.train.task_data import TaskData
from tests.helpers.configs import config_of
from tests.helpers.context import make_context

ODD = ("", " ", "\n", "a\n", "é\u0301 \u200b", "</s> <s>", "𝔘𝔫𝔦", "x" * 5000, "\t\r\n ", "0")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig())


@pytest.fixture(scope="module")
def pairs():
    """The demo's examples and odd ones, by the rules of every protocol."""
    tasks = BENCHMARKS["demo"](Source(limit_train=8)).tasks
    odd = tuple(
        Example(f"odd-{k}-{m}", prompt, (answer,))
        for k, prompt in enumerate(ODD)
        for m, answer in enumerate(ODD)
    )
    found = [replace(task, train=task.train + odd) for task in tasks[:1]]
    every = (one for name in RULES for p in RULES[name].values() for one in p.tasks.values())
    short = {"labels": (), "metric": "", "epochs": 1, "max_prompt_tokens": 12}
    kinds = {replace(one, **short, max_answer_tokens=5) for one in every}
    assert len(kinds) >= 5
    for k, rules in enumerate(sorted(kinds, key=str)):
        found.append(replace(tasks[0], **vars(rules), name=f"{k}", train=odd))
    return [(task, example) for task in found for example in task.train]


def told(lines=None):
    return WorkProgress(
        "tokenising task x", 0, (lines if lines is not None else []).append, lambda _: None
    )


def test_long_texts_are_tokenised_in_smaller_groups(tokenizer, pairs, monkeypatch):
    calls = []
    monkeypatch.setattr(
        tokens, "CHUNK_CHARACTERS", 3 * sum(map(len, Causal().texts(*pairs[0][::-1])))
    )
    monkeypatch.setattr(
        tokens, "InBatches", lambda by, texts: calls.append(sum(map(len, texts))) or by
    )
    done = []
    found = [*tokens.encode_all(Causal(), tokenizer, pairs[:8], done.append)]
    assert found == [encode_training(tokenizer, example, task) for task, example in pairs[:8]]
    assert len(calls) > 1 and sum(calls) == sum(
        len(text) for task, example in pairs[:8] for text in Causal().texts(example, task)
    )
    assert done[-1] == 8 and len(done) == len(calls)


@pytest.mark.parametrize("family", [Causal(), EncoderDecoder(0)])
@pytest.mark.parametrize("cached_from", [1, 10**9])
def test_all_at_once_is_what_one_by_one_is(
    tokenizer, pairs, tmp_path, monkeypatch, family, cached_from
):
    monkeypatch.setattr(tokens, "CACHED_FROM", cached_from)
    monkeypatch.setattr(tokens, "CHUNK", 37)
    found = encode_task(family, tokenizer, pairs, tmp_path, told())
    alone = [family.encode_training(tokenizer, e, task) for task, e in pairs]
    assert len(found) == len(alone) > 200
    assert [*found] == alone
    assert found[-1] == alone[-1] and found[3:6] == alone[3:6]
    with pytest.raises(IndexError):
        found[len(alone)]
    assert len([*tmp_path.iterdir()]) == (cached_from == 1)


class Counted:
    """A tokenizer that counts its calls and the texts in them."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls, self.texts = tokenizer, 0, 0

    def __call__(self, text, **named):
        self.calls += 1
        self.texts += 1 if isinstance(text, str) else len(text)
        return self.tokenizer(text, **named)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture
def many(tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "CACHED_FROM", 100)
    task = BENCHMARKS["demo"](Source()).tasks[0]
    return [(task, example) for example in task.train]


def test_many_texts_go_in_few_calls_and_a_second_start_in_none(tokenizer, many, tmp_path):
    counted = Counted(tokenizer)
    first = encode_task(Causal(), counted, many, tmp_path, told())
    assert counted.calls == 1 and counted.texts <= 3 * len(many)
    assert [*encode_task(Causal(), counted, many, tmp_path, told())] == [*first]
    assert counted.calls == 1


def test_what_is_cached_is_of_this_content(tokenizer, many, tmp_path):
    task, example = many[0]
    changes = [
        many,
        [(task, replace(example, prompt=example.prompt + "!")), *many[1:]],
        [(task, replace(example, references=("other",))), *many[1:]],
        [(replace(task, max_answer_tokens=2), e) for _, e in many],
        [(replace(task, joined=not task.joined), e) for _, e in many],
        [*many[1:], many[0]],
        many[1:],
    ]
    names = set()
    for changed in changes:
        found = encode_task(Causal(), tokenizer, changed, tmp_path, told())
        assert [*found] == [encode_training(tokenizer, e, t) for t, e in changed]
        (path,) = tmp_path.iterdir()  # the one before is gone
        names.add(path.name)
    assert len(names) == len(changes)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_cache_is_made_again(tokenizer, many, tmp_path, damage):
    first = [*encode_task(Causal(), tokenizer, many, tmp_path, told())]
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[-7] ^= 1
    path.write_bytes(content[: {"cut": -9, "changed": None, "empty": 0}[damage]])
    assert [*encode_task(Causal(), tokenizer, many, tmp_path, told())] == first


def test_without_room_for_the_cache_it_goes_on(tokenizer, many, tmp_path):
    (tmp_path / "file").touch()
    lines: list[str] = []
    found = encode_task(Causal(), tokenizer, many, tmp_path / "file" / "tokens", told(lines))
    assert [*found] == [encode_training(tokenizer, e, t) for t, e in many]
    (line,) = lines
    assert line.startswith("the tokens are not cached: ")


def test_it_says_how_far_it_is(tokenizer, many, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "QUIET_S", -1.0)
    monkeypatch.setattr(tokens, "CHUNK", 100)
    lines: list[str] = []
    at: list[str] = []
    encode_task(
        Causal(),
        tokenizer,
        many,
        tmp_path,
        WorkProgress("tokenising task x", 256, lines.append, at.append),
    )
    assert lines == [f"tokenising task x: {n}/256" for n in (100, 200, 256)]
    assert at == ["tokenising task x"] * 3


def test_calls_are_counted_too(monkeypatch):
    monkeypatch.setattr(tokens, "QUIET_S", -1.0)
    lines: list[str] = []
    told = WorkProgress("fitting prompts", None, lines.append, lambda _: None)
    check = told.calls_of(lambda task, text: text == task)
    assert [check("a", "a"), check("a", "b")] == [True, False]
    assert lines == ["fitting prompts: 1", "fitting prompts: 2"]


def test_steps_of_earlier_tasks_are_counted_once():
    counted = []

    class Method:
        def training_data(self, benchmark, i):
            counted.append(i)
            return range(100 * (i + 1))

        def epochs(self, benchmark, i, batch_size):
            return 1

    config = RunConfig(method=config_of(), train=TrainConfig(batch_size=10))
    benchmark = SimpleNamespace(tasks=[None] * 5)
    data = TaskData(
        make_context(config=config, benchmark=benchmark, method=Method(), engine=None, base=None)
    )
    for _ in range(3):  # at each log line
        assert [data.first_step(i) for i in range(5)] == [0, 10, 30, 60, 100]
    assert counted == [0, 1, 2, 3]
