"""A LoRA as atoms: what a memory answers with them, from the formula of MoRAM."""

from __future__ import annotations

import math

import pytest
import torch

from moram_dist.use.lora_atoms import SAME_WEIGHTS, atoms_of, cosines, terms_of


def recalled(x, atoms, top_k, temperature):
    """What a memory adds, token by token, from the formula of MoRAM."""
    keys, values = (part.double() for part in atoms)
    rows = []
    for token in x:
        scores = keys @ token
        best = sorted(range(len(keys)), key=lambda i: (-float(scores[i]), i))[:top_k]
        exponents = [math.exp(float(scores[i] / scores.norm()) / temperature) for i in best]
        weights = [e / sum(exponents) for e in exponents]
        rows.append(
            sum(w * scores[i] * values[i] for w, i in zip(weights, best, strict=True)).tolist()
        )
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (3, 3), (2, 5), (6, 6)])
def test_atoms_answer_like_the_lora(rank, size):
    """Also with fewer ranks than atoms, and with more than the linear has outputs."""
    generator = torch.Generator().manual_seed(rank)
    A, B = (torch.randn(rank, n, generator=generator) for n in (7, 5))
    x = torch.randn(20, 7, generator=generator, dtype=torch.float64)
    keys, values = atoms_of((A, B), size)
    assert keys.shape == (2 * size, 7) and values.shape == (2 * size, 5)
    expected = x @ A.double().T @ B.double()
    found = recalled(x, (keys, values), size, SAME_WEIGHTS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    cold = recalled(x, (keys, values), size, 0.03)
    assert size == 1 or (cold - expected).abs().max() > 0.1
    assert float(keys.square().sum()) == pytest.approx(2 * size, rel=1e-5)
    back_A, back_B = terms_of((keys, values))
    torch.testing.assert_close(back_A.T @ back_B, A.T @ B, atol=1e-5, rtol=1e-5)


def test_one_strong_direction_is_in_all_atoms():
    """By hand: B A = 8 e_1 e_1^T and 4 atoms: keys (1), values (8), as each weighs a quarter."""
    A, B = torch.zeros(2, 3), torch.zeros(2, 3)
    A[0, 0], B[0, 0] = 2.0, 4.0
    keys, values = atoms_of((A, B), 4)
    sign = keys[0, 0].sign()
    torch.testing.assert_close(keys[:4] * sign, torch.eye(3)[:1].expand(4, 3))
    torch.testing.assert_close(values[:4] * sign, 8 * torch.eye(3)[:1].expand(4, 3))
    assert torch.equal(keys[4:], -keys[:4]) and torch.equal(values[4:], -values[:4])


def test_a_linear_that_a_lora_leaves_alone_has_silent_atoms():
    keys, values = atoms_of((torch.zeros(1, 3), torch.zeros(1, 2)), 2)
    assert torch.equal(keys, torch.zeros(4, 3)) and torch.equal(values, torch.zeros(4, 2))


def test_cosines():
    root = 0.5**0.5
    expected = torch.tensor([[root, root], [root, -root]], dtype=torch.float64)
    torch.testing.assert_close(cosines(2), expected)
    for size in (1, 3, 8):
        matrix = cosines(size)
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(size, dtype=torch.float64))
        torch.testing.assert_close(matrix[:, 0], matrix.new_full((size,), size**-0.5))
