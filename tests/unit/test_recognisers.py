"""Recognisers against formulas written out by hand, and what they promise of their statistics."""

from __future__ import annotations

import pytest
import torch

from moram_dist.recognise import (
    RECOGNISERS,
    PromptFeatures,
    Recognised,
    TaskStatistics,
    prompt_features,
)
from moram_dist.recognise.features import PROJECTED, VIEWS
from moram_dist.recognise.left_out import LEVELS
from moram_dist.recognise.recognisers import RIDGE, SHRINK
from moram_dist.registry import InputError

SIZES = (40, 25, 60)
D = 12


def prompts(seed=0, width=D):
    """Features of three tasks around means that differ less than a common offset."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = 0.1 + draw(width).abs()
    return [5 + draw(width) + draw(n, width) * scales for n in SIZES]


def features(x, tokens=9):
    """Prompts of so many tokens each."""
    return PromptFeatures(x.double(), torch.full((len(x),), float(tokens), dtype=torch.float64))


def statistics(tasks):
    return [TaskStatistics.of(features(x)) for x in tasks]


def test_features_are_means_of_embeddings():
    table = torch.randn(7, 3)
    prompts = prompt_features(table, [[1, 1, 4], [6], []])
    assert prompts.tokens_N.tolist() == [3, 1, 0]
    found = prompts.mean_ND
    assert not found[2].any()
    assert torch.equal(found[0], (table[1].double() * 2 + table[4].double()) / 3)
    assert torch.equal(found[1], table[6].double())
    assert prompt_features(table, []).mean_ND.shape == (0, 3)
    together = prompt_features(table.bfloat16(), [[1, 2], [3]])
    alone = prompt_features(table.bfloat16(), [[3]])
    assert torch.equal(together.rows(slice(1, 2)).mean_ND, alone.mean_ND)


def test_means_by_the_formula():
    tasks, (x, *_) = prompts(), prompts(seed=1)
    means = torch.stack([t.mean(0) for t in tasks])
    pooled = sum(((t - m) ** 2).sum(0) for t, m in zip(tasks, means, strict=True)) / sum(SIZES)
    pooled = pooled + SHRINK * pooled.mean()
    expected = torch.stack([-((x - m) ** 2 / pooled).sum(1) for m in means], 1)
    found = RECOGNISERS["means"](statistics(tasks)).scores(x)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("width", [D, PROJECTED + 44])
def test_discriminant_by_the_formula(width):
    tasks, (x, *_) = prompts(width=width), prompts(seed=1, width=width)
    seen, y = [VIEWS["projected"](t) for t in tasks], VIEWS["projected"](x)
    means = torch.stack([t.mean(0) for t in seen])
    centred = torch.cat([t - m for t, m in zip(seen, means, strict=True)])
    within = centred.T @ centred / sum(SIZES)
    size = len(within)
    assert size == min(width, PROJECTED)
    shrunk = (1 - SHRINK) * within + SHRINK * within.diagonal().mean() * torch.eye(size)
    inverse = torch.linalg.inv(shrunk)
    distance = torch.stack([((y - m) @ inverse * (y - m)).sum(1) for m in means], 1)
    scores = RECOGNISERS["discriminant"](statistics(tasks)).scores(x)
    # Equal but for what all tasks have in common.
    found = scores - scores[:, :1]
    torch.testing.assert_close(found, -0.5 * (distance - distance[:, :1]), rtol=1e-6, atol=1e-6)


def test_ridge_equals_one_solve_over_all_data():
    tasks, (x, *_) = prompts(), prompts(seed=1)
    seen = [VIEWS["random"](t) for t in tasks]
    every = torch.cat([f / len(f) ** 0.5 for f in seen])
    labels = torch.cat(
        [
            torch.nn.functional.one_hot(torch.tensor(t), 3).double().expand(n, 3) / n**0.5
            for t, n in enumerate(SIZES)
        ]
    )
    gram = every.T @ every
    ridge = RIDGE * gram.diagonal().mean()
    weights = torch.linalg.lstsq(
        torch.cat([every, ridge**0.5 * torch.eye(len(gram), dtype=torch.float64)]),
        torch.cat([labels, torch.zeros(len(gram), 3, dtype=torch.float64)]),
    ).solution
    found = RECOGNISERS["ridge"](statistics(tasks)).scores(x)
    torch.testing.assert_close(found, VIEWS["random"](x) @ weights, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [*RECOGNISERS])
def test_any_order_gives_the_same_scores(name):
    tasks, (x, *_) = prompts(), prompts(seed=1)
    found = RECOGNISERS[name](statistics(tasks)).scores(x)
    other = RECOGNISERS[name](statistics([tasks[2], tasks[0], tasks[1]])).scores(x)
    torch.testing.assert_close(found[:, [2, 0, 1]], other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [*RECOGNISERS])
def test_the_recogniser_of_the_first_tasks(name):
    tasks, x = statistics(prompts()), prompts(seed=1)[0]
    found = RECOGNISERS[name](tasks).of_first(2)
    assert torch.equal(found.scores(x), RECOGNISERS[name](tasks[:2]).scores(x))
    assert found.tasks[0] is tasks[0], "statistics are shared"


@pytest.mark.parametrize("name", [*RECOGNISERS])
@pytest.mark.parametrize("known", [1, 2, 3])
def test_an_earlier_recogniser_gives_the_same_bits(known, name):
    """And is not changed."""
    kind, tasks = RECOGNISERS[name], statistics(prompts())
    before = kind(tasks[:known])
    sums = before.second.clone()
    found, expected = kind(tasks, before), kind(tasks)
    assert torch.equal(found.second, expected.second) and torch.equal(before.second, sums)
    x = prompts(seed=1)[0]
    assert torch.equal(found.scores(x), expected.scores(x))


@pytest.mark.parametrize("name", [*RECOGNISERS])
def test_unseen_prompts_are_recognised(name):
    tasks = prompts()
    recogniser = RECOGNISERS[name](statistics([t[::2] for t in tasks]))
    right = [
        recogniser.scores(t[1::2]).argmax(1).eq(i).double().mean() for i, t in enumerate(tasks)
    ]
    assert min(right) > 0.9
    assert recogniser.scores(tasks[0][:2]).shape == (2, 3)


@pytest.mark.parametrize("name", [*RECOGNISERS])
@pytest.mark.parametrize("num_prompts", [1, 2])
def test_few_prompts_and_one_task(name, num_prompts):
    tasks = [t[:num_prompts] for t in prompts()]
    (one,) = RECOGNISERS[name](statistics(tasks)).recognise(features(tasks[0][:1]))
    assert one.task == 0
    found = RECOGNISERS[name](statistics(tasks[:1])).recognise(features(tasks[1]))
    assert [one.task for one in found] == [0] * num_prompts
    same = torch.ones(3, D, dtype=torch.float64)
    scores = RECOGNISERS[name](statistics([same, same])).scores(same)
    assert scores.isfinite().all()


def test_statistics_survive_their_file():
    for width in (D, PROJECTED + 5):
        (x, *_) = prompts(width=width)
        before = TaskStatistics.of(features(x))
        after = TaskStatistics.from_tensors(before.tensors(), "a file")
        assert after.count == before.count
        assert torch.equal(after.distances, before.distances)
        for name, moments in before.moments.items():
            assert torch.equal(after.moments[name].sum_M, moments.sum_M)
            torch.testing.assert_close(after.moments[name].second, moments.second)


@pytest.mark.parametrize(
    "change",
    [
        {"count": None},
        {"plain.sum": None},
        {"random.second": torch.zeros(3)},
        {"plain.sum": torch.zeros(2, 2, 2)},
        {"count": torch.zeros(2)},
    ],
)
def test_a_file_that_holds_something_else(change):
    tensors = TaskStatistics.of(features(prompts()[0])).tensors() | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(InputError, match=r"^a file holds no statistics of prompts: "):
        TaskStatistics.from_tensors(tensors, "a file")


def test_a_file_of_statistics_is_a_few_hundred_kilobytes():
    tensors = TaskStatistics.of(features(torch.randn(9, 4096))).tensors()
    assert sum(t.numel() * t.element_size() for t in tensors.values()) < 700_000


@pytest.mark.parametrize("width", [D, PROJECTED + 5])
def test_distances_leave_each_prompt_out(width):
    (x, *_) = prompts(width=width)
    tokens = torch.arange(len(x)) + 4.0
    x_seen = VIEWS["projected"](x)
    found = torch.zeros(len(x), dtype=torch.float64)
    for part in range(10):
        others = x_seen[torch.arange(len(x)) % 10 != part]
        covariance = (others - others.mean(0)).T @ (others - others.mean(0)) / len(others)
        eye = torch.eye(len(covariance), dtype=torch.float64)
        inverse = torch.linalg.inv(0.7 * covariance + 0.3 * covariance.diagonal().mean() * eye)
        for i in range(part, len(x), 10):
            off = x_seen[i] - others.mean(0)
            found[i] = (off @ inverse @ off) * tokens[i] ** 0.5
    expected = torch.quantile(found, torch.tensor(LEVELS, dtype=torch.float64))
    statistics = TaskStatistics.of(PromptFeatures(x, tokens.double()))
    torch.testing.assert_close(statistics.distances, expected, rtol=1e-6, atol=1e-8)


def test_a_foreign_prompt_is_unknown():
    tasks = prompts()
    recogniser = RECOGNISERS["means"](statistics(tasks))
    own = [one.known for one in recogniser.recognise(features(tasks[2]))]
    assert own.count(False) <= 3  # the 0.99 quantile of 60
    assert not any(one.known for one in recogniser.recognise(features(tasks[0] + 20)))
    assert TaskStatistics.of(features(tasks[0][:1])).near(features(tasks[0] + 20)).all()
    assert recogniser.recognise(features(tasks[0][:0])) == []
    longer = recogniser.recognise(features(tasks[2], tokens=900))
    assert [one.known for one in longer].count(False) > 30  # as far off, over many more tokens
    same = torch.ones(5, D, dtype=torch.float64)  # no variance at all
    (one,) = statistics([same])
    assert one.distances.isfinite().all()
    assert not one.near(features(same + 1)).any()


@pytest.mark.parametrize(
    ("task", "known", "unknown", "answering"),
    [
        (0, True, "base", 1),
        (1, True, "all", 2),
        (2, True, "base", None),
        (2, False, "base", 0),
        (0, False, "all", None),
        (0, False, "likeliest", 1),
        (2, False, "likeliest", None),
    ],
)
def test_who_answers_of_three(task, known, unknown, answering):
    assert Recognised(task, known).answered_by(3, unknown) == answering
