"""The embedded demo: its generated tasks, and the base model that is shipped for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import moram_dist
from moram_dist.registry import InputError
from moram_dist.tasks.demo import ORDERS, demo
from moram_dist.tasks.demo_text import SLOTS
from moram_dist.tasks.task import BENCHMARKS, Source

BASE = Path(moram_dist.__file__).parent / "models" / "demo_base"


@pytest.fixture(scope="module")
def tasks():
    return demo(Source()).tasks


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


def test_is_registered_and_seeded(tasks):
    assert BENCHMARKS["demo"] is demo
    assert demo(Source(seed=0)).tasks == tasks
    for ours, other in zip(tasks, demo(Source(seed=1)).tasks, strict=True):
        assert ours.name == other.name
        assert not {e.prompt for e in ours.train} & {e.prompt for e in other.train}


def test_has_five_tasks_with_closed_labels(tasks):
    assert len(tasks) >= 5
    for task in tasks:
        answers = [e.references for e in task.train + task.test]
        assert {answer for (answer,) in answers} == set(task.labels)
        assert (len(task.train), len(task.test)) == (256, 48)
        for label in task.labels:  # a model that always says one label scores a quarter
            assert sum(answer == (label,) for answer in answers) == len(answers) / 4


def test_train_and_test_share_no_text(tasks):
    for task in tasks:
        prompts = [e.prompt for e in task.train + task.test]
        assert len(set(prompts)) == len(prompts)
        assert len({e.id for e in task.train + task.test}) == len(prompts)


def test_every_word_has_one_meaning():
    words = [word for groups in SLOTS.values() for group in groups.values() for word in group]
    assert len(set(words)) == len(words)


def test_limits_take_the_first_examples(tasks):
    for whole, part in zip(tasks, demo(Source(limit_train=7, limit_eval=3)).tasks, strict=True):
        assert (part.train, part.test) == (whole.train[:7], whole.test[:3])


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_only_moves_tasks(order, tasks):
    benchmark = demo(Source(order=order))
    assert benchmark.order == order
    assert tuple(task.name for task in benchmark.tasks) == ORDERS[order]
    by_name = {task.name: task for task in tasks}
    assert all(task == by_name[task.name] for task in benchmark.tasks)


def test_an_order_may_be_a_list_of_tasks():
    assert [task.name for task in demo(Source(order="time, topic")).tasks] == ["time", "topic"]
    assert [task.name for task in demo(Source(order="job")).tasks] == ["job"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(order="topic,mod"), "unknown task 'mod'; did you mean 'mood'"),
        (Source(order="revresed"), "unknown order 'revresed'; did you mean 'reversed'"),
        (Source(order="topic,topic"), "twice"),
        (Source(protocol="published"), "unknown protocol 'published'"),
        (Source(data_dir=Path("data")), "demo is generated and takes no --data_dir"),
        (Source(splits={"topic": {"train": "test"}}), "splits"),
    ],
)
def test_refuses(source, message):
    with pytest.raises(InputError, match=message):
        demo(source)


def test_base_is_small_and_loads(tasks, tokenizer):
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 4 * 2**20
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )
    with torch.no_grad():
        logits = model(**tokenizer(tasks[0].test[0].prompt, return_tensors="pt")).logits
    assert logits.isfinite().all()


def test_tokenizer_round_trips_and_fits(tasks, tokenizer):
    for task in tasks:
        for example in task.train[:32]:
            prompt = tokenizer(example.prompt).input_ids
            answer = tokenizer(example.references[0], add_special_tokens=False).input_ids
            assert prompt[0] == tokenizer.bos_token_id
            assert tokenizer.unk_token_id not in prompt
            assert tokenizer.decode(prompt, skip_special_tokens=True) == example.prompt
            assert len(prompt) <= min(40, task.max_prompt_tokens)
            assert len(answer) + 1 <= min(4, task.max_answer_tokens)  # one more for the end
            # Encoding prompt and answer apart must give what encoding them together gives.
            both = f"{example.prompt} {example.references[0]}"
            assert tokenizer(both).input_ids == prompt + answer
