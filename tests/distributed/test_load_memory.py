"""``load_memory`` where it must refuse. What it restores is compared in ``test_growth``."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import warnings

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from moram_dist import load_memory
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.methods import METHODS
from moram_dist.models.identity import fingerprint_of
from moram_dist.models.language_model import DEMO_BASE
from moram_dist.registry import InputError
from tests.helpers.configs import config_of
from tests.helpers.tiny import save_tiny_model, tiny_model, tokens

CONFIG = config_of(atoms_per_task=4, alpha=10, dropout=0, target_modules="q_proj")


@pytest.fixture
def run(tmp_path):
    """A run of two tasks, its atoms drawn by hand."""
    return made(tmp_path / "run", tiny_model())


def made(run, model):
    method = METHODS["moram"](CONFIG, seed=0)
    method.build(model)
    files = MemoryFiles(run / "memory")
    manifest = Manifest(
        method="moram",
        settings=dataclasses.asdict(CONFIG),
        base={"name": "tiny", "fingerprint": "f"},
        modules=list(method.layers),
    )
    for i in range(2):
        with torch.no_grad():
            for name, value in method.begin_task(i).items():
                model.get_parameter(name).copy_(value + 0.1 * i + 0.1)
        manifest = files.publish(manifest, f"task {i}", method.end_task(i, lambda: []))
    return run


def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens(2, 8)).logits


def test_upto_is_a_prefix(run):
    found = [logits(load_memory(tiny_model(), run, upto=upto)) for upto in (0, 1, 2)]
    assert torch.equal(found[0], logits(tiny_model()))
    assert not torch.equal(found[1], found[0]) and not torch.equal(found[2], found[1])
    assert torch.equal(logits(load_memory(tiny_model(), run / "memory")), found[2])


def test_the_restored_model_is_ready_to_answer(run):
    model = load_memory(tiny_model().train().bfloat16(), run)
    assert not model.training
    assert not any(p.requires_grad and p.abs().max() > 0 for p in model.parameters())
    assert model.get_submodule("model.layers.0.self_attn.q_proj.memory.bank").num_atoms == 8
    assert logits(model).dtype == torch.bfloat16
    assert model.generate(tokens(1, 4), max_new_tokens=2, eos_token_id=None).shape == (1, 6)


def test_no_memory(tmp_path):
    with pytest.raises(InputError, match=r"memory\.json does not exist: no memory was published"):
        load_memory(tiny_model(), tmp_path)


@pytest.mark.parametrize("upto", [3, -1])
def test_not_so_many_tasks(run, upto):
    with pytest.raises(InputError, match=rf"upto={upto}, but .*memory\.json holds 2 tasks"):
        load_memory(tiny_model(), run, upto=upto)


def test_a_changed_file(run):
    path = run / "memory" / "001_task_1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"001_task_1\.safetensors has 2,447 bytes"):
        load_memory(tiny_model(), run)
    load_memory(tiny_model(), run, upto=1)  # what is not asked for is not read


def test_another_model(run):
    with pytest.raises(InputError, match=r"belongs to tiny: this Sequential has no linear model\."):
        load_memory(nn.Sequential(nn.Linear(4, 4)), run)


def test_a_model_of_the_same_names_and_other_sizes(run):
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.q_proj = nn.Linear(16, 32)
    complaint = (
        r"000_task_0\.safetensors: model\.layers\.0\.self_attn\.q_proj\.keys is \[4, 32\], and the "
        r"model and the memory's settings ask for \[4, 16\]"
    )
    with pytest.raises(InputError, match=complaint):
        load_memory(model, run)
    assert isinstance(model.model.layers[0].self_attn.k_proj, nn.Linear)  # it is untouched


def test_a_memory_of_a_method_that_is_not_here(run):
    manifest = run / "memory" / "memory.json"
    manifest.write_text(manifest.read_text().replace('"moram"', '"moran"'))
    with pytest.raises(InputError, match="unknown method 'moran'; did you mean 'moram'"):
        load_memory(tiny_model(), run)


def state(model):
    """All that a refused call must leave alone."""
    kinds = [(name, type(module)) for name, module in model.named_modules()]
    return kinds, [p.requires_grad for p in model.parameters()], logits(model)


def refused(model, run, match):
    before = state(model)
    with pytest.raises(InputError, match=match) as error:
        load_memory(model, run)
    after = state(model)
    assert after[:2] == before[:2] and torch.equal(after[2], before[2])
    assert "\n" not in str(error.value)


def test_a_second_time(run):
    model = load_memory(tiny_model(), run, upto=1)
    refused(model, run, "this LlamaForCausalLM has a memory already, at model.layers.0.self_attn.q")


@pytest.mark.parametrize("native", [False, True])
def test_a_model_with_an_adapter_of_peft(run, native):
    peft = pytest.importorskip("peft")
    config, model = peft.LoraConfig(target_modules=["v_proj"]), tiny_model()
    if native:
        model.add_adapter(config)
    else:
        model = peft.get_peft_model(model, config)
    refused(model, run, r"has an adapter of PEFT: a memory needs the plain base; give model\.unl")
    if not native:
        expected = logits(load_memory(tiny_model(), run))
        assert torch.equal(logits(load_memory(model.unload(), run)), expected)


@pytest.mark.parametrize("damage", ["names", "sizes"])
def test_a_file_that_does_not_fit_leaves_the_model_alone(run, damage):
    """The second of two: the first was on the model already."""
    files = MemoryFiles(run / "memory")
    manifest = files.manifest()
    tensors = files.read(manifest.tasks[1])
    if damage == "names":
        tensors.popitem()
    else:
        tensors = {name: tensor[:, :-1] for name, tensor in tensors.items()}
    published = dataclasses.replace(manifest, tasks=manifest.tasks[:1])
    files.publish(published, "task 1", tensors)
    model = tiny_model()
    model.model.norm.requires_grad_(False)
    refused(model, run, r"001_task_1\.safetensors(: | lacks )")
    load_memory(model, run, upto=1)


@pytest.fixture
def based(run, tmp_path):
    """The run with the fingerprint of a base on disk, and that base's folder."""
    folder = save_tiny_model(tmp_path / "base")
    names(run, folder)
    return run, folder


