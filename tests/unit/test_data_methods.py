"""Methods that change what is trained on, or what is asked: what each makes of the same tasks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from moram_dist.config import TrainConfig
from moram_dist.data.encode import encode_prompt, plain
from moram_dist.data.stream import num_steps
from moram_dist.families.causal import Causal
from moram_dist.families.encoder_decoder import EncoderDecoder
from moram_dist.methods import METHODS
from moram_dist.methods.replay import share
from moram_dist.tasks.task import Benchmark, Example, Task
from moram_dist.train.task_data import epochs_of
from tests.helpers.configs import config_of
from tests.helpers.tiny import tiny_model


def make_task(name, *, train, test=2, **rules):
    def examples(split, count):
        return tuple(
            Example(f"{split}-{k}", f"{name} {split} {k}?", (f"{k}", "other")) for k in range(count)
        )

    return Task(
        name=name,
        metric="exact_match_normalised",
        train=examples("train", train),
        test=examples("test", test),
        **rules,
    )


def bench(*tasks):
    return Benchmark(name="b", order="o", protocol="p", tasks=tasks)


def make(method, seed=0, **settings):
    return METHODS[method](config_of(method=method, **settings), seed, num_tasks=4)


THREE = bench(make_task("a", train=6), make_task("b", train=2), make_task("c", train=5))


# Replay.


@pytest.mark.parametrize(
    ("budget", "shares"),
    [
        (5, [[5], [3, 2], [2, 2, 1], [2, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]),
        (6, [[6], [3, 3], [2, 2, 2], [2, 2, 1, 1]]),
        (1, [[1], [1, 0], [1, 0, 0]]),
    ],
)
def test_a_buffer_is_shared_out_equally(budget, shares):
    for row in shares:
        assert [share(budget, j, len(row)) for j in range(len(row))] == row
        assert sum(row) == budget


def test_no_share_grows():
    for budget in range(1, 30):
        for j in range(8):
            shares = [share(budget, j, n) for n in range(j + 1, 12)]
            assert shares == sorted(shares, reverse=True)


def ids(pairs):
    return [(task.name, example.id) for task, example in pairs]


def test_replay_trains_on_the_task_and_the_buffer():
    tasks = (*THREE.tasks, make_task("d", train=3))
    method = make("replay", replay_budget=4)
    data = [method.training_data(bench(*tasks), i) for i in range(4)]
    # Shares of 4: [4], [2, 2], [2, 1, 1].
    drawn = [example.id for example in method.draw(THREE, 0, 4)]
    assert len(set(drawn)) == 4
    own = [ids((task, example) for example in task.train) for task in tasks]
    assert ids(data[0]) == own[0]
    assert ids(data[1]) == own[1] + [("a", f"a/{name}") for name in drawn]
    # The buffer gives up examples, and takes none back; task b has no more than its two.
    assert ids(data[2])[:7] == own[2] + [("a", f"a/{name}") for name in drawn[:2]]
    assert sorted(ids(data[2])[7:]) == [("b", "b/train-0"), ("b", "b/train-1")]
    assert ids(data[3])[:5] == own[3] + [("a", f"a/{name}") for name in drawn[:2]]
    assert [task for task, _ in ids(data[3])[5:]] == ["b", "c"]
    assert data[1][-1][0] is tasks[0]  # encoded by the rules of its own task
    assert method.epochs(bench(*tasks), 1, 4) == tasks[1].epochs


def test_a_buffer_is_a_function_of_the_seed():
    many = bench(make_task("a", train=50), make_task("b", train=1))

    def buffer(seed):
        return ids(make("replay", seed, replay_budget=10).training_data(many, 1))

    assert buffer(3) == buffer(3)
    assert buffer(3) != buffer(4)
    assert len(buffer(3)) == 1 + 10


def test_a_task_smaller_than_its_share_gives_all_it_has():
    assert len(make("replay", replay_budget=100).training_data(THREE, 2)) == 5 + 6 + 2


# Multitask.


def test_multitask_learns_everything_first():
    method = make("multitask")
    data = method.training_data(THREE, 0)
    assert ids(data) == [
        (task.name, f"{task.name}/{example.id}") for task in THREE.tasks for example in task.train
    ]
    assert [method.training_data(THREE, i) for i in (1, 2)] == [(), ()]


def test_multitask_sees_as_many_examples_as_tasks_in_sequence():
    tasks = (make_task("a", train=6, epochs=1), make_task("b", train=2, epochs=5))
    assert make("multitask").epochs(bench(*tasks), 0, 4) == (6 * 1 + 2 * 5) / 8


def steps_of(name, benchmark, i, epochs=None):
    """Steps of task i of a method in batches of 4."""
    settings = {"replay_budget": 8} if name == "replay" else {}
    method, train = make(name, **settings), TrainConfig(batch_size=4, epochs=epochs)
    count = len(method.training_data(benchmark, i))
    return num_steps(count, 4, epochs_of(train, benchmark, method, i))


def test_steps_in_place_of_epochs():
    """All tasks at once take as many as in turn; a buffer is seen as often as new data."""
    benchmark = bench(
        replace(make_task("a", train=16), steps=12), replace(make_task("b", train=8), steps=30)
    )
    assert [steps_of("sequential_lora", benchmark, i) for i in (0, 1)] == [12, 30]
    assert [steps_of("multitask", benchmark, i) for i in (0, 1)] == [42, 0]
    assert [steps_of("replay", benchmark, i) for i in (0, 1)] == [12, 60]  # 8 more of 8
    assert steps_of("multitask", benchmark, 0, epochs=2) == 12


# Single task.


def test_single_task_begins_anew():
    method, going_on = make("single_task"), make("sequential_lora")
    for one in (method, going_on):
        one.build(tiny_model())
    first, second = method.begin_task(0), method.begin_task(1)
    assert first.keys() == second.keys() == going_on.begin_task(0).keys()
    assert going_on.begin_task(1) == {}
    for name, tensor in second.items():
        if name.endswith("lora_B"):
            assert not tensor.any()
        else:
            assert tensor.any() and not torch.equal(tensor, first[name])
    assert method.eval_rows == "diagonal"
    assert ids(method.training_data(THREE, 1)) == [("b", "train-0"), ("b", "train-1")]


# Any-SSR.


def test_any_ssr_is_single_task_with_a_router():
    method, alone = make("any_ssr"), make("single_task")
    assert (method.eval_rows, method.recall, method.recogniser) == (None, "prefix", "ridge")
    assert (alone.recall, alone.recogniser) == (None, None)
    assert method.Config is alone.Config


# In context.


def asked(benchmark, limit=10_000, **settings):
    def short_enough(task, prompt):
        return len(prompt) <= limit

    return make("in_context", **settings).asked(benchmark, short_enough)


def test_in_context_prompt():
    task = Task(
        name="capitals",
        metric="exact_match_normalised",
        train=(
            Example("train-0", "Capital of Peru:", ("Lima", "Ciudad de los Reyes")),
            Example("train-1", "Capital of Chad: ", ("N'Djamena",)),
        ),
        test=(Example("test-0", "Capital of Laos:", ("Vientiane",)),),
        separator=" ",
    )
    found = asked(bench(task), demonstrations=2)
    (example,) = found.tasks[0].test
    peru, chad = "Capital of Peru: Lima\n\n", "Capital of Chad: N'Djamena\n\n"
    assert example.prompt in (
        f"{peru}{chad}Capital of Laos:",
        f"{chad}{peru}Capital of Laos:",
    )
    assert (example.id, example.references) == ("test-0", ("Vientiane",))
    assert replace(found.tasks[0], test=task.test) == task
    assert found.notes == ()
    assert make("in_context").training_data(bench(task), 0) == ()


def test_all_questions_of_a_task_see_the_same_demonstrations():
    many = bench(make_task("a", train=50, test=3))

    def shown(seed):
        task = make("in_context", seed, demonstrations=4).asked(many, lambda *_: True).tasks[0]
        (prefix,) = {example.prompt.rpartition("\n\n")[0] for example in task.test}
        return prefix

    assert len(set(shown(0).split("\n\n"))) == 4
    assert shown(0) == shown(0)
    assert shown(0) != shown(1)


def test_demonstrations_take_only_the_room_that_is_left():
    long = Example("train-0", "x" * 30, ("1",))
    short = Example("train-1", "y" * 3, ("2",))
    tests = [Example(f"test-{k}", "q" * n, ("3",)) for k, n in enumerate((4, 10, 11, 90))]
    task = replace(make_task("a", train=0), train=(long, short), test=tuple(tests))
    found = asked(bench(task), limit=16, demonstrations=2)
    prompts = [example.prompt for example in found.tasks[0].test]
    # A demonstration that is too long is passed over, whichever is drawn first. 4 + 2 + 10 fit.
    assert prompts == ["yyy2\n\nqqqq", f"yyy2\n\n{'q' * 10}", "q" * 11, "q" * 90]
    (note,) = found.notes
    assert "a is asked with 0.5 of 2 demonstrations on average: 1024 prompt tokens" in note


class Words:
    """One token a word; BOS is 1, EOS 2."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": text.split()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("room", range(3, 40))
