"""Dropout by hash: the mask is the token's own, at the right rate, and differs where it should."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moram_dist.adapters.dropout import TokenDropout, TokenKeys
from tests.helpers.tiny import tiny_model, tokens

CPU = torch.device("cpu")
SEEDS = [11, 2**32 - 1, 7]


def mask(seeds, length, *, p=0.3, name="layer", size=65, dtype=torch.float32):
    """What is kept, (B, T, D)."""
    keys = TokenKeys()
    keys.set(seeds, [length], CPU)
    dropout = TokenDropout(p, keys, name=name, size=size)
    return dropout(torch.ones(len(seeds), length, size, dtype=dtype)) != 0


def test_a_mask_does_not_depend_on_padding_or_on_the_other_rows():
    whole = mask(SEEDS, 9)
    assert torch.equal(mask(SEEDS, 14)[:, :9], whole)
    assert torch.equal(mask([SEEDS[2], SEEDS[0]], 9), whole[[2, 0]])
    assert torch.equal(mask(SEEDS, 9, dtype=torch.bfloat16), whole)


def test_rows_positions_elements_and_layers_differ():
    whole = mask(SEEDS, 9)
    assert not torch.equal(mask(SEEDS, 9, name="other"), whole)
    for dim in range(3):
        parts = {tuple(part.flatten().tolist()) for part in whole.unbind(dim)}
        assert len(parts) == whole.shape[dim]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate(p):
    """Overall, per token and per element: each within five standard deviations of its mean."""
    dropped = (~mask(list(range(16)), 64, p=p, size=512)).double()
    for mean in (dropped.mean(), dropped.mean((0, 1)), dropped.mean(2)):
        trials = dropped.numel() / mean.numel()
        assert ((mean - p).abs() <= 5.5 * math.sqrt(p * (1 - p) / trials)).all()


def test_tokens_and_elements_are_uncorrelated():
    p = 0.2
    centred = ((~mask(list(range(8)), 128, p=p, size=512)).double() - p).flatten(0, 1)
    for rows in (centred, centred.T):
        correlations = rows @ rows.T / rows.shape[1] / (p * (1 - p))
        correlations.fill_diagonal_(0)
        spread = 1 / math.sqrt(rows.shape[1])
        assert correlations.abs().max() < 7 * spread
        assert correlations.std() == pytest.approx(spread, rel=0.05)


def test_what_is_kept_is_scaled_and_gets_the_gradient():
    keys = TokenKeys()
    keys.set(SEEDS, [5], CPU)
    dropout = TokenDropout(0.25, keys, name="layer", size=8)
    x = torch.randn(3, 5, 8, requires_grad=True)
    y = dropout(x)
    kept = mask(SEEDS, 5, p=0.25, size=8).float()
    assert torch.equal(y, x * kept / 0.75)
    y.sum().backward()
    assert torch.equal(x.grad, kept / 0.75)
    assert torch.equal(dropout(x.flatten(0, 1)), y.flatten(0, 1))  # some models flatten tokens


def test_evaluation_and_no_dropout_return_the_tensor_itself():
    keys = TokenKeys()
    keys.set(SEEDS, [5], CPU)
    x = torch.randn(3, 5, 8)
    assert TokenDropout(0.5, keys, name="layer", size=8).eval()(x) is x
    assert TokenDropout(0.0, keys, name="layer", size=8).train()(x) is x
    assert not TokenDropout(1.0, keys, name="layer", size=8)(x).any()


def test_an_encoder_and_a_decoder_that_read_other_lengths():
    """Each gets the mask that it would get by itself; other lengths are nobody's."""
    keys = TokenKeys()
    keys.set(SEEDS, [5, 9], CPU)
    dropout = TokenDropout(0.3, keys, name="layer", size=65)
    for length in (5, 9):
        assert torch.equal(dropout(torch.ones(3, length, 65)) != 0, mask(SEEDS, length))
    assert keys.of(3 * 7) is None


def test_without_keys_it_is_torch_s_own():
    dropout, x = TokenDropout(0.5, TokenKeys(), name="layer", size=8), torch.randn(3, 5, 8)
    torch.manual_seed(1)
    found = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(found, nn.functional.dropout(x, 0.5))


def test_checkpointed_layers_drop_the_same_again():
    gradients = []
    for checkpointing in (False, True):
        model, keys = tiny_model(), TokenKeys()
        keys.set([3, 4], [7], CPU)
        for name in ("0.self_attn.q_proj", "1.mlp.up_proj"):
            linear = model.get_submodule(f"model.layers.{name}")
            dropout = TokenDropout(0.5, keys, name=name, size=linear.in_features)
            linear.register_forward_pre_hook(lambda _, args, f=dropout: (f(args[0]),))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model(input_ids=tokens(2, 7)).logits.logsumexp(-1).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))
