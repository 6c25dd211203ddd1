"""MoRAM in a CLIP, with X-TAIL's published settings, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moram_dist.methods import METHODS
from tests.helpers.configs import config_of
from tests.helpers.tiny_clip import tiny_clip

PUBLISHED = {
    "target_modules": "all-linear",
    "atoms_per_task": 16,
    "alpha": 16,
    "top_k": 16,
    "temperature": 0.01,
    "threshold": 0.2,
    "dropout": 0,
}
INPUTS = {
    "input_ids": torch.tensor([[62, 5, 9, 63], [62, 11, 63, 63], [62, 3, 1, 63]]),
    "pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double(),
}


def formula(x, keys, values, threshold):
    """The published layer: scores, their share of all scores, the best 16, a softmax, a sum."""
    scores = x @ keys.T
    relevance = scores / scores.norm(dim=-1, keepdim=True)
    best = relevance.topk(16, dim=-1)
    weights = torch.zeros_like(scores)
    weights.scatter_(-1, best.indices, (best.values / 0.01).softmax(-1))
    weights = weights.masked_fill(relevance < threshold, 0)
    return (weights * scores) @ values


class Published(nn.Module):
    """A frozen linear beside atoms, written as plainly as can be."""

    def __init__(self, linear, keys, values):
        super().__init__()
        self.linear = linear
        self.keys, self.values = nn.Parameter(keys), nn.Parameter(values)

    def forward(self, x):
        threshold = 0.0 if self.training else 0.2
        return self.linear(x) + formula(x, self.keys, self.values, threshold)


def twins():
    """A model with a frozen and an active task, and the same by the formula."""
    ours, theirs = tiny_clip().double(), tiny_clip().double().requires_grad_(False)
    method = METHODS["moram"](config_of("moram", **PUBLISHED), seed=0)
    method.build(ours)
    generator = torch.Generator().manual_seed(1)
    for i in range(2):
        for name, value in method.begin_task(i).items():
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.1
            ours.get_parameter(name).data.copy_(drawn)
        if i == 0:
            tensors = method.end_task(0, lambda _: None)
    pairs = {}
    for names, memory in method.memories.items():
        for k, name in enumerate(names):
            keys, values = memory.active(k)
            both = [
                torch.cat([tensors[f"{name}.{kind}"], own.detach()])
                for kind, own in (("keys", keys), ("values", values))
            ]
            parent, _, last = name.rpartition(".")
            layer = Published(theirs.get_submodule(name), *both)
            setattr(theirs.get_submodule(parent), last, layer)
            pairs[name] = (layer, keys, values)
    return ours, theirs, pairs


@pytest.mark.parametrize("training", [False, True])
def test_an_adapted_clip_is_the_formula(training):
    ours, theirs, pairs = twins()
    assert len(pairs) == 24
    logits = []
    for model in (ours.train(training), theirs.train(training)):
        found = model(**INPUTS).logits_per_image
        logits.append(found)
        if training:
            F.cross_entropy(found, torch.tensor([0, 2])).backward()
    assert torch.allclose(*logits, rtol=1e-12, atol=1e-12)
    assert (logits[0] - tiny_clip().double()(**INPUTS).logits_per_image).abs().max() > 0.1
    for layer, keys, values in pairs.values() if training else ():
        for whole, own in ((layer.keys, keys), (layer.values, values)):
            assert torch.allclose(whole.grad[16:], own.grad, rtol=1e-9, atol=1e-12)
