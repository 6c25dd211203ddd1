"""Model families: who chooses one, and a third one that touches no other file."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, LlamaConfig, T5Config

from moram_dist.config import EvalConfig
from moram_dist.data import tokens
from moram_dist.data.stream import steps
from moram_dist.data.tokens import WorkProgress, encode_task
from moram_dist.decode import Room
from moram_dist.families import FAMILIES, answer_batch, family_of, family_of_model
from moram_dist.families.causal import Causal
from moram_dist.families.encoder_decoder import EncoderDecoder
from moram_dist.methods.restore import load_memory
from moram_dist.tasks.task import Benchmark, Decoding, Example, Task
from moram_dist.train.forward import Forward, answer_loss
from tests.helpers.configs import config_of
from tests.helpers.in_memory import run_in_memory
from tests.helpers.vectors import Vectors, VectorsConfig, made, numbers


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FAMILIES._entries, "vectors", Vectors)


LABELS = ("red", "green", "blue")
TOKENIZER = SimpleNamespace(
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
    backend_tokenizer=SimpleNamespace(to_str=lambda: "none"),
)


def make_task(i):
    """Which of three numbers is largest; the fourth tells the tasks apart."""
    drawn = torch.randn(90, 3, generator=torch.Generator().manual_seed(i)).tolist()
    every = tuple(
        Example(f"{i}-{k}", " ".join(f"{x:.4f}" for x in (*row, 9.0 * i)), (LABELS[best],))
        for k, row in enumerate(drawn)
        for best in [(max(range(3), key=row.__getitem__) + i) % 3]
    )
    return Task(
        name=f"task {i}",
        metric="exact_match",
        train=every[:60],
        test=every[60:],
        labels=LABELS,
        epochs=20,
    )


BENCHMARK = Benchmark(
    name="vectors", order="o", protocol="p", tasks=(make_task(0), make_task(1)), batch_size=16
)


def told():
    return WorkProgress("encoding", None, lambda _: None, lambda _: None)


def test_the_configuration_chooses_a_family():
    assert family_of(LlamaConfig()) == family_of(GPT2Config()) == family_of(None) == Causal()
    assert family_of(T5Config(decoder_start_token_id=7)) == EncoderDecoder(7)
    assert family_of(VectorsConfig()) == Vectors() == family_of_model(made())
    assert family_of_model(nn.Linear(2, 2)) == Causal()


def test_a_causal_model_is_what_no_other_family_accepts():
    for architecture in (LlamaConfig(), T5Config(), VectorsConfig(), None):
        assert sum(FAMILIES[name].accepts(architecture) for name in FAMILIES) == 1


def test_from_examples_to_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "CACHED_FROM", 1)
    task, model = BENCHMARK.tasks[0], made()
    pairs = [(task, example) for example in task.train[:10]]
    for _ in range(2):  # the second time from the file
        examples = encode_task(Vectors(), TOKENIZER, pairs, tmp_path, told())
        assert [*examples] == [Vectors().encode_training(TOKENIZER, e, t) for t, e in pairs]
    settings = {"batch_size": 5, "micro_batch_size": 2, "micro_batch_tokens": 100, "epochs": 1}
    ranks = [
        [*steps(examples, Vectors(), **settings, seed=0, task=0, rank=r, world_size=2, pad_id=0)]
        for r in range(2)
    ]
    known = {example.id: example for example in examples}
    for parts in zip(*ranks, strict=True):
        batches = [batch for step in parts for batch in step.micro_batches]
        found = sum(answer_loss(Forward(model, model)(batch)).item() for batch in batches)
        read = [known[name] for name in parts[0].ids]
        logits = model(vectors=torch.tensor([one.vector for one in read])).logits_per_vector
        expected = F.cross_entropy(
            logits, torch.tensor([one.label for one in read]), reduction="sum"
        )
        assert found == pytest.approx(expected.item(), rel=1e-5)


def test_answers():
    task, model = BENCHMARK.tasks[0], made()
    ways = ("generate", "labels", "constrained")
    found = answer_batch(ways, model, TOKENIZER, task.test, task, Decoding())
    logits = model(vectors=torch.tensor([numbers(one.prompt) for one in task.test]))
    best = [LABELS[k] for k in logits.logits_per_vector.argmax(-1).tolist()]
    assert len({*best}) > 1
    for way in ways:
        assert [one.text for one in found[way]] == best
    asked = [(k, task, one) for k, one in enumerate(task.test)]
    room = Room.for_all(len(asked))
    streamed = family_of_model(model).stream(model, TOKENIZER, asked, Decoding(), room)
    assert [*streamed] == [*enumerate(best)]


def test_a_whole_run(tmp_path):
    """Two tasks, learned by moram and answered by prefix; a loaded memory answers the same."""
    config = config_of(
        method="moram",
        target_modules="all-linear",
        atoms_per_task=16,
        alpha=64,
        top_k=16,
        temperature=1.0,
        threshold=0.0,
    )
    asking = EvalConfig(answers="labels,generate", recall="prefix,all", eval_rows="all")
    saved = run_in_memory(
        tmp_path, made(), TOKENIZER, BENCHMARK, config, learning_rate=0.05, asking=asking
    )
    assert json.loads((tmp_path / "memory" / "memory.json").read_text())["modules"] == [
        "first",
        "last",
    ]
    first, second = saved["scores"]
    assert max(saved["base"]) < 50 < 70 < first[0] == second[0]
    assert second[1] > first[1] + 20
    loaded = load_memory(made(), tmp_path, any_base=True, recall="prefix")
    for task, score in zip(BENCHMARK.tasks, second, strict=True):
        found = answer_batch(["labels"], loaded, TOKENIZER, task.test, task, Decoding())["labels"]
        right = [one.text == e.references[0] for one, e in zip(found, task.test, strict=True)]
        assert 100 * sum(right) / len(right) == pytest.approx(score)
