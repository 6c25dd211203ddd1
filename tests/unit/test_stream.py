"""Which examples a step sees: the same at any number of ranks, each once an epoch."""

from __future__ import annotations

import pytest
import torch

from moram_dist.data.encode import Encoded
from moram_dist.data.stream import is_under_a_step, num_steps, order, steps
from moram_dist.families.causal import Causal

PAD = 0


def examples(count):
    """Example k: a first token of its own, a length and what is learned that vary."""
    out = []
    for k in range(count):
        learned = (
            {"num_answer": 2, "earlier": ((1, 2),)} if k % 3 == 0 else {"num_answer": 1 + k % 3}
        )
        out.append(Encoded(f"e{k}", (100 + k, *range(1, 3 + k % 4)), **learned))
    return out


def stream(count, **changes):
    settings = {
        "batch_size": 4,
        "micro_batch_size": 2,
        "micro_batch_tokens": 100,
        "epochs": 1,
        "seed": 5,
        "task": 0,
        "rank": 0,
        "world_size": 1,
        "pad_id": PAD,
    }
    return list(steps(examples(count), Causal(), **(settings | changes)))


def firsts(step):
    """The own tokens of the examples that this rank sees in a step."""
    return [
        int(row[0])
        for batch in step.micro_batches
        for row, labels in zip(batch.inputs["input_ids"], batch.labels, strict=True)
        if (labels != -100).any()
    ]


@pytest.mark.parametrize("count", [1, 4, 10, 12])
def test_every_example_once_an_epoch(count):
    found = stream(count, epochs=3)
    per_epoch = len(found) // 3
    for epoch in range(3):
        ids = [name for step in found[epoch * per_epoch :][:per_epoch] for name in step.ids]
        assert sorted(ids) == sorted(f"e{k}" for k in range(count))
    assert [step.index for step in found] == list(range(num_steps(count, 4, 3)))


def test_half_an_epoch():
    assert [s.ids for s in stream(16, epochs=0.5)] == [s.ids for s in stream(16)][:2]
    assert [s.ids for s in stream(16, epochs=1.5)] == [s.ids for s in stream(16, epochs=2)][:6]


def test_order_is_a_function_of_seed_task_and_epoch():
    base = {"seed": 1, "task": 2, "epoch": 3}
    assert order(50, **base) == order(50, **base)
    others = [order(50, **(base | {name: 9})) for name in base]
    assert len({tuple(found) for found in [order(50, **base), *others]}) == 4
    torch.manual_seed(9)  # nobody else's generator matters
    assert order(50, **base) == order(50, **base)


def test_a_stream_is_the_order():
    ids = [name for step in stream(10, epochs=2, task=3) for name in step.ids]
    expected = [f"e{k}" for epoch in (0, 1) for k in order(10, seed=5, task=3, epoch=epoch)]
    assert ids == expected


@pytest.mark.parametrize("count", [1, 5, 8, 11])
@pytest.mark.parametrize("batch_size", [1, 4, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_same_steps(world_size, batch_size, count):
    alone = stream(count, batch_size=batch_size)
    ranks = [
        stream(count, batch_size=batch_size, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]
    for one, *parts in zip(alone, *ranks, strict=True):
        assert {part.ids for part in parts} == {one.ids}
        seen = sorted(token for part in parts for token in firsts(part))
        assert seen == sorted(firsts(one)) == sorted(100 + int(name[1:]) for name in one.ids)
        passes = -(-len(one.ids) // world_size)
        assert {len(part.micro_batches) for part in parts} == {-(-passes // 2)}
        assert all(len(b.inputs["input_ids"]) <= 2 for part in parts for b in part.micro_batches)

        learned = sum(int((b.labels != -100).sum()) for p in parts for b in p.micro_batches)
        assert {part.num_answer_tokens for part in parts} == {learned} == {one.num_answer_tokens}
        assert {part.num_tokens for part in parts} == {one.num_tokens}


@pytest.mark.parametrize(
    ("size", "tokens", "shapes"),
    [
        # Ten examples of 3, 3, 3, 4, 4, 4, 5, 5, 6, 6 tokens.
        (None, 100, [(10, 6)]),
        (None, 24, [(6, 4), (4, 6)]),
        (None, 12, [(3, 3), (3, 4), (2, 5), (2, 6)]),
        (2, 12, [(2, 3), (2, 4), (2, 4), (2, 5), (2, 6)]),
        (1, 12, [(1, n) for n in (3, 3, 3, 4, 4, 4, 5, 5, 6, 6)]),
        (None, 1, [(1, n) for n in (3, 3, 3, 4, 4, 4, 5, 5, 6, 6)]),  # an example is never cut
    ],
)
def test_passes_are_as_large_as_they_may_be(size, tokens, shapes):
    (step,) = stream(10, batch_size=10, micro_batch_size=size, micro_batch_tokens=tokens)
    assert [tuple(batch.inputs["input_ids"].shape) for batch in step.micro_batches] == shapes
    assert sorted(row for batch in step.micro_batches for row in batch.rows) == [*range(10)]


def test_ranks_have_like_work_and_equally_many_passes():
    """Of ten tokens at most; one rank has examples of 3, 3, 4, 5, 6, the other of 3, 4, 4, 5, 6."""
    ranks = [
        stream(
            10, batch_size=10, micro_batch_size=None, micro_batch_tokens=10, world_size=2, rank=r
        )
        for r in range(2)
    ]
    shapes = [[tuple(b.inputs["input_ids"].shape) for b in step.micro_batches] for (step,) in ranks]
    assert [len(firsts(step)) for (step,) in ranks] == [5, 5]
    assert shapes[0] == [(2, 3), (2, 5), (1, 6)]
    assert shapes[1] == [(2, 4), (2, 5), (1, 6)]


def test_no_examples_no_steps():
    assert stream(0) == []


def test_collate_learns_the_answer_only():
    batch = Causal().collate([Encoded("a", (7, 8, 9), 1), Encoded("b", (1, 2, 3, 4, 5), 4)], PAD)
    assert batch.inputs["input_ids"].tolist() == [[7, 8, 9, PAD, PAD], [1, 2, 3, 4, 5]]
    assert batch.labels.tolist() == [[-100, -100, 9, -100, -100], [-100, 2, 3, 4, 5]]


def test_an_empty_micro_batch_weighs_nothing():
    (step,) = stream(1, world_size=2, rank=1)
    batch = step.micro_batches[-1]
    assert batch.rows == (0,) and set(batch.inputs) == {"input_ids"}
    assert batch.inputs["input_ids"].shape == batch.labels.shape == (1, 2)
    assert (batch.labels == -100).all()


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [(1, 0.4, 1), (1, 1e-9, 1), (8, 0.25, 1), (8, 0.2, 1), (8, 0.5, 1), (8, 0.75, 2), (0, 5.0, 0)],
)
def test_a_task_with_examples_takes_a_step_at_least(count, epochs, expected):
    assert num_steps(count, 4, epochs) == expected == len(stream(count, epochs=epochs))
    assert all(step.ids for step in stream(count, epochs=epochs))


def test_which_tasks_are_under_a_step():
    assert [is_under_a_step(8, 4, epochs) for epochs in (0.2, 0.25, 0.3, 1.0)] == [
        True,
        True,
        False,
        False,
    ]
    assert is_under_a_step(1, 32, 0.4) and not is_under_a_step(0, 4, 0.1)
