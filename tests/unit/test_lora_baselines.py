"""What makes each baseline with parameters or a loss of its own, with numbers to check on paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moram_dist.methods import METHODS
from moram_dist.methods.ewc import FISHER_EXAMPLES
from moram_dist.methods.lwf import divergence
from moram_dist.methods.method import ForwardOutput
from moram_dist.methods.slao import orthonormal
from moram_dist.registry import InputError
from tests.helpers.configs import config_of

LN3 = math.log(3)


class OneLinear(nn.Module):
    """A model that is one linear layer, all weights 0."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(d_in, d_out, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x):
        return self.layer(x)


def built(name, d_in=1, d_out=1, **settings):
    """Method and model; LoRA of one term, scale 1, without dropout unless asked."""
    settings = {"atoms_per_task": 1, "alpha": 1.0, "dropout": 0.0} | settings
    method = METHODS[name](config_of(method=name, **settings), seed=0, num_tasks=3)
    model = OneLinear(d_in, d_out)
    method.build(model, ["layer"])
    return method, model


def begin(method, model, i, A=None, B=None):
    """Start task i, with given values if any, as the engine would."""
    values = method.begin_task(i)
    if A is not None:
        values |= {"layer.lora_A": torch.tensor(A), "layer.lora_B": torch.tensor(B)}
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)


def no_look(limit):
    raise AssertionError("nobody asked")


NOTHING = ForwardOutput(
    torch.zeros(1, 1, 1), torch.zeros(1, 1).long(), 1.0, again=lambda: no_look(0)
)


# inc_lora


def test_inc_lora_sums_all_tasks_and_freezing_changes_no_bit():
    method, model = built("inc_lora", d_in=2, d_out=1, alpha=3.0)
    x = torch.tensor([[1.0, 2.0]])
    begin(method, model, 0, A=[[1.0, 1.0]], B=[[2.0]])
    assert model(x).item() == 3 * 2 * 3  # scale 3, A x = 3
    tensors = method.end_task(0, no_look)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "layer.lora_A": [[1.0, 1.0]],
        "layer.lora_B": [[6.0]],
    }
    assert model(x).item() == 18
    begin(method, model, 1)
    assert model(x).item() == 18  # B starts at 0
    begin(method, model, 1, A=[[0.0, 1.0]], B=[[-1.0]])
    assert model(x).item() == 18 - 3 * 2
    model(x).backward()
    assert model.layer.lora_A.grad.tolist() == [[-3.0, -6.0]]  # scale B x
    assert not model.layer.older_A.requires_grad
    method.end_task(1, no_look)
    assert model(x).item() == 12

    again, restored = built("inc_lora", d_in=2, d_out=1, alpha=3.0)
    again.load_task(0, tensors)
    assert restored(x).item() == 18


# slao


def test_slao_three_tasks_by_hand():
    method, model = built("slao", d_in=2, d_out=1, alpha=2.0)
    begin(method, model, 0, A=[[3.0, 4.0]], B=[[2.0]])
    method.end_task(0, no_look)
    x = torch.tensor([[1.0, 1.0]])
    assert model(x).item() == 2 * 7 * 2  # scale 2
    fresh = method.begin_task(1)
    # A direction of length 1, and B as it was trained.
    torch.testing.assert_close(fresh["layer.lora_A"], torch.tensor([[0.6, 0.8]]))
    assert fresh["layer.lora_B"].tolist() == [[2.0]]
    begin(method, model, 1, A=[[0.0, -2.0]], B=[[5.0]])
    tensors = method.end_task(1, no_look)
    assert tensors["layer.lora_A"].tolist() == [[0.0, -2.0]]
    assert tensors["layer.trained_B"].tolist() == [[5.0]]
    second = 2 + 3 / math.sqrt(2)
    assert tensors["layer.lora_B"].item() == pytest.approx(second)
    assert model(x).item() == pytest.approx(2 * -2 * second)

    again, restored = built("slao", d_in=2, d_out=1, alpha=2.0)
    again.load_task(1, tensors)
    for one, other in ((method, model), (again, restored)):
        fresh = one.begin_task(2)
        assert fresh["layer.lora_A"].tolist() == [[0.0, -1.0]]
        assert fresh["layer.lora_B"].tolist() == [[5.0]]
        begin(one, other, 2, A=[[1.0, 0.0]], B=[[-1.0]])
        third = second + (-1 - second) / math.sqrt(3)
        assert one.end_task(2, no_look)["layer.lora_B"].item() == pytest.approx(third)


