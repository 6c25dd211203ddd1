"""The family of CLIP: forward, loss and answers against plain torch and transformers."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPTextConfig

from moram_dist.adapters.adapter import bare
from moram_dist.config import EvalConfig
from moram_dist.data.stream import IGNORED, steps
from moram_dist.decode import classes as classes_module
from moram_dist.families import answer_batch, family_of, family_of_model
from moram_dist.families.causal import Causal
from moram_dist.families.clip import Clip
from moram_dist.families.targets import choose_targets
from moram_dist.losses import text_to_image
from moram_dist.methods import METHODS
from moram_dist.methods.restore import load_memory
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Decoding
from moram_dist.train.forward import Forward
from tests.helpers.configs import config_of
from tests.helpers.in_memory import run_in_memory
from tests.helpers.tiny_clip import LONGEST, draw_task, reader, tiny_clip


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return draw_task(tmp_path_factory.mktemp("pictures"))


def encoded(task, count):
    family = family_of_model(tiny_clip())
    pairs = [(task, example) for example in task.train[:count]]
    return family, family.encode_task(reader(), pairs, None, None)


def one_step(family, examples, *, rank=0, world_size=1, batch_size=64):
    step, *_ = steps(
        examples,
        family,
        batch_size=batch_size,
        micro_batch_size=None,
        micro_batch_tokens=10**9,
        epochs=1,
        seed=0,
        task=0,
        rank=rank,
        world_size=world_size,
        pad_id=2,
    )
    return step


def test_the_configuration_chooses_the_family():
    family = family_of(tiny_clip().config)
    assert isinstance(family, Clip) and family.picture_tokens == 5 and family.positions == LONGEST
    assert isinstance(family_of(CLIPConfig()), Clip)
    assert isinstance(family_of(CLIPTextConfig()), Causal)  # a tower alone is no base


def test_targets():
    model = tiny_clip()
    names = choose_targets(model, "all-linear").names
    assert len(names) == 2 * 2 * 6 and not any("projection" in name for name in names)
    attention = choose_targets(model, "attention").names
    assert {name.rpartition(".")[2] for name in attention} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
    }


def test_padding_changes_nothing():
    model, read = tiny_clip(), reader()
    texts = ["red", "a longer one"]
    cut = classes_module.pad_texts([read.encode_text(text) for text in texts])
    assert cut.shape[1] == LONGEST
    short = classes_module.pad_texts([read.encode_text("red")])
    pixels = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        alone = model(input_ids=short, pixel_values=pixels).logits_per_image
        padded = model(input_ids=cut, pixel_values=pixels).logits_per_image
    assert torch.allclose(alone[0, 0], padded[0, 0], rtol=1e-6, atol=0)


def formula(logits_BC, targets, weight):
    """The published loss, written out: cross-entropy over classes, then over pictures."""
    first = F.cross_entropy(logits_BC, targets)
    second = sum(-logits_BC[:, y].log_softmax(0)[b] for b, y in enumerate(targets.tolist()))
    return first + weight * second


def test_loss_is_the_formula(task):
    family, examples = encoded(task, 17)
    step = one_step(family, examples)
    (batch,) = step.micro_batches
    model = tiny_clip().double()
    seen = Forward(model, model, torch.device("cpu"))(batch)
    logits = seen.logits_BPV[0].detach().requires_grad_()
    found = family.loss(logits[None], seen.targets_BP, batch, step.num_answer_tokens)
    (gradient,) = torch.autograd.grad(found, logits)
    again = logits.detach().requires_grad_()
    expected = formula(again, seen.targets_BP[0], task.text_to_image)
    (other,) = torch.autograd.grad(expected, again)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(gradient, other, atol=1e-12)
    pixels, ids = batch.inputs["pixel_values"], batch.inputs["input_ids"]
    with torch.no_grad():
        whole = model(pixel_values=pixels.double(), input_ids=ids).logits_per_image
    assert torch.allclose(logits, whole[:, :3], rtol=1e-12)


@pytest.mark.parametrize("many", [False, True])
def test_text_to_image_of_ranks(many):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(9, 4, generator=generator, dtype=torch.float64) * 30).requires_grad_()
    targets = torch.tensor([2] * 9 if many else [0, 1, 2, 3, 2, 2, IGNORED, 0, 1])
    weights = torch.rand(9, generator=generator, dtype=torch.float64)
    found = text_to_image(logits, targets, weights)
    (gradient,) = torch.autograd.grad(found, logits)
    there = targets != IGNORED
    kept = logits.detach()[there].requires_grad_()
    expected = sum(
        -w * kept[:, y].log_softmax(0)[b]
        for b, (y, w) in enumerate(zip(targets[there], weights[there], strict=True))
    )
    (other,) = torch.autograd.grad(expected, kept)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(gradient[there], other, atol=1e-12) and not gradient[~there].any()


def test_smoothing_stays_finite_and_is_the_formula(task, tmp_path):
    other = draw_task(tmp_path, "others", label_smoothing=0.2, text_to_image=0.0)
    family = family_of_model(tiny_clip())
    pairs = [(t, t.train[k]) for t in (task, other) for k in range(4)]
    examples = family.encode_task(reader(), pairs, None, None)
    step = one_step(family, examples)
    (batch,) = step.micro_batches
    model = tiny_clip()
    seen = Forward(model, model, torch.device("cpu"))(batch)
    logits = seen.logits_BPV[0]
    assert logits.shape == (8, 6) and logits.isneginf().sum() == 8 * 3
    found = family.loss(seen.logits_BPV, seen.targets_BP, batch, step.num_answer_tokens)
    expected = torch.zeros(())
    for row, target, weight, smooth in zip(
        logits, seen.targets_BP[0], batch.text_to_image_B, batch.smoothing_B, strict=True
    ):
        own = row.isfinite()
        right = (target - (0 if own[0] else 3))[None]
        expected = expected + F.cross_entropy(row[own][None], right, label_smoothing=smooth) / 8
        column = logits[:, target]
        place = (logits == row).all(1).nonzero()[0, 0]
        if weight:
            expected = expected - weight * column.log_softmax(0)[place]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_crops_are_a_function_of_their_place(task):
    family, examples = encoded(task, 10)
    whole = one_step(family, examples).micro_batches[0]
    parts = [one_step(family, examples, rank=r, world_size=3).micro_batches[0] for r in range(3)]
    for part in parts:
        for row, pixels in zip(part.rows, part.inputs["pixel_values"], strict=True):
            index = whole.rows.index(row)
            assert torch.equal(pixels, whole.inputs["pixel_values"][index])


def test_more_ranks_than_pictures(task):
    family, examples = encoded(task, 2)
    batches = [one_step(family, examples, rank=r, world_size=3).micro_batches[0] for r in range(3)]
    assert [(batch.labels[:, 1] != IGNORED).sum().item() for batch in batches] == [1, 1, 0]
    model = tiny_clip()
    seen = Forward(model, model, torch.device("cpu"))(batches[2])
    assert family.loss(seen.logits_BPV, seen.targets_BP, batches[2], 2) == 0


def test_one_memory_call_for_queries_keys_and_values():
    model = tiny_clip()
    method = METHODS["moram"](config_of("moram", target_modules="all-linear"), seed=0)
    method.build(model)
    method.begin_task(0)
    calls = []
    for names, memory in method.memories.items():
        memory.register_forward_hook(lambda *_, names=names: calls.append(names))
    model(input_ids=torch.tensor([[62, 5, 63]]), pixel_values=torch.zeros(1, 3, 16, 16))
    assert len(calls) == len(set(calls)) == 4 * (1 + 1 + 2)  # q k v together, out, fc1, fc2


def test_answers_are_the_nearest_classes(task):
    model, read = tiny_clip(), reader()
    examples = task.test[:7]
    found = answer_batch(["generate", "labels"], model, read, examples, task, Decoding())
    ids = classes_module.pad_texts([read.encode_text(text) for (text,) in task.texts])
    pixels = torch.stack([torch.from_numpy(read.read(task, one.prompt)) for one in examples])
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
    expected = [task.labels[c] for c in logits.argmax(1)]
    assert [one.text for one in found["generate"]] == expected
    assert [one.text for one in found["labels"]] == expected
    scores = found["labels"][0].log_likelihoods
    log_p = logits[0].log_softmax(0)
    assert scores == pytest.approx(dict(zip(task.labels, log_p.tolist(), strict=True)), abs=1e-4)


def test_class_features_are_computed_once_in_a_state(task, monkeypatch):
    model, read, family = tiny_clip(), reader(), family_of_model(tiny_clip())
    texts = []
    encode = classes_module._encode
    monkeypatch.setattr(
        classes_module, "_encode", lambda *given: texts.extend(given[2]) or encode(*given)
    )
    kept = {}
    for _ in range(2):
        with family.answering(model, read, [task, task], kept):
            family.generate(model, read, task.test[:3], task, Decoding())
            family.generate(model, read, task.test[3:5], task, Decoding())
    assert texts == [text for (text,) in task.texts]


def test_ensembles_are_means_of_unit_features(task):
    model, read = tiny_clip(), reader()
    found = classes_module.class_features(model, read, [("red", "a red"), ("blue",)])
    singles = [
        classes_module.class_features(model, read, [(text,)])[0] for text in ("red", "a red")
    ]
    assert torch.allclose(found[0], F.normalize(singles[0] + singles[1], dim=0), atol=1e-6)


def test_a_bare_model_is_the_base():
    model = tiny_clip()
    inputs = {"input_ids": torch.tensor([[62, 5, 63]]), "pixel_values": torch.ones(1, 3, 16, 16)}
    with torch.no_grad():
        before = model(**inputs).logits_per_image
        method = METHODS["sequential_lora"](config_of("sequential_lora"), seed=0)
        method.build(model)
        for layer in method.layers.values():
            torch.nn.init.normal_(layer.lora_A)
            torch.nn.init.normal_(layer.lora_B)
        assert not torch.equal(model(**inputs).logits_per_image, before)
        with bare(model):
            assert torch.equal(model(**inputs).logits_per_image, before)


def test_a_whole_run(tmp_path):
    tasks = (draw_task(tmp_path / "a"), draw_task(tmp_path / "b", "others"))
    benchmark = Benchmark(name="drawn", order="o", protocol="p", tasks=tasks, batch_size=8)
    folder = tmp_path / "run"
    scores = run_in_memory(
        folder,
        tiny_clip(),
        reader(),
        benchmark,
        config_of("moram", target_modules="all-linear", temperature=0.3),
        learning_rate=1e-2,
        asking=EvalConfig(eval_rows="all", recall="prefix,all"),
    )
    assert max(scores["base"]) < 80 < min(scores["scores"][1])
    for upto, row in ((1, "after_000"), (2, "after_001")):
        model = load_memory(tiny_clip(), folder, upto=upto, any_base=True)
        for column, task in enumerate(tasks):
            path = folder / "predictions" / row / f"on_{column:03d}_{task.name}.all.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            answers = family_of_model(model).generate(model, reader(), task.test, task, Decoding())
            assert [line["prediction"] for line in lines] == answers
    with pytest.raises(InputError, match="recall='prefix': a pass of CLIPModel has pictures and"):
        load_memory(tiny_clip(), folder, recall="prefix", any_base=True)
    main = [json.loads(line) for line in path.with_name("on_001_others.jsonl").open()]
    assert {line["recognised"] for line in main} == {"others"}
