"""Which linears a user means, on whatever architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from moram_dist.families.targets import choose_targets, find_linears, unreached
from moram_dist.registry import InputError
from tests.helpers.architectures import CONFIGS, bare
from tests.helpers.tiny import SIZES, VOCABULARY, tiny_model
from tests.helpers.tiny_t5 import tiny_t5

LAYER = "model.layers.{}."
ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def in_both_layers(names):
    return [LAYER.format(i) + name for i in range(2) for name in names]


def last_names(model, target):
    return {name.rpartition(".")[2] for name in find_linears(model, target)}


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


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("attention", in_both_layers(ATTENTION)),
        ("all-linear", in_both_layers(ATTENTION + MLP)),
        ("q_proj", in_both_layers(["self_attn.q_proj"])),
        ("down_proj,q_proj", in_both_layers(["self_attn.q_proj", "mlp.down_proj"])),
        (" q_proj , q_proj", in_both_layers(["self_attn.q_proj"])),
        (
            r".*\.1\.mlp\.(up|down)_proj",
            [LAYER.format(1) + f"mlp.{n}_proj" for n in ("up", "down")],
        ),
        (r"model\.layers\.\d{1,2}\.self_attn\.q_proj", in_both_layers(["self_attn.q_proj"])),
        (LAYER.format(0) + "self_attn.v_proj", [LAYER.format(0) + "self_attn.v_proj"]),
    ],
)
def test_found_in_the_order_of_the_model(target, expected):
    assert find_linears(tiny_model(), target) == expected


@pytest.mark.parametrize("target", ["attention,", ",q_proj", "q_proj, ,v_proj", "", " "])
def test_an_empty_name_in_a_list_is_refused(target):
    with pytest.raises(InputError, match="has an empty name in its list"):
        find_linears(tiny_model(), target)


@pytest.mark.parametrize("target", ["query", "proj", "layers.0", ".*q_proj,.*v_proj"])
def test_no_match_names_what_there_is(target):
    with pytest.raises(InputError, match=r"--target_modules .* matches no.*down_proj, ga"):
        find_linears(tiny_model(), target)


@pytest.mark.parametrize(
    ("target", "wrong", "meant"),
    [
        ("q_proj,vproj", "vproj", "v_proj"),
        ("v_porj,q_proj", "v_porj", "v_proj"),
        ("q_proj,.*v_proj", r"\.\*v_proj", "v_proj"),
        ("q_proj,attention", "attention", None),
    ],
)
def test_a_name_in_a_list_that_matches_nothing_is_refused(target, wrong, meant):
    hint = f"did you mean '{meant}'.; it has: down" if meant else "it has: down_proj"
    with pytest.raises(InputError, match=rf"'{wrong}' is no linear layer of Llama.*; {hint}"):
        find_linears(tiny_model(), target)


def test_attention_of_a_model_that_has_none():
    with pytest.raises(InputError, match=r"'attention' matches no linear.* it has: 0, 2$"):
        find_linears(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "attention")
    with pytest.raises(InputError, match=r"of Mamba2ForCausalLM; it has: in_proj; not adap"):
        find_linears(bare("Mamba2"), "attention")


def test_bad_regular_expression():
    with pytest.raises(InputError, match=r"'\(q' is no regular expression: .*position 0"):
        find_linears(tiny_model(), "(q")


SEPARATE = {"q_proj", "k_proj", "v_proj"}


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("Phi", SEPARATE | {"dense"}),
        ("Phi3", {"qkv_proj", "o_proj"}),
        ("GPT2", {"c_attn", "c_proj"}),
        ("GPTNeoX", {"query_key_value", "dense"}),
        ("OPT", SEPARATE | {"out_proj"}),
        ("Bloom", {"query_key_value", "dense"}),
        ("Falcon", {"query_key_value", "dense"}),
        ("GPTJ", SEPARATE | {"out_proj"}),
        ("DeepseekV3", {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}),
        ("GraniteMoeHybrid", SEPARATE | {"o_proj"}),
        ("Mpt", {"Wqkv", "out_proj"}),
        ("CTRL", {"Wq", "Wk", "Wv", "dense"}),
        ("Bert", {"query", "key", "value", "dense"}),
    ],
)
def test_attention_is_all_of_attention_whatever_it_is_called(name, attention):
    model = bare(name)
    found = find_linears(model, "attention")
    assert last_names(model, "attention") == attention
    assert all("attn" in n or "attention" in n for n in found)
    assert not any(".mlp." in n or ".ffn." in n for n in found)


def test_all_linear_leaves_out_head_routers_and_stacks_of_experts():
    model = bare("Qwen2Moe", num_experts=4, moe_intermediate_size=16)
    targets = choose_targets(model, "all-linear")
    assert not {n for n in targets.names if n.endswith(("lm_head", "gate"))}
    assert targets.lines[0].endswith("left as they are: shared_expert_gate")
    assert "not adaptable: gate_up_proj, experts.down_proj (no linear)" == targets.lines[-1]


def test_the_line_says_what_is_adapted_and_what_is_not():
    assert choose_targets(tiny_model(), "attention").lines == (
        "adapted: 8 linears of attention (q_proj, k_proj, v_proj, o_proj); "
        "left as they are: gate_proj, up_proj, down_proj",
    )
    assert choose_targets(bare("GPT2"), "attention").lines == (
        "adapted: 4 linears of attention (c_attn, attn.c_proj); left as they are: c_fc, mlp.c_proj",
    )


def llava():
    text = LlamaConfig(vocab_size=VOCABULARY, **SIZES)
    seen = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    with torch.device("meta"):
        return LlavaForConditionalGeneration(LlavaConfig(vision_config=seen, text_config=text))


@pytest.mark.parametrize("target", ["attention", "all-linear", "q_proj", ".*q_proj"])
def test_a_vision_tower_is_never_adapted(target):
    targets = choose_targets(llava(), target)
    assert targets.names and all(".language_model." in name for name in targets.names)
    assert (
        "vision_tower, multi_modal_projector (no part of the language model)" in targets.lines[-1]
    )


def test_what_only_the_tower_has_is_refused_by_name():
    with pytest.raises(InputError, match=r"fc1 of Llava.* cannot be adapted: no part of the lang"):
        find_linears(llava(), "q_proj,fc1")
    with pytest.raises(InputError, match=r"lm_head of Llama.* cannot be adapted: the output head"):
        find_linears(tiny_model(), "lm_head")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("Mamba", {"x_proj", "dt_proj", "out_proj"}),
        ("Mamba2", {"out_proj"}),
        ("Jamba", {"dt_proj"}),
        ("GraniteMoeHybrid", {"out_proj"}),
    ],
)
def test_linears_whose_weight_a_kernel_reads_are_left_out_by_name(name, read):
    model = bare(name)
    assert not last_names(model, "all-linear") & read
    line = choose_targets(model, "all-linear").lines[1]
    left = line.partition("not adaptable: ")[2].partition(" (its block reads its weight)")[0]
    assert {*left.split(", ")} == read
    with pytest.raises(InputError, match="cannot be adapted: its block reads its weight"):
        find_linears(model, ",".join(sorted(read)))


class Block(nn.Module):
    """Calls one of its linears, and reads another."""

    def __init__(self):
        super().__init__()
        self.called, self.read, self.multiplied = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = self.called(x.to(self.called.weight.dtype))
        if isinstance(self.called.bias, torch.Tensor) and self.called.bias is not None:
            x = F.linear(x, self.multiplied.weight[:, :4], self.multiplied.bias)
        return torch.addmm(self.read.bias, x, self.read.weight)


def test_to_look_at_a_weight_is_not_to_use_it():
    assert find_linears(nn.Sequential(Block()), "all-linear") == ["0.called", "0.multiplied"]


def test_the_output_projection_of_torch_own_attention_is_read():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "mlp": nn.Linear(8, 8)})
    with pytest.raises(InputError, match=r"out_proj \(its block .*in_proj_weight \(no linear\)"):
        find_linears(model, "attention")


@pytest.mark.parametrize("name", sorted({*CONFIGS} - {"Llama"}))
def test_a_text_reaches_all_that_is_adapted(name):
    model = bare(name)
    assert not unreached(model) & {*find_linears(model, "all-linear")}


def test_what_no_text_reaches_is_left_out():
    assert unreached(tiny_model().to("meta")) == set()
    model = bare("Bloom", slow_but_exact=True, pretraining_tp=2)
    never = unreached(model)
    assert {name.rpartition(".")[2] for name in never} == {"dense", "dense_4h_to_h"}
    targets = choose_targets(model, "attention", is_skeleton=True)
    assert {name.rpartition(".")[2] for name in targets.names} == {"query_key_value"}
    assert "not adaptable: dense, dense_4h_to_h (no text reaches it)" == targets.lines[-1]


def test_where_the_pass_needs_numbers_nothing_is_known():
    model = bare("Llama")
    model.model.norm.forward = lambda x: x[: int(x.sum().tolist())].nonzero()
    assert unreached(model) == set()
