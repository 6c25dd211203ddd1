"""InfLoRA: moments of inputs, their subspaces, and a LoRA that keeps off them, on paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moram_dist.adapters import moments, subspaces
from moram_dist.adapters.moments import InputMoments, of_inputs
from moram_dist.adapters.subspaces import leading, new_directions, without
from moram_dist.methods import METHODS, inf_lora
from tests.helpers.configs import config_of
from tests.unit.test_lora_baselines import OneLinear, begin, built

# Moments.


def test_moments_are_summed_and_shared_inputs_are_multiplied_once():
    linears = nn.ModuleDict({name: nn.Linear(2, 3) for name in ("q", "k", "o")})
    taken = InputMoments(linears, moments.AT_ONCE)
    one, two = torch.tensor([[[1.0, 2.0], [0.0, 3.0]]]), torch.tensor([[[5.0, 0.0]]])
    with taken.taken():
        for x, counts in ((one, True), (two, False), (two, True)):
            taken.counting = counts
            for name, seen in (("q", x), ("k", x), ("o", x + 1)):
                assert not linears[name](seen).requires_grad
    linears["q"](one)  # is not looked at any more
    found = list(taken.over_ranks())
    assert [names for names, _ in found] == [["o"], ["q", "k"]]
    assert found[1][1].tolist() == [[1 + 25, 2], [2, 4 + 9]]
    assert found[1][1].dtype == torch.float64


def test_a_linear_that_is_called_by_name():
    """As ``nn.Linear`` can be."""
    x = torch.tensor([[2.0]])
    for name in ("sequential_lora", "inc_lora", "moram"):
        _, model = built(name)
        assert torch.equal(model.layer(input=x), model.layer(x))
        taken = InputMoments({"layer": model.layer}, moments.AT_ONCE)
        with taken.taken():
            model.layer(input=x)
        assert [total.tolist() for _, total in taken.over_ranks()] == [[[4.0]]]


class FourLinears(nn.Module):
    """q and k read the same tensor, o and d others."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"q": (2, 3), "k": (2, 3), "o": (3, 4), "d": (4, 1)}
        self.linears = nn.ModuleDict({name: nn.Linear(*size) for name, size in shapes.items()})

    def forward(self, x):
        q, k, o, d = self.linears.values()
        return d(o(q(x) + k(x)))


@pytest.mark.parametrize(
    ("most_bytes", "rounds"), [(8 * (4 + 9 + 16), 1), (8 * (4 + 16), 2), (8 * (9 + 16), 2), (0, 3)]
)
def test_moments_that_do_not_fit_together_take_more_rounds(monkeypatch, most_bytes, rounds):
    model, x = FourLinears(), torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0))
    asked, seen = [], []

    def look(limit):
        asked.append(limit)
        return 5, (model(row).sum() for row in x)

    def all_of_them():
        of = of_inputs(
            model, model.linears, look, 7, lambda names, moment: moment, lambda: seen.append(1)
        )
        return {tuple(names): moment_DD for names, moment_DD in of}

    whole = all_of_them()
    assert [*whole] == [("d",), ("o",), ("q", "k")] and asked == [7]
    monkeypatch.setattr(moments, "AT_ONCE", most_bytes)
    found = all_of_them()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[names], whole[names]) for names in whole)
    assert len(asked) == 1 + rounds and len(seen) == 2 * 5, "an example is seen once"
    assert model.training


DIAGONAL = torch.diag(torch.tensor([3.0, -2.0, 1.0, 0.0], dtype=torch.float64))


def test_leading_directions_by_hand():
    assert leading(DIAGONAL, 2).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert leading(DIAGONAL, 5).tolist() == [*torch.eye(4).tolist()[:3], [0] * 4, [0] * 4]
    # Not symmetric: the direction is that of the columns.
    turned = torch.tensor([[0.0, 0.0], [-3.0, -4.0]], dtype=torch.float64)
    assert leading(turned, 1).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("old", "energy", "new"),
    [
        ([], 9 / 14, [0]),  # squares are 9, 4, 1
        ([], 0.65, [0, 1]),
        ([], 13 / 14, [0, 1]),
        ([], 0.93, [0, 1, 2]),
        ([], 1.0, [0, 1, 2]),
        ([1], 4 / 14, []),
        ([1], 0.5, [0]),
        ([1], 0.93, [0, 2]),
        ([0, 1, 2], 1.0, []),
    ],
)
def test_new_directions_by_hand(old, energy, new):
    eye = torch.eye(4, dtype=torch.float64)
    assert new_directions(DIAGONAL, eye[old], energy - 1e-12).tolist() == eye[new].tolist()


