"""Which linears a user means, and how adapted ones take their place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.adapters.inject import adapt, find_linears
from moram_dist.registry import InputError
from tests.helpers.tiny import tiny_model, tokens
from tests.helpers.tiny_t5 import tiny_t5

LAYER = "model.layers.{}."
ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def in_both_layers(names):
    return [LAYER.format(i) + name for i in range(2) for name in names]


def test_attention_of_a_t5_is_of_all_three_kinds():
    found = find_linears(tiny_t5(), "attention")
    kinds = (
        ("encoder", "SelfAttention"),
        ("decoder", "SelfAttention"),
        ("decoder", "EncDecAttention"),
    )
    assert len(found) == 2 * 3 * 4
    for stack, attention in kinds:
        of_kind = [n for n in found if n.startswith(stack) and n.split(".")[-2] == attention]
        assert [n[-1] for n in of_kind] == [*"qkvo"] * 2
    assert not any("lm_head" in name for name in find_linears(tiny_t5(), "all-linear"))


class PlusOne(AdaptedLinear):
    def update(self, x):
        return torch.ones(self.out_features)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("attention", in_both_layers(ATTENTION)),
        ("all-linear", in_both_layers(ATTENTION + MLP)),
        ("q_proj", in_both_layers(["self_attn.q_proj"])),
        ("down_proj,q_proj", in_both_layers(["self_attn.q_proj", "mlp.down_proj"])),
        (
            r".*\.1\.mlp\.(up|down)_proj",
            [LAYER.format(1) + f"mlp.{n}_proj" for n in ("up", "down")],
        ),
        (LAYER.format(0) + "self_attn.v_proj", [LAYER.format(0) + "self_attn.v_proj"]),
    ],
)
def test_found_in_the_order_of_the_model(target, expected):
    assert find_linears(tiny_model(), target) == expected


@pytest.mark.parametrize("target", ["query", "proj", "layers.0", "attention,"])
def test_no_match_names_what_there_is(target):
    with pytest.raises(InputError, match=f"--target_modules {target!r} matches no.*down_proj, ga"):
        find_linears(tiny_model(), target)


def test_attention_of_a_model_with_other_names():
    with pytest.raises(InputError, match=r"'attention' matches no linear.* it has: 0, 2$"):
        find_linears(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "attention")


def test_bad_regular_expression():
    with pytest.raises(InputError, match=r"'\(q' is no regular expression: .*position 0"):
        find_linears(tiny_model(), "(q")


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