def test_orthonormal_rows_span_the_same():
    A = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = orthonormal(A)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(A @ rows.T @ rows, A)
    # R = A rows^T, transposed, is upper triangular with a positive diagonal: Gram and Schmidt.
    R = rows @ A.T
    torch.testing.assert_close(R, R.triu())
    assert (R.diagonal() > 0).all()
    assert orthonormal(A.bfloat16()).dtype == torch.bfloat16


# o_lora


def test_o_lora_two_tasks_by_hand():
    method, model = built("o_lora", d_in=2, d_out=1, atoms_per_task=2, orthogonal_weight=0.5)
    begin(method, model, 0, A=[[1.0, 2.0], [0.0, 1.0]], B=[[1.0], [1.0]])
    assert method.penalty(NOTHING) == 0
    method.end_task(0, no_look)
    begin(method, model, 1, A=[[3.0, -1.0], [2.0, -1.0]], B=[[1.0], [1.0]])
    # A_old A^T = [[1, 0], [-1, -1]]: absolute values sum to 3, and half of that counts.
    penalty = method.penalty(NOTHING)
    assert penalty.item() == 1.5
    penalty.backward()
    # Row 0 of A meets both old rows, signs + and -; row 1 only the second: the first gives 0.
    assert model.layer.lora_A.grad.tolist() == [[0.5, 0.5], [0.0, -0.5]]
    assert model.layer.lora_B.grad is None


# ewc


def logistic(model, examples):
    """What the trainer gives to ``end_task``: -log p(y | x) of each example, p = sigmoid(b a x)."""

    def losses():
        for x, y in examples:
            sign = 1.0 if y else -1.0
            yield nn.functional.softplus(-sign * model(torch.tensor([[x]]))).squeeze()

    def look(limit):
        assert limit == FISHER_EXAMPLES
        return len(examples), losses()

    return look


def test_ewc_of_two_logistic_examples_by_hand():
    method, model = built("ewc", ewc_weight=4.0)
    begin(method, model, 0, A=[[1.0]], B=[[LN3]])
    assert method.penalty(NOTHING) == 0
    # x = 1, y = 1: p = 3/4, so d log p / d(ab) = 1/4.  x = 2, y = 0: p = 9/10, so -9/10 * 2.
    tensors = method.end_task(0, logistic(model, [(1.0, True), (2.0, False)]))
    along = (0.25**2 + 1.8**2) / 2
    assert along == pytest.approx(1.65125)
    assert tensors["layer.fisher_B"].item() == pytest.approx(along)  # d(ab)/db = a = 1
    assert tensors["layer.fisher_A"].item() == pytest.approx(along * LN3**2)
    assert model.layer.lora_A.grad is None

    begin(method, model, 1)
    assert method.penalty(NOTHING).item() == 0
    with torch.no_grad():
        model.layer.lora_B += 0.1
    penalty = method.penalty(NOTHING)
    assert penalty.item() == pytest.approx(4 / 2 * along * 0.01, rel=1e-5)
    penalty.backward()
    assert model.layer.lora_B.grad.item() == pytest.approx(4 * along * 0.1, rel=1e-5)

    # The second task: x = 1, y = 0, at z = LN3 + 0.1. Fisher adds up, the anchor moves on.
    second = method.end_task(1, logistic(model, [(1.0, False)]))
    p = 1 / (1 + math.exp(-(LN3 + 0.1)))
    assert second["layer.fisher_B"].item() == pytest.approx(p**2)  # the task's own
    assert method.penalty(NOTHING).item() == 0
    with torch.no_grad():
        model.layer.lora_B += 0.1
    assert method.penalty(NOTHING).item() == pytest.approx(2 * (along + p**2) * 0.01, rel=1e-5)

    again, restored = built("ewc", ewc_weight=4.0)
    again.load_task(0, tensors)
    again.load_task(1, second)
    with torch.no_grad():
        restored.layer.lora_B += 0.1
    assert again.penalty(NOTHING).item() == method.penalty(NOTHING).item()


