"""The Triton kernels of mixtures against torch; run as ``kernel_parity`` is."""

from __future__ import annotations

import pytest
import torch

from moram_dist.atoms import reference, routing
from moram_dist.atoms.backend import backend
from moram_dist.atoms.routing import Mixture, Routing
from tests.unit.kernel_parity import (  # noqa: F401
    DEVICE,
    DTYPES,
    SIZES,
    few_numbers,
    in_torch,
    launched,
    random,
)


@pytest.mark.parametrize("numbers", [few_numbers, random])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_atoms", "top_k"), SIZES[1:])
def test_mixture_of_all(num_atoms, top_k, dtype, numbers, in_torch, launched):  # noqa: F811
    score_TN = numbers(4, num_atoms, dtype=dtype)
    score_TN[1] = 0
    asked = Routing(top_k=top_k, temperature=0.03, threshold=0.05)
    found = routing.of_all(score_TN, asked)
    assert launched == ["choose"]
    expected = in_torch(routing.of_all, score_TN, asked)
    assert torch.equal(found.index_TK, expected.index_TK)
    assert torch.equal(found.score_TK, expected.score_TK)
    torch.testing.assert_close(found, expected)
    again = routing.weigh(found.index_TK, found.score_TK, found.norm_T1, asked)
    torch.testing.assert_close(again, found)


def mixture(num_tokens, num_kept, dtype):
    """Some atoms silent, one token of zeros."""
    score_TK = random(num_tokens, num_kept, dtype=dtype)
    score_TK[1] = 0
    norm_T1 = 2 * score_TK.square().sum(-1, keepdim=True).sqrt()
    norm_T1[1] = torch.inf
    index_TK = torch.arange(num_kept, dtype=torch.int32, device=DEVICE)
    index_TK = index_TK.expand(num_tokens, num_kept)
    asked = Routing(top_k=num_kept, temperature=0.03, threshold=0.05)
    return index_TK, score_TK, norm_T1, asked


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_kept", [1, 3, 16, 64])
def test_weights(num_kept, dtype, in_torch, launched):  # noqa: F811
    given = mixture(300, num_kept, dtype)
    found, expected = routing.weigh(*given), in_torch(routing.weigh, *given)
    assert launched == ["weigh"]
    torch.testing.assert_close(found, expected)
    assert (found.spoken_TK[0] == 0).any() or num_kept == 1  # so the threshold is seen
    assert (found.weight_TK[1] == 0).all()
    again = routing.weigh(*given)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_kept", [1, 3, 16, 64])
def test_gradient_of_scores(num_kept, dtype, in_torch, launched):  # noqa: F811
    mix: Mixture = in_torch(routing.weigh, *mixture(300, num_kept, dtype))
    u_TK = random(300, num_kept, dtype=dtype, seed=1)
    given = (mix.score_TK, mix.relevance_TK, mix.spoken_TK, u_TK)
    totals_T2 = backend(u_TK).sums(*given)
    torch.testing.assert_close(totals_T2, reference.sums(*given))
    given = (*mix[1:], u_TK, totals_T2, 0.03)
    found = backend(u_TK).score_gradient(*given)
    torch.testing.assert_close(found, reference.score_gradient(*given))
    assert launched == ["sums", "score_gradient"]