def test_a_question_is_never_cut_for_a_demonstration(side, room):
    task = make_task("a", train=9, max_prompt_tokens=room, truncate_prompt=side)
    tokenizer = Words()
    fits = partial(Causal().question_fits, tokenizer)
    found = make("in_context", demonstrations=5).asked(bench(task), fits)
    for question, example in zip(task.test, found.tasks[0].test, strict=True):
        tokens = encode_prompt(tokenizer, example.prompt, task)
        if room <= 3:  # no room for BOS
            assert example.prompt == question.prompt
        else:
            assert tokens == [1, *plain(tokenizer, example.prompt)]
            assert tokens[-3:] == question.prompt.split()
        # A demonstration is three words of prompt with the answer joined to the last.
        assert len(plain(tokenizer, example.prompt)) == 3 + 3 * min(5, max(0, (room - 4) // 3))


@pytest.mark.parametrize("room", [3, 4, 5, 8])
def test_an_encoder_decoder_has_room_for_eos_and_no_bos(room):
    task = make_task("a", train=9, max_prompt_tokens=room)
    tokenizer = Words()
    assert EncoderDecoder(0).question_fits(tokenizer, task, "a test 0?") == (room >= 4)
    assert Causal().question_fits(tokenizer, task, "a test 0?") == (room >= 4)
    roomy = make_task("a", train=9, max_prompt_tokens=room, num_bos=0)
    assert Causal().question_fits(tokenizer, roomy, "a test 0?")
    assert EncoderDecoder(0).question_fits(tokenizer, roomy, "a test 0?") == (room >= 4)