# lwf


def test_divergence_by_hand():
    before = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    now = torch.tensor([[2 * LN3, 0.0], [5.0, 5.0]], requires_grad=True)
    # At temperature 2: (1/2, 1/2) against (3/4, 1/4) is ln(4/3) / 2; the other row is equal.
    found = divergence(before, now, 2.0)
    assert found.item() == pytest.approx(math.log(4 / 3) / 2)
    found.backward()
    assert torch.allclose(now.grad, torch.tensor([[0.125, -0.125], [0.0, 0.0]]))  # (q - p) / T
    assert divergence(now.detach(), before, 2.0).item() != pytest.approx(found.item())


def test_lwf_asks_the_model_before_the_task_and_at_answers_only():
    method, model = built("lwf", d_in=1, d_out=2, dropout=0.5, distill_weight=3.0)
    x = torch.ones(1, 2, 1)
    begin(method, model, 0, A=[[1.0]], B=[[0.0, 0.0]])
    assert method.penalty(NOTHING) == 0
    tensors = method.end_task(0, no_look)
    begin(method, model, 1)
    with torch.no_grad():
        model.layer.lora_A.fill_(2 * LN3)
        model.layer.lora_B.copy_(torch.tensor([[1.0, 0.0]]))
    model.eval()
    logits = model(x)
    model.train()
    asked = []

    def again():
        asked.append(model(x))
        return asked[-1]

    seen = ForwardOutput(logits, torch.tensor([[1, -100]]), weight=0.25, again=again)
    assert method.penalty(seen).item() == pytest.approx(3 * 0.25 * math.log(4 / 3) / 2)
    assert asked[0].tolist() == [[[0.0, 0.0], [0.0, 0.0]]]  # the old B, whatever was dropped
    model.eval()
    assert torch.equal(model(x), logits)  # the new adapter is back

    again_method, _ = built("lwf", d_in=1, d_out=2, dropout=0.5, distill_weight=3.0)
    again_method.load_task(0, tensors)
    assert {n: [t.tolist() for t in ab] for n, ab in again_method.before.items()} == {
        "layer": [[[1.0]], [[0.0, 0.0]]]
    }


def test_the_model_before_is_asked_without_dropout():
    method, model = built("lwf", dropout=0.5)
    begin(method, model, 0, A=[[1.0]], B=[[1.0]])
    method.end_task(0, no_look)
    model.train()
    x = torch.ones(1, 400, 1)
    assert (model(x) == 0).any()
    asked = []

    def again():
        asked.append(model(x))
        return asked[-1]

    method.penalty(ForwardOutput(torch.ones(1, 400, 1), torch.zeros(1, 400).long(), 1.0, again))
    assert torch.equal(asked[0], x)


# moe_lora


@pytest.mark.parametrize(
    ("method", "settings", "complaint"),
    [
        ("moe_lora", {"top_experts": 1}, "--top_experts must be >= 2, got 1: the weight of"),
        ("ewc", {"ewc_weight": -1.0}, "--ewc_weight must be >= 0, got -1.0"),
        ("o_lora", {"orthogonal_weight": math.nan}, "--orthogonal_weight must be >= 0, got nan"),
        ("lwf", {"distill_weight": -0.5}, "--distill_weight must be >= 0, got -0.5"),
        ("lwf", {"distill_temperature": 0.0}, "--distill_temperature must be > 0, got 0.0"),
    ],
)
def test_settings_that_cannot_be_meant(method, settings, complaint):
    with pytest.raises(InputError, match=complaint):
        METHODS[method].Config(method=method, **settings)
