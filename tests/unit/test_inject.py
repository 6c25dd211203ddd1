"""How adapted linears take the place of a model's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.adapters.growing_lora import GrowingLora
from moram_dist.adapters.inject import adapt
from moram_dist.adapters.prefix import Prefix
from moram_dist.families.targets import find_linears
from tests.helpers.architectures import tiny
from tests.helpers.tiny import tiny_model, tokens


class PlusOne(AdaptedLinear):
    def update(self, x):
        return torch.ones(self.out_features)


def test_adapt_replaces_what_is_named_and_freezes_the_rest():
    model = tiny_model()
    names = find_linears(model, "attention")
    bases = {name: model.get_submodule(name) for name in names}
    before = model(input_ids=tokens(1, 6)).logits
    layers = adapt(model, names, lambda _, base: PlusOne(base))
    assert list(layers) == names
    for name, layer in layers.items():
        assert model.get_submodule(name) is layer and layer.base is bases[name]
        assert (layer.in_features, layer.out_features) == bases[name].weight.shape[::-1]
    assert not any(p.requires_grad for p in model.parameters())
    assert not torch.equal(model(input_ids=tokens(1, 6)).logits, before)
    x = torch.randn(3, 32)
    assert torch.equal(layers[names[0]](x), bases[names[0]](x) + 1)


@pytest.mark.parametrize("bias", [True, False])
def test_an_adapted_linear_has_weight_and_bias(bias):
    base = nn.Linear(4, 6, bias=bias)
    layer = PlusOne(base)
    assert layer.weight is base.weight and layer.bias is base.bias


def lora_on(base):
    layer = GrowingLora(base, size=2, scale=0.5, dropout=nn.Identity(), prefix=Prefix())
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_()
    layer.learning = True
    return layer


def test_a_conv1d_is_a_linear_of_transposed_weight():
    conv = Conv1D(6, 4)  # 4 inputs, 6 outputs
    linear = nn.Linear(4, 6)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.T)
        linear.bias.copy_(conv.bias)
    adapted, same = lora_on(conv), lora_on(linear)
    same.load_state_dict({k: v for k, v in adapted.state_dict().items() if "lora" in k}, False)
    assert (adapted.in_features, adapted.out_features) == (4, 6)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(adapted(x), same(x))
    assert not torch.allclose(adapted(x), conv(x))


def test_a_gpt2_learns_in_its_conv1ds():
    model = tiny("GPT2")
    layers = adapt(model, find_linears(model, "attention"), lambda _, base: lora_on(base))
    assert len(layers) == 4
    model(input_ids=tokens(2, 6), labels=tokens(2, 6)).loss.backward()
    assert all(layer.lora_A.grad.abs().sum() > 0 for layer in layers.values())


class Quantised(nn.Linear):
    """As bitsandbytes' are: packed bytes for a weight, which forward makes numbers of."""

    def __init__(self, linear, compute_dtype=None):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.numbers = linear.weight.detach()
        if compute_dtype is not None:
            self.compute_dtype = compute_dtype
        self.weight = nn.Parameter(
            torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False
        )

    def forward(self, x):
        return x @ self.numbers.to(x.dtype).T


@pytest.mark.parametrize(
    ("compute", "atoms"),
    [(torch.bfloat16, torch.bfloat16), (None, torch.float32), (torch.int8, torch.float32)],
)
@pytest.mark.parametrize("seen", [torch.float32, torch.bfloat16])
def test_on_a_quantised_linear_the_update_is_in_the_compute_dtype(compute, atoms, seen):
    base = Quantised(nn.Linear(8, 6), compute)
    layer = lora_on(base)
    assert layer.lora_A.dtype == atoms and layer.lora_A.shape == (2, 8)
    x = torch.randn(3, 8).to(seen)
    assert layer(x).dtype == seen
    update = (x.to(atoms) @ layer.lora_A.T) @ (layer.lora_B * 0.5)
    torch.testing.assert_close(layer(x), base(x) + update.to(seen), rtol=0.02, atol=0.02)
