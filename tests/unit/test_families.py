"""Model families: who chooses one, and a third one that touches no other file.

The third family reads vectors of numbers and answers with one of a few labels, as a model of
pictures would: no text, one call of the model a step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, LlamaConfig, PretrainedConfig, T5Config

from eval.measure.harness import Evaluator
from moram_dist.atoms.memory_files import Manifest
from moram_dist.config import EvalConfig, RunConfig, TrainConfig
from moram_dist.data import tokens
from moram_dist.data.stream import IGNORED, MicroBatch, steps
from moram_dist.data.tokens import WorkProgress, encode_task
from moram_dist.decode import LabelScores, Room
from moram_dist.families import FAMILIES, Family, answer_batch, family_of, family_of_model
from moram_dist.families.causal import Causal
from moram_dist.families.encoder_decoder import EncoderDecoder
from moram_dist.methods import METHODS
from moram_dist.methods.restore import load_memory
from moram_dist.models.language_model import Base
from moram_dist.recognise import PromptFeatures
from moram_dist.tasks.task import Benchmark, Decoding, Example, Task
from moram_dist.train.forward import Forward, answer_loss
from moram_dist.train.stop import StopSignals
from moram_dist.train.trainer import Trainer
from tests.helpers.configs import config_of
from tests.helpers.context import make_context

# The third family.


class VectorsConfig(PretrainedConfig):
    model_type = "vectors"
    size, answers = 4, 3


class VectorsModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = VectorsConfig()
        self.first = nn.Linear(self.config.size, 16)
        self.last = nn.Linear(16, self.config.answers)

    def forward(self, vectors):
        return SimpleNamespace(logits_per_vector=self.last(self.first(vectors).relu()))


@dataclass(frozen=True)
class EncodedVector:
    id: str
    vector: tuple[float, ...]
    label: int
    num_answer: int = 1
    num_tokens: int = 1


def numbers(prompt):
    return tuple(float(word) for word in prompt.split())


@dataclass(frozen=True)
class Vectors(Family):
    kind = "vector"

    @classmethod
    def accepts(cls, architecture):
        return getattr(architecture, "model_type", None) == "vectors"

    def auto_class(self):
        raise AssertionError("the model is made in memory")

    def trial_inputs(self, architecture, num_tokens, *, masked=False):
        return {"vectors": torch.zeros(1, architecture.size, device="meta")}

    def tokens_of(self, arguments, named):
        return len(named["vectors"])

    def encode_question(self, tokenizer, prompt, task):
        return numbers(prompt)

    def encode_training(self, tokenizer, example, task):
        label = task.labels.index(example.references[0])
        return EncodedVector(example.id, numbers(example.prompt), label)

    def to_rows(self, encoded):
        vector = torch.tensor(encoded.vector, dtype=torch.float64)
        return {"vectors": vector, "labels": torch.tensor([encoded.label])}

    def from_rows(self, id, rows, num_answer):
        return EncodedVector(id, tuple(rows["vectors"].tolist()), rows["labels"].item())

    def features(self, model, tokenizer, examples, task):
        read = torch.tensor([numbers(one.prompt) for one in examples], dtype=torch.float64)
        read = read.reshape(-1, VectorsConfig.size)
        return PromptFeatures(read, torch.ones(len(read), dtype=torch.float64))

    def features_of_pass(self, model, arguments, named):
        read = named["vectors"].double()
        return PromptFeatures(read, torch.ones(len(read), dtype=torch.float64))

    def blank(self, like, pad_id):
        return EncodedVector("", like.vector, IGNORED, num_answer=0)

    def collate(self, examples, pad_id, rows=None):
        vectors = torch.tensor([example.vector for example in examples])
        return MicroBatch(
            inputs={"vectors": vectors},
            labels=torch.tensor([[IGNORED, example.label] for example in examples]),
            rows=tuple(rows or range(len(examples))),
            prompts=list(vectors),
            lengths=(1,),
        )

    def logits(self, engine, model, inputs, rows, columns):
        return engine(**inputs).logits_per_vector[rows][None]

    def generate(self, model, tokenizer, examples, task, decoding, *, synced=False):
        return self.choose(model, tokenizer, examples, task, synced=synced)

    @torch.no_grad()
    def score_labels(self, model, tokenizer, examples, task, *, synced=False):
        read = torch.tensor([numbers(one.prompt) for one in examples])
        log_p = model(vectors=read).logits_per_vector.double().log_softmax(-1)
        found = [dict(zip(task.labels, row, strict=True)) for row in log_p.tolist()]
        return [LabelScores(sums=one, means=one) for one in found]


# All that a run does with it.


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


def made(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VectorsModel().requires_grad_(False).eval()


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


class Engine:
    """Does for one process what DeepSpeed does."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        learned = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=0.0, weight_decay=0.0)
        self.train, self.eval = module.train, module.eval
        self.at_boundary = True

    def __call__(self, **inputs):
        return self.module(**inputs)

    def set_gradient_accumulation_boundary(self, is_boundary):
        self.at_boundary = is_boundary

    def is_gradient_accumulation_boundary(self):
        return self.at_boundary

    def backward(self, loss, scale_wrt_gas):
        loss.backward()

    def step(self):
        if self.at_boundary:
            self.optimizer.step()
            self.optimizer.zero_grad()


def learn(folder, method_config):
    """Both tasks; the scores of the labels by prefix, as they are on disk."""
    model = made()
    config = RunConfig(
        train=TrainConfig(learning_rate=0.05),
        eval=EvalConfig(answers="labels,generate", recall="prefix,all", eval_rows="all"),
        method=method_config,
    )
    method = METHODS[method_config.method](method_config, seed=0, num_tasks=2)
    method.build(model)
    assert [*method.layers] == ["first", "last"]
    manifest = Manifest(
        method=method_config.method,
        settings=asdict(method_config),
        base={"name": "vectors", "fingerprint": "f"},
        modules=[*method.layers],
    )
    context = make_context(
        config=config,
        benchmark=BENCHMARK,
        method=method,
        engine=Engine(model),
        base=Base(model, TOKENIZER, None, family_of_model(model)),
        folder=folder,
    )
    evaluate = Evaluator(context, BENCHMARK)
    with StopSignals("SIGTERM") as stop:
        Trainer(context, manifest=manifest, evaluate=evaluate, stop=stop).run()
    return json.loads((folder / "scores.json").read_text())


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
    saved = learn(tmp_path, config)
    first, second = saved["scores"]
    assert max(saved["base"]) < 50 < 70 < first[0] == second[0]
    assert second[1] > first[1] + 20
    loaded = load_memory(made(), tmp_path, any_base=True, recall="prefix")
    for task, score in zip(BENCHMARK.tasks, second, strict=True):
        found = answer_batch(["labels"], loaded, TOKENIZER, task.test, task, Decoding())["labels"]
        right = [one.text == e.references[0] for one, e in zip(found, task.test, strict=True)]
        assert 100 * sum(right) / len(right) == pytest.approx(score)
