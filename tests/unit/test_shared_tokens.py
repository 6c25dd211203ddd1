"""Prompts that lack what a task's prompts share, against counts and logarithms by hand."""

from __future__ import annotations

from math import log

import pytest
import torch

from moram_dist.recognise import RECOGNISERS, TaskStatistics, prompt_features
from moram_dist.recognise.left_out import LEVELS
from moram_dist.recognise.shared_tokens import SharedTokens, alike
from moram_dist.registry import InputError

VOCABULARY = 60
TABLE = torch.randn(VOCABULARY, 6, generator=torch.Generator().manual_seed(0))

INSTRUCTIONS = ([1, *range(2, 17)], [1, *range(17, 32)])
"""Of two tasks; all prompts begin alike."""


def prompts(instruction, count, seed):
    """An instruction, and 12 drawn tokens after it."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(32, VOCABULARY, (count, 12), generator=generator).tolist()
    return [[*instruction, *text] for text in drawn]


def features(texts):
    return prompt_features(TABLE, texts)


def memory(count=40):
    return [
        TaskStatistics.of(features(prompts(instruction, count, seed)))
        for seed, instruction in enumerate(INSTRUCTIONS)
    ]


def distinct(*texts):
    return [torch.tensor(sorted(set(text)), dtype=torch.int32) for text in texts]


def test_shared_tokens_and_their_weights_by_hand():
    # Of five prompts, all have 1, four have 2, three have 3: four are 0.8 of five.
    texts = distinct([1, 2, 3, 9, 9], [1, 2, 3], [1, 2, 3, 8], [1, 2], [1])
    shared = SharedTokens.of(texts)
    assert shared.tokens_S.tolist() == [1, 2]
    expected = torch.tensor([-log(0.5 / 6), -log(1.5 / 6)], dtype=torch.float64)
    torch.testing.assert_close(shared.weights_S, expected)


def test_what_prompts_may_lack_of_several_tasks():
    def task(tokens, weights, own):
        return SharedTokens(torch.tensor(tokens).long(), torch.tensor(weights).double(), own)

    own = torch.tensor([0, 0, 0, 0.5, 9]).double()
    tasks = [task([1, 4], [1.0, 2.0], own), task([], [], own), task([2, 4], [1.0, 9.0], own)]
    # A tenth of the weight is forgiven, and never more than three tenths.
    assert [one.limit for one in tasks] == [0.5, 0.0, 1.0]
    assert task([2, 4], [0.2, 0.8], own).limit == pytest.approx(0.3)
    found = alike(tasks, distinct([1, 2, 4, 5], [4], []))
    assert found.tolist() == [[True, True, True], [False, True, True], [False, True, False]]
    assert alike(tasks[:1], []).shape == (0, 1)


def test_features_have_the_distinct_tokens_of_each_prompt():
    found = features([[3, 1, 3], [], [7]])
    assert [one.tolist() for one in found.distinct] == [[1, 3], [], [7]]
    assert [one.tolist() for one in found.rows(slice(1, 3)).distinct] == [[], [7]]
    chosen = found.rows(torch.tensor([True, False, True]))
    assert [one.tolist() for one in chosen.distinct] == [[1, 3], [7]]


def test_the_limit_leaves_each_prompt_out():
    # Every seventh prompt lacks 3 and 4.
    texts = [t if i % 7 else t[:2] + t[4:] for i, t in enumerate(prompts([1, 2, 3, 4], 25, 0))]
    left_out, inside = torch.zeros(2, len(texts), dtype=torch.float64)
    for i, text in enumerate(texts):
        for out, parts in ((left_out, 10), (inside, None)):
            others = [set(t) for j, t in enumerate(texts) if not parts or j % parts != i % parts]
            for token in range(VOCABULARY):
                count = sum(token in other for other in others)
                if count >= 0.8 * len(others) and token not in text:
                    out[i] -= log((len(others) - count + 0.5) / (len(others) + 1))
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    expected = torch.maximum(torch.quantile(left_out, levels), torch.quantile(inside, levels))
    found = SharedTokens.of(distinct(*texts))
    torch.testing.assert_close(found.own, expected)


@pytest.mark.parametrize("every", [50, 20, 11])
def test_a_few_prompts_without_the_instruction_do_not_let_foreign_ones_pass(every):
    own = prompts(INSTRUCTIONS[0], 200, seed=0)
    bare = prompts([], 200, seed=1)
    task = TaskStatistics.of(
        features(
            [b if i % every == 0 else t for i, (t, b) in enumerate(zip(own, bare, strict=True))]
        )
    )
    recogniser = RECOGNISERS["discriminant"]([task, memory()[1]])
    assert not any(one.known for one in recogniser.recognise(features(bare)))
    again = recogniser.recognise(features(prompts(INSTRUCTIONS[0], 50, seed=9)))
    assert [one.known for one in again].count(True) > 45


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_task_of_few_prompts_does_not_take_foreign_ones(count):
    few = TaskStatistics.of(features(prompts(INSTRUCTIONS[1], count, seed=1)))
    recogniser = RECOGNISERS["discriminant"]([memory()[0], few])
    foreign = recogniser.recognise(features(prompts([], 50, seed=9)))
    assert not any(one.known for one in foreign)
    own = recogniser.recognise(features(prompts(INSTRUCTIONS[0], 50, seed=9)))
    assert [(one.task, one.known) for one in own].count((0, True)) > 45


def test_prompts_that_lack_the_same_token_in_turn_are_their_tasks():
    """Every seventh prompt lacks the seventh token: weights of folds are all a little smaller."""
    texts = [[1, 2, *range(3, 30)] if i % 7 else [1, *range(3, 30)] for i in range(700)]
    found = SharedTokens.of(distinct(*texts))
    assert alike([found], distinct(*texts)).all()


@pytest.mark.parametrize("name", [*RECOGNISERS])
def test_a_prompt_of_no_task_is_unknown_whatever_it_is_about(name):
    recogniser = RECOGNISERS[name](memory())
    for task, instruction in enumerate(INSTRUCTIONS):
        own = recogniser.recognise(features(prompts(instruction, 50, seed=9)))
        assert [(one.task, one.known) for one in own] == [(task, True)] * 50
    for foreign in ([], [1], [*range(1, 14)], [*range(12, 22)]):  # at best three of 16 are lacking
        found = recogniser.recognise(features(prompts(foreign, 50, seed=9)))
        assert not any(one.known for one in found), foreign
    assert recogniser.recognise(features([])) == []


@pytest.mark.parametrize("name", [*RECOGNISERS])
def test_only_tasks_whose_tokens_a_prompt_has_are_candidates(name):
    tasks = memory()
    recogniser = RECOGNISERS[name](tasks)
    both = features(prompts([*INSTRUCTIONS[0], *INSTRUCTIONS[1]], 20, seed=9))
    likeliest = recogniser.scores(both.mean_ND).argmax(1).tolist()
    assert [one.task for one in recogniser.recognise(both)] == likeliest
    # Drawn tokens of the other task's mean, behind the task's own instruction.
    towards = TABLE @ (tasks[1].moments["plain"].sum_M - tasks[0].moments["plain"].sum_M).float()
    body = [token for token in towards.argsort().tolist() if token >= 32][-1:] * 60
    astray = features([INSTRUCTIONS[0] + body])
    assert recogniser.scores(astray.mean_ND).argmax(1).tolist() == [1]
    assert [one.task for one in recogniser.recognise(astray)] == [0]


def test_statistics_of_texts_survive_their_file():
    before = memory()[0]
    after = TaskStatistics.from_tensors(before.tensors(), "a file")
    for name in ("own", "tokens_S", "weights_S"):
        assert torch.equal(getattr(after.shared, name), getattr(before.shared, name))
    assert torch.equal(after.distances, before.distances)


def test_a_prompt_must_be_near_too():
    task = TaskStatistics.of(features(prompts([1, 2], 40, seed=0)))
    recogniser = RECOGNISERS["discriminant"]([task, memory()[1]])
    own = recogniser.recognise(features(prompts([1, 2], 40, seed=0)))
    assert [one.known for one in own].count(True) > 35
    afar = recogniser.recognise(features([[1, 2, *[token] * 40] for token in range(32, 52)]))
    assert [(one.task, one.known) for one in afar] == [(0, False)] * 20
    lacking = recogniser.recognise(features(prompts([1, 3], 40, seed=0)))
    assert not any(one.known for one in lacking)


def test_prompts_that_share_too_little_are_measured_by_distance():
    texts = prompts(INSTRUCTIONS[0], 40, seed=0)
    mixed = TaskStatistics.of(features([t if i % 5 else t[16:] for i, t in enumerate(texts)]))
    assert mixed.shared is None, "a fifth lacks the instruction"
    assert "shared.own" not in mixed.tensors()
    assert TaskStatistics.of(features(prompts([], 40, seed=0))).shared is None
    assert memory()[0].shared is not None


def test_a_memory_of_an_earlier_version_measures_distances():
    texts = features(prompts(INSTRUCTIONS[0], 40, seed=0))
    pictures = type(texts)(texts.mean_ND, texts.tokens_N)
    old = TaskStatistics.from_tensors(TaskStatistics.of(pictures).tensors(), "a file")
    assert old.shared is None
    found = RECOGNISERS["discriminant"]([old]).recognise(texts)
    assert [one.known for one in found] == old.near(texts).tolist()
    assert old.near(texts).double().mean() > 0.9
    foreign = features(prompts([1, 17, 18, 19], 40, seed=9))
    found = RECOGNISERS["discriminant"]([old, memory()[1]]).recognise(foreign)
    assert [one.known for one in found if one.task == 1].count(True) == 0
    near = old.near(foreign).tolist()
    assert all(near[i] == one.known for i, one in enumerate(found) if one.task == 0)


@pytest.mark.parametrize(
    "change",
    [{"shared.tokens": None}, {"shared.weights": torch.zeros(1)}, {"shared.own": torch.zeros(2)}],
)
def test_a_file_without_all_of_the_shared_tokens(change):
    tensors = memory()[0].tensors() | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(InputError, match=r"^a file holds no statistics of prompts: "):
        TaskStatistics.from_tensors(tensors, "a file")
