"""Rows that go on together, leave and come in say what each would alone."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from eval.measure.harness import BATCH_TOKENS
from launch.planning.meter import Meter
from moram_dist.config import ModelConfig
from moram_dist.decode.cache import CACHE_SHARE, bytes_per_token, most_tokens
from moram_dist.decode.continuous_batching import (
    READ_TOGETHER,
    STEPS_PER_TURN,
    ContinuousBatcher,
    Request,
    Room,
    can_batch_continuously,
)
from moram_dist.decode.generate import generate_stream, greedy
from moram_dist.families import family_of_model
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks.task import Decoding, Example, Task
from tests.helpers.answers import generate_batch
from tests.helpers.tiny import SIZES, VOCABULARY, tiny_model, tokens
from tests.helpers.tiny_t5 import tiny_t5

EOS, PAD = 2, 0
RULES = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}
SETTINGS = {"do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD, **RULES}


class Tokenizer:
    """As much of one as ``greedy`` needs."""

    eos_token_id, pad_token_id = EOS, PAD


@pytest.fixture(scope="module")
def model():
    """Says EOS now and then."""
    model = tiny_model().double()
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 2.0
    return model


def prompts():
    """Of 3 to 20 tokens."""
    return [tokens(3 + 7 * i % 18, seed=i).tolist() for i in range(12)]


def alone(model, prompt, limit):
    said = greedy(model, Tokenizer(), [prompt], max_new_tokens=limit, **RULES)[0].tolist()
    return said[: said.index(EOS) + 1] if EOS in said else said


@pytest.mark.parametrize(
    "room", [Room(100, 10**6), Room(1, 10**6), Room(3, 10**6), Room(100, 120), Room(100, 1)]
)
def test_each_row_says_what_it_says_alone(model, room):
    limits = [
        (1, 2, STEPS_PER_TURN, STEPS_PER_TURN + 1, 3 * STEPS_PER_TURN)[i % 5] for i in range(12)
    ]
    asked = [Request(i, p, n) for i, (p, n) in enumerate(zip(prompts(), limits, strict=True))]
    ended = list(ContinuousBatcher(model, room, **SETTINGS)(asked))
    assert sorted(row.key for row in ended) == [*range(12)]
    expected = [alone(model, row.prompt, row.max_new_tokens) for row in asked]
    assert [row.said for row in asked] == expected
    assert {len(said) < n for said, n in zip(expected, limits, strict=True)} == {True, False}


def test_prompts_are_taken_when_there_is_room(model):
    taken = []

    def rows():
        for i, prompt in enumerate(prompts()):
            taken.append(i)
            yield Request(i, prompt, 2 * STEPS_PER_TURN)

    turns = ContinuousBatcher(model, Room(3, 10**6), **SETTINGS)(rows())
    ended = 0
    for _ in turns:
        ended += 1
        assert len(taken) <= ended + 3 + 1  # those that go on, and one that waits
    assert ended == len(taken) == 12


def test_room_counts_what_rows_may_become():
    rows = [Request(0, [5] * 30, 20), Request(1, [5] * 30, 10)]
    assert Room(3, 120).for_one_more(rows[:1], Request(2, [5] * 30, 30))
    assert not Room(3, 119).for_one_more(rows[:1], Request(2, [5] * 30, 30))
    assert not Room(2, 10**6).for_one_more(rows, Request(2, [5] * 30, 20))
    assert Room(1, 1).for_one_more([], rows[0])


def test_lengths_that_differ_much_do_not_go_on_together():
    """Of 3 * 150 tokens at least 300 must be some row's."""
    rows = [Request(0, [5] * 90, 60), Request(1, [5] * 50, 100)]
    rows[0].said = [5] * 10
    assert Room(9, 10**6).for_one_more(rows, Request(2, [5] * 150, 10))
    assert not Room(9, 10**6).for_one_more(rows, Request(2, [5] * 151, 10))