def names(run, folder):
    """Write a base's fingerprint into a manifest."""
    path = run / "memory" / "memory.json"
    manifest = dataclasses.asdict(MemoryFiles(run / "memory").manifest())
    path.write_text(json.dumps(manifest | {"base": fingerprint_of(str(folder))}))


def quietly(model, run, **named):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_memory(model, run, **named)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_own_base_from_another_place(based, tmp_path, dtype):
    run, folder = based
    shutil.move(folder, tmp_path / "elsewhere")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere", dtype=dtype)
    model = quietly(copy.deepcopy(plain), run)
    assert not torch.equal(logits(model), logits(plain.eval()))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere", dtype=torch.bfloat16)
    quietly(again.to(dtype), run)  # rounded on the way


def test_another_base_of_the_same_shape(based, tmp_path):
    run, _ = based
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    refused(other, run, r"was trained on base, and .*other is another model .* any_base=True")
    quietly(other, run, any_base=True)


def test_a_model_that_only_names_its_base(based):
    """Made from the base's configuration, which names the base's folder."""
    run, folder = based
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    refused(random, run, "was trained on base, and .* is not what .*base holds; load it by from_p")
    quietly(random, run, any_base=True)


def test_a_model_of_which_nothing_is_known(based):
    run, folder = based
    with pytest.warns(UserWarning, match="trained on base; whether this Llama.* is not known"):
        load_memory(tiny_model(), run)
    model = AutoModelForCausalLM.from_pretrained(folder)
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="is not known, because it was not loaded from files"):
        load_memory(model, run)
    quietly(tiny_model(), run, any_base=True)


def test_an_interruption_leaves_the_model_alone(run, monkeypatch):
    model = tiny_model()
    before = state(model)
    monkeypatch.setattr(MemoryFiles, "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_memory(model, run)
    after = state(model)
    assert after[:2] == before[:2] and torch.equal(after[2], before[2])


def test_pushing_the_model_would_lose_the_memory(run):
    model = load_memory(tiny_model(), run)
    with pytest.raises(InputError, match=r"push_to_hub .*save_pretrained.*upload_folder"):
        model.push_to_hub("me/model")


class Bytes(nn.Linear):
    """Quantised, as bitsandbytes' linears are: packed bytes, and a dtype to compute in."""

    def __init__(self, linear, compute_dtype):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.numbers, self.compute_dtype = linear.weight.detach(), compute_dtype
        packed = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x):
        return (x.to(self.compute_dtype) @ self.numbers.to(self.compute_dtype).T).to(x.dtype)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_on_a_quantised_base(run, compute):
    model, plain = tiny_model(), tiny_model()
    for layer in model.model.layers:
        layer.self_attn.q_proj = Bytes(layer.self_attn.q_proj, compute)
    expected = logits(load_memory(plain, run))
    load_memory(model, run)
    bank = model.get_submodule("model.layers.0.self_attn.q_proj.memory.bank")
    assert bank.num_atoms == 8 and bank.shard_F.dtype == compute
    torch.testing.assert_close(
        logits(model), expected, atol=1e-6 if compute == torch.float32 else 0.05, rtol=0
    )
    assert model.generate(tokens(1, 4), max_new_tokens=2, eos_token_id=None).shape == (1, 6)


@pytest.mark.parametrize("bits", [4, 8])
def test_on_a_base_of_bitsandbytes(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32)
    run = made(tmp_path / "run", copy.deepcopy(model))
    names(run, DEMO_BASE)
    whole = logits(quietly(model, run))
    how = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, bnb_4bit_compute_dtype=torch.float32)
    named = {"quantization_config": how, "device_map": "cpu", "dtype": torch.float32}
    plain = AutoModelForCausalLM.from_pretrained(DEMO_BASE, **named).eval()
    before = logits(plain)
    model = quietly(plain, run)
    assert not torch.equal(logits(model), before)
    assert (logits(model) - whole).abs().mean() < whole.abs().mean()