@pytest.mark.parametrize("decay", [0.5, 0.001])
@pytest.mark.parametrize("basis_size", [0, 3])
def test_large_moments_have_the_same_directions(decay, basis_size):
    # The slow one does not get there by iteration, and is solved.
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64))[0]
    moment = q @ torch.diag((-decay * torch.arange(300.0, dtype=torch.float64)).exp()) @ q.T
    rest = without(moment, q.T[:basis_size])
    assert (subspaces._iterated(rest, lambda squares: 5) is not None) == (decay == 0.5)
    expected = q.T[basis_size : basis_size + 5]
    torch.testing.assert_close(
        (leading(rest, 5) @ expected.T).abs(), torch.eye(5).double(), atol=1e-6, rtol=0
    )
    found = new_directions(moment, q.T[:basis_size], 0.999)
    square = moment.square().sum()

    def held(rows):
        both = torch.cat([q.T[:basis_size], rows])
        return (both @ moment).square().sum() / square

    assert held(found) >= 0.999 > held(found[:-1])
    torch.testing.assert_close(found @ found.T, torch.eye(len(found)).double())


def test_without_a_subspace():
    basis = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    moment = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    found = without(moment, basis)
    torch.testing.assert_close(basis @ found, torch.zeros(1, 2).double())
    torch.testing.assert_close(
        torch.tensor([[0.8, -0.6]]).double() @ (found - moment), 0 * found[:1]
    )


# InfLoRA.


def looking(model, examples):
    """What the trainer gives: the losses of single examples, each from a pass of its own."""

    def look(limit):
        assert limit == inf_lora.EXAMPLES
        return len(examples), (model(x).sum() for x in examples)

    return look


def test_inf_lora_two_tasks_by_hand():
    settings = {"atoms_per_task": 1, "alpha": 3.0, "dropout": 0.5, "method": "inf_lora"}
    method = METHODS["inf_lora"](config_of(**settings), seed=0, num_tasks=3)
    model = OneLinear(2, 1)
    method.build(model, ["layer"])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["layer.lora_B"]
    first = looking(model, [torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
    model.train()
    method.prepare_task(0, first)
    assert model.training
    begin(method, model, 0)
    # Moments diag(100, 1): the leading direction, as long as a row that is drawn.
    third = 1 / math.sqrt(3)
    assert model.layer.lora_A.tolist() == [[pytest.approx(third), 0]]
    with torch.no_grad():
        model.layer.lora_B.fill_(2.0)
    model.eval()
    tensors = method.end_task(0, first)
    # 10,000 of 10,001 squares lie in it, more than 0.995.
    assert tensors["layer.subspace"].tolist() == [[1, 0]]
    old = torch.tensor([[10.0, 0.0]])
    assert model(old).item() == pytest.approx(3 * third * 10 * 2)

    second = looking(model, [torch.tensor([[10.0, 0.0], [5.0, 2.0]])])
    method.prepare_task(1, second)
    begin(method, model, 1)
    # Moments [[125, 10], [10, 4]], without the first row: the other direction.
    assert model.layer.lora_A.tolist() == [[0, pytest.approx(third)]]
    before = model(old).item()
    with torch.no_grad():
        model.layer.lora_B.fill_(7.0)
    assert model(old).item() == before
    assert model(torch.tensor([[0.0, 1.0]])).item() == pytest.approx(3 * third * 7)
    state = method.state_dict()

    # 15,725 of 15,841 squares are 0.9927, less than 0.995 + 0.005 / 3.
    later = method.end_task(1, second)
    assert later["layer.subspace"].tolist() == [[0, 1]]

    again = METHODS["inf_lora"](config_of(**settings), seed=0, num_tasks=3)
    restored = OneLinear(2, 1)
    again.build(restored, ["layer"])
    again.load_task(0, tensors)
    begin(again, restored, 1)
    again.load_state_dict(state)
    assert restored.layer.lora_A.tolist() == [[0, pytest.approx(third)]]
    again.end_task(1, looking(restored, []))
    assert again.subspaces["layer"].tolist() == [[1, 0]]
    again.load_task(2, later)
    assert again.subspaces["layer"].tolist() == [[1, 0], [0, 1]]


def test_a_task_nobody_looks_at_is_drawn():
    method = METHODS["inf_lora"](config_of(method="inf_lora"), seed=0, num_tasks=3)
    alone = METHODS["inc_lora"](config_of(method="inc_lora"), seed=0, num_tasks=3)
    for one in (method, alone):
        one.build(OneLinear(2, 1), ["layer"])
    found, expected = method.begin_task(0), alone.begin_task(0)
    assert found["layer.lora_A"].tolist() == expected["layer.lora_A"].tolist()