def test_long_prompts_are_read_by_themselves(model, monkeypatch):
    long, short = tokens(READ_TOGETHER).tolist(), tokens(READ_TOGETHER // 2).tolist()
    shapes = []

    def generate(input_ids, attention_mask, past_key_values, **settings):
        shapes.append((tuple(input_ids.shape), bool(attention_mask.all())))
        seen = torch.zeros(len(input_ids), 1, input_ids.shape[1], 1)
        for layer in range(len(past_key_values.layers)):
            past_key_values.update(seen, seen, layer)
        return torch.cat([input_ids, torch.full((len(input_ids), 1), EOS)], 1)

    monkeypatch.setattr(model, "generate", generate)
    turns = ContinuousBatcher(model, Room(100, 10**6), **SETTINGS)
    assert len([*turns(Request(i, p, 5) for i, p in enumerate([long, short, long, short]))]) == 4
    whole = ((1, READ_TOGETHER), True)
    assert shapes == [((2, READ_TOGETHER // 2), True), whole, whole]


def test_which_models_cannot():
    window = MistralConfig(vocab_size=VOCABULARY, sliding_window=8, **SIZES)
    assert can_batch_continuously(tiny_model())
    assert not can_batch_continuously(MistralForCausalLM(window))
    assert not family_of_model(tiny_t5()).can_stream(tiny_t5())


def test_a_stream_reads_each_text_by_its_own_task():
    """Keys tell whose a text is; the limits are those of its task."""
    tasks = [
        Task(name="short", metric="exact_match", train=(), test=(), max_answer_tokens=2),
        Task(name="long", metric="exact_match", train=(), test=(), max_answer_tokens=30),
    ]
    examples = [Example(id=str(i), prompt="say " * i + "it", references=("x",)) for i in (1, 5, 9)]
    decoding = Decoding(repetition_penalty=1.2, no_repeat_ngram_size=3)
    tokenizer, model = load_tokenizer(ModelConfig()), tiny_model()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    asked = [(7 * i + j, tasks[j], examples[i]) for i in range(3) for j in range(2)]
    found = dict(generate_stream(model, tokenizer, asked, decoding, Room(rows=2, tokens=10**6)))
    for key, task, example in asked:
        assert [found[key]] == generate_batch(model, tokenizer, [example], task, decoding)


def test_keys_and_values_exist_once_while_rows_come_and_go():
    """The peak is that of all rows, with room for new tokens, and little else of a layer or two."""
    sizes = SIZES | {"num_hidden_layers": 8}
    model = MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, **sizes, sliding_window=None))
    count, length, limit = 6, 600, 2 * STEPS_PER_TURN
    asked = [Request(i, [5] * length, limit - STEPS_PER_TURN * (i % 2)) for i in range(2 * count)]
    settings = SETTINGS | {"eos_token_id": -1}
    with Meter(model.parameters()) as meter:
        ended = [*ContinuousBatcher(model, Room(count, 10**6), **settings)(asked)]
    assert len(ended) == 2 * count
    cache = count * (length + limit) * bytes_per_token(model)
    assert meter.now < cache / 4  # nothing is left
    assert cache / 1.4 < meter.peak < 1.5 * cache


@pytest.mark.parametrize(("memory", "expected"), [(80e9, 35e3), (24e9, 10e3), (1e15, BATCH_TOKENS)])
def test_the_cache_takes_a_part_of_a_ranks_memory(memory, expected):
    """Of a 7B model: 32 layers of 32 heads of 128 numbers in bf16."""
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32}
    config = MistralConfig(**sizes, num_hidden_layers=32, vocab_size=8, sliding_window=None)
    with torch.device("meta"):
        model = MistralForCausalLM(config).bfloat16()
    found = most_tokens(model, memory, BATCH_TOKENS)
    assert found == BATCH_TOKENS or found * 2 * 32 * 4096 * 2 * 1.25 <= CACHE_SHARE * memory
    assert expected <= found <= 1.3 * expected
