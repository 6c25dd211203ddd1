"""GainLoRA: gates by hand, silence on older prompts, and prompts in every way of answering."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moram_dist import load_memory
from moram_dist.adapters.gated_lora import HIDDEN, GateWeights, PromptGates, RowGates, gate
from moram_dist.adapters.prompts import ATTRIBUTE, asking
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.data.encode import Encoded
from moram_dist.decode.continuous_batching import ContinuousBatcher, Request, Room
from moram_dist.decode.generate import greedy
from moram_dist.families.causal import Causal
from moram_dist.families.encoder_decoder import EncodedPair, EncoderDecoder
from moram_dist.methods import METHODS
from moram_dist.registry import InputError
from moram_dist.tasks.task import Example, Task
from tests.helpers.answers import score_batch
from tests.helpers.configs import config_of
from tests.helpers.tiny import HIDDEN as SIZE
from tests.helpers.tiny import tiny_model, tokens
from tests.unit.test_lora_baselines import begin

CAUSAL = Causal()

# Gates.


def one_unit(key):
    """A gate whose only hidden unit reads the first of two features, and makes it the first."""
    hidden, out = torch.zeros(HIDDEN, 2), torch.zeros(2, HIDDEN)
    hidden[0, 0] = out[0, 0] = 1.0
    return GateWeights(hidden, out, torch.tensor([key]))


@pytest.mark.parametrize(
    ("key", "cosine"),
    [([5.0, 0.0], 1), ([-5.0, 0.0], 1), ([1.0, 1.0], math.sqrt(0.5)), ([0.0, 3.0], 0)],
)
def test_gate_by_hand(key, cosine):
    found = gate(torch.tensor([[2.0, 9.0], [0.0, 9.0]]), one_unit(key))
    assert found[0].item() == pytest.approx(abs(2 / (1 + math.exp(-4 * cosine)) - 1), rel=1e-5)
    assert found[1].item() == 0  # silu(0) is 0: no output, no direction


def test_a_change_moves_nothing_that_older_tasks_gave():
    generator = torch.Generator().manual_seed(0)
    gates = PromptGates(6, torch.zeros(0))
    old_ND = torch.randn(2, 6, generator=generator)
    start = GateWeights(
        torch.randn(HIDDEN, 6, generator=generator) / 3,
        torch.randn(6, HIDDEN, generator=generator) / 10,
        torch.randn(1, 6, generator=generator),
    )
    gates.tasks.append(start)
    hidden_NH = F.silu(old_ND @ start.hidden.T)
    out_ND = F.silu(hidden_NH @ start.out.T)
    gates.seen = GateWeights(*(torch.linalg.qr(x.T)[0].T for x in (old_ND, hidden_NH, out_ND)))
    quiet = start.key - start.key @ gates.seen.key.T @ gates.seen.key
    gates.start = start._replace(key=quiet)
    gates.learning = True
    for parameter in gates.parameters():
        nn.init.normal_(parameter, generator=generator)
    asked_ND = torch.cat([old_ND, torch.randn(1, 6, generator=generator)])
    found = gates(asked_ND)
    assert torch.equal(found[:, :1], gate(asked_ND, start)) and found[0, 0] > 0.01
    assert found[:2, 1].abs().max() < 1e-5 and found[2, 1] > 0.01
    found[2, 1].backward()
    for parameter, seen in zip(gates.parameters(), gates.seen, strict=True):
        assert parameter.grad.norm() > 0
        assert (parameter.grad @ seen.T).abs().max() < 1e-5  # nothing is learned along those


def test_gates_of_rows_of_beams_and_of_layers_without_rows():
    gates = RowGates()
    gates.now_BT = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    assert gates.of(torch.zeros(2, 5, 7), None).shape == (2, 1, 2)
    assert gates.of(torch.zeros(2, 5, 7), 1).flatten().tolist() == pytest.approx([0.1, 0.3])
    assert gates.of(torch.zeros(4, 5, 7), None)[:, 0, 0].tolist() == pytest.approx(
        [0.1, 0.1, 0.3, 0.3]
    )
    assert gates.of(torch.zeros(6, 7), None).shape == (6, 2)
    with pytest.raises(InputError, match="5 rows for 2 prompts"):
        gates.of(torch.zeros(5, 7), None)


# GainLoRA.


def built(model=None):
    config = config_of(method="gain_lora", atoms_per_task=4, alpha=10, dropout=0)
    method = METHODS["gain_lora"](config, seed=0, num_tasks=3)
    model = model or tiny_model()
    method.build(model)
    return method, model


def task_of(i):
    """One prompt, with three answers."""
    prompt = tuple(tokens(6, seed=i).tolist())
    return [Encoded(f"{k}", (*prompt, *tokens(2, seed=9 + k).tolist()), 2) for k in range(3)]


def reading(model, examples):
    def losses():
        for example in examples:
            batch = CAUSAL.collate([example], 0)
            with asking(model, batch.prompts):
                yield model(input_ids=batch.inputs["input_ids"]).logits.sum()

    return lambda limit: (len(examples), losses())


def learn(method, model, i, rate=0.05, steps=5):
    examples = task_of(i)
    method.prepare_task(i, reading(model, examples))
    begin(method, model, i)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    batch = CAUSAL.collate(examples, 0)
    for _ in range(steps):
        with asking(model, batch.prompts):
            logits = model(input_ids=batch.inputs["input_ids"]).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return method.end_task(i, reading(model, examples))


def logits(model, ids, prompts=None):
    with torch.no_grad(), asking(model, prompts or list(ids)):
        return model(input_ids=ids).logits


def test_a_new_task_is_silent_on_an_older_prompt():
    method, model = built()
    learn(method, model, 0)
    old, new = (torch.tensor([task_of(i)[0].tokens[:6]]) for i in (0, 1))
    before = logits(model, old)
    assert not torch.equal(before, logits(tiny_model(), old))
    learn(method, model, 1)
    gates = method.gates(method.prompts._means([old[0], new[0]]))
    # One prompt is one direction, of which the subspace holds all.
    assert gates[0, 1] < 1e-4 < 0.1 < gates[1, 1] and gates[0, 0] > 0.1
    torch.testing.assert_close(logits(model, old), before, atol=1e-4, rtol=0)


def test_a_restart_within_a_task_and_a_memory_file():
    method, model = built()
    first = learn(method, model, 0)
    method.prepare_task(1, reading(model, task_of(1)))
    begin(method, model, 1)
    state = method.state_dict()
    again, restored = built()
    again.load_task(0, first)
    begin(again, restored, 1)
    again.load_state_dict(state)
    ids = tokens(2, 8)
    assert torch.equal(logits(restored, ids), logits(model, ids))
    for found, expected in zip(again.gates.start, method.gates.start, strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(again.gates.seen, method.gates.seen, strict=True):
        assert torch.equal(found, expected) and len(found)
    shapes = method.shapes(0, method.layers)
    assert shapes.keys() == first.keys()
    for name, tensor in first.items():
        assert all(n in (-1, m) for n, m in zip(shapes[name], tensor.shape, strict=True)), name


def test_a_gate_of_other_embeddings_is_refused():
    method, _ = built()
    tensors = learn(method, method.model, 0)
    tensors["gate.hidden"] = torch.zeros(HIDDEN, SIZE + 1)
    with pytest.raises(InputError, match="input embedding has 32 elements"):
        built()[0].load_task(0, tensors)


def test_a_memory_that_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    method, trained = built()
    files = MemoryFiles(tmp_path)
    manifest = Manifest(
        method="gain_lora",
        settings=dataclasses.asdict(method.config),
        base={"name": "tiny", "fingerprint": "f"},
        modules=list(method.layers),
    )
    tensors = learn(method, trained, 0)
    files.publish(manifest, "t", tensors)
    model, ids = tiny_model(), tokens(2, 8)
    expected = logits(trained, ids)
    assert torch.equal(logits(load_memory(model, tmp_path, any_base=True), ids), expected)
    files.publish(manifest, "t", tensors | {"gate.key": torch.zeros(1, SIZE + 1)})
    model = tiny_model()
    with pytest.raises(InputError, match="input embedding has 32 elements"):
        load_memory(model, tmp_path, any_base=True)
    assert not hasattr(model, ATTRIBUTE) and not model.model._forward_pre_hooks
    assert torch.equal(logits(model, ids), logits(tiny_model(), ids))
    files.publish(manifest, "t", tensors | {"gate.hidden": torch.zeros(HIDDEN + 1, SIZE)})
    with pytest.raises(InputError, match=r"hidden is \[101, 32\], and .* ask for \[100, 'any'\]"):
        load_memory(model, tmp_path, any_base=True)


# Prompts.


class Words:
    """Token ids as words."""

    bos_token_id, eos_token_id, pad_token_id = None, 2, 0

    def __call__(self, text, *, add_special_tokens=False):
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids, **settings):
        return " ".join(map(str, ids))


@pytest.fixture
def asked():
    method, model = built()
    for i in range(2):
        learn(method, model, i)
    return model.eval(), [tokens(n, seed=n).tolist() for n in (7, 3, 5)]


def alone(model, prompt, answer):
    """Logits of a row without padding, whose prompt is said."""
    return logits(model, torch.tensor([[*prompt, *answer]]), [prompt])[0]


def test_gates_see_the_prompt_and_not_the_answer(asked):
    model, (prompt, *_) = asked
    whole = logits(model, torch.tensor([[*prompt, 9, 9]]))
    assert not torch.allclose(whole[0], alone(model, prompt, [9, 9]))


@pytest.mark.parametrize("turns", [False, True])
def test_generation_goes_on_from_the_prompts_gates(asked, turns):
    model, prompts = asked
    expected = []
    for prompt in prompts:
        said = []
        for _ in range(12):
            said.append(int(alone(model, prompt, said)[-1].argmax()))
        expected.append(said)
    settings = {"eos_token_id": -1, "pad_token_id": 0, "do_sample": False, "use_cache": True}
    if turns:
        rows = [Request(k, prompt, 12 - k) for k, prompt in enumerate(prompts)]
        found = {
            row.key: row.said for row in ContinuousBatcher(model, Room(2, 10_000), **settings)(rows)
        }
        assert [found[k] for k in range(3)] == [said[: 12 - k] for k, said in enumerate(expected)]
    else:
        tokenizer = Words()
        tokenizer.eos_token_id = -1
        assert greedy(model, tokenizer, prompts, max_new_tokens=12).tolist() == expected
        ids = torch.tensor([prompts[0]] * 2)
        # Nobody says what the prompts are, as where a memory was loaded.
        plain = model.generate(ids, **settings, max_new_tokens=12)
        assert plain[:, 7:].tolist() == [expected[0]] * 2


def test_labels_are_scored_after_the_prompts_gates(asked):
    model, prompts = asked
    task = Task(
        name="t", metric="exact_match", train=(), test=(), labels=("9 8", "7"), num_bos=0,
        max_prompt_tokens=20, max_answer_tokens=5, separator=" ",
    )  # fmt: skip
    shared = " ".join(["5"] * 10)
    texts = [f"{shared} {' '.join(map(str, prompt))}" for prompt in prompts]
    found = score_batch(model, Words(), [Example("e", text, ("7",)) for text in texts], task)
    for text, scores in zip(texts, found, strict=True):
        prompt = [int(word) for word in text.split()]
        for label, answer in (("9 8", [9, 8, 2]), ("7", [7, 2])):
            log_p = alone(model, prompt, answer[:-1])[len(prompt) - 1 :].log_softmax(-1)
            total = sum(float(log_p[t, token]) for t, token in enumerate(answer))
            assert scores.sums[label] == pytest.approx(total, abs=1e-4)


def test_prompts_of_a_batch():
    rows = [Encoded("a", (5, 6, 7, 8), 1), Encoded("b", (5, 6, 7), 2)]
    batch = CAUSAL.collate([*rows, CAUSAL.blank(rows[0], 0)], 0)
    assert [ids.tolist() for ids in batch.prompts] == [[5, 6, 7], [5], [0, 0, 0, 0]]
    pairs = [EncodedPair("c", (0, 9, 1), 2, (3, 4, 1)), EncodedPair("d", (0, 1), 1, (4, 1))]
    read = EncoderDecoder(0).collate(pairs, 0)
    assert [ids.tolist() for ids in read.prompts] == [[3, 4, 1], [4, 1]]


def test_a_prompt_of_nothing_and_masks():
    method, model = built()
    means = method.prompts._means([torch.tensor([4, 6]), torch.tensor([], dtype=torch.int64)])
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(means[0], table[[4, 6]].mean(0))
    assert not means[1].any()
    model(input_ids=torch.tensor([[0, 4, 6]]), attention_mask=torch.tensor([[0, 1, 1]]))
    assert torch.equal(method._features_now[0], means[0])
    model(inputs_embeds=table[[4, 6]][None])
    torch.testing.assert_close(method._features_now[0], means[0])
    assert hasattr(model, ATTRIBUTE)
