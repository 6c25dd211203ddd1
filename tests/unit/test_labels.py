"""Label scoring and constrained generation against one label, one full forward pass at a time."""

from __future__ import annotations

import pytest
import torch

from moram_dist.config import ModelConfig
from moram_dist.data.candidates import encode_candidates
from moram_dist.data.encode import encode_training
from moram_dist.decode import labels
from moram_dist.decode.labels import best, can_share_prefix, rows_of_labels
from moram_dist.families import answer_batch
from moram_dist.methods import METHODS
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks.task import Decoding, Example
from tests.helpers.answers import choose_batch, score_batch
from tests.helpers.closed_choice import EXAMPLES, LABELS, task
from tests.helpers.configs import config_of
from tests.helpers.tiny import SIZES, tiny_model

BEGIN_ALIKE = tuple(
    Example(example.id, "Say what the next line is about.\n" + example.prompt, ("x",))
    for example in EXAMPLES
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig())


@pytest.fixture(scope="module", params=["base", "lora", "moram"])
def model(request, tokenizer):
    """The tiny model with the demo's vocabulary, in float64; adapters as after two tasks."""
    model = wide_model(len(tokenizer)).double()
    if request.param == "base":
        return model
    name = {"lora": "sequential_lora", "moram": "moram"}[request.param]
    method = METHODS[name](
        config_of(method=name, atoms_per_task=4, alpha=40, dropout=0, top_k=5), seed=0
    )
    method.build(model)
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        method.begin_task(i)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        method.end_task(i, lambda: [])
    return model.eval()


def wide_model(vocabulary: int, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    values = tiny_model().config.to_dict() | {"vocab_size": vocabulary} | changes
    values["max_position_embeddings"] = 256
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**values)).eval()


@torch.no_grad()
def brute_force(model, tokens, num_scored) -> float:
    """Log-likelihood of the last tokens of one sequence: a full pass, token by token."""
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double()
    total = 0.0
    for place in range(len(tokens) - num_scored, len(tokens)):
        row = logits[place - 1]
        total += float(row[tokens[place]] - torch.logsumexp(row, 0))
    return total


def expected(model, tokenizer, example, rules) -> dict[str, tuple[float, int]]:
    """By hand from the tokens that training sees, each label on its own."""
    learned = {
        label: encode_training(tokenizer, Example("e", example.prompt, (label,)), rules)
        for label in rules.labels
    }
    start = min(len(one.tokens) - one.num_answer for one in learned.values())
    out = {}
    for label, one in learned.items():
        assert one.tokens[-1] == tokenizer.eos_token_id
        scored = len(one.tokens) - start
        out[label] = (brute_force(model, one.tokens, scored), scored)
    return out


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
def test_scores_are_those_of_full_passes(model, tokenizer, size, together, monkeypatch):
    rules = task()
    assert can_share_prefix(model, 96)
    if not together:
        monkeypatch.setattr("moram_dist.decode.labels.can_share_prefix", lambda *_: False)
    found = [
        one
        for k in range(0, len(EXAMPLES), size)
        for one in score_batch(model, tokenizer, EXAMPLES[k : k + size], rules)
    ]
    chosen = set()
    for one, example in zip(found, EXAMPLES, strict=True):
        by_hand = expected(model, tokenizer, example, rules)
        assert len({num for _, num in by_hand.values()}) > 2
        for label, (total, num) in by_hand.items():
            assert one.sums[label] == pytest.approx(total, abs=1e-9)
            assert one.means[label] == pytest.approx(total / num, abs=1e-9)
        chosen.add(best(one.sums))
        assert best(one.sums) == max(by_hand, key=lambda label: by_hand[label][0])
    assert len(found) == len(EXAMPLES)


@pytest.mark.parametrize("also", [(), ("Say what the next line is about.",)])
def test_a_common_beginning_is_read_once(model, tokenizer, also, monkeypatch):
    """``also``: a prompt that ends where the others go on, so not all of it is read apart."""
    examples = [*BEGIN_ALIKE, *(Example("short", text, ("x",)) for text in also)]
    expected = score_batch(model, tokenizer, examples, task(), synced=True)
    lengths = []
    monkeypatch.setattr("moram_dist.decode.labels.WORTH_A_PASS", 1)
    handle = model.register_forward_pre_hook(
        lambda _module, _args, named: lengths.append(named["input_ids"].shape), with_kwargs=True
    )
    found = score_batch(model, tokenizer, examples, task())
    handle.remove()
    (rows, start), (all_rows, _) = lengths
    assert (rows, all_rows) == (1, len(examples)) and start > 5
    for one, other in zip(found, expected, strict=True):
        assert one.sums == pytest.approx(other.sums, abs=1e-5)
        assert one.means == pytest.approx(other.means, abs=1e-5)


def test_in_float64_nothing_is_left_of_the_difference(tokenizer):
    model = wide_model(len(tokenizer)).double()
    for one, example in zip(score_batch(model, tokenizer, EXAMPLES, task()), EXAMPLES, strict=True):
        for label, (total, _) in expected(model, tokenizer, example, task()).items():
            assert one.sums[label] == pytest.approx(total, rel=1e-12)


def test_a_label_sees_no_other_label(model, tokenizer):
    """Whatever stands beside it: alone, in another order, among others."""
    (all_,) = score_batch(model, tokenizer, EXAMPLES[:1], task())
    (turned,) = score_batch(model, tokenizer, EXAMPLES[:1], task(labels=LABELS[::-1]))
    for label in LABELS:
        assert all_.sums[label] == pytest.approx(turned.sums[label], abs=1e-5)


def test_as_many_rows_as_fit(model, tokenizer, monkeypatch):
    """All labels of a prompt are read in one row, each with EOS."""
    many = task(labels=tuple(f"label {i}" for i in range(150)))
    tokens = sum(
        len(tokenizer(label, add_special_tokens=False).input_ids) + 2 for label in many.labels
    )
    assert tokens > 600
    for most in (10 * (50 + tokens), 10 * (50 + tokens) - 1):
        assert rows_of_labels(model, tokenizer, many, 50, most) == most // (50 + tokens)
    assert rows_of_labels(model, tokenizer, many, 50, 100) == 1
    one_row = (tokens + 1) * model.config.vocab_size * next(model.parameters()).element_size()
    monkeypatch.setattr(labels, "LOGIT_BYTES", 3 * one_row)
    assert rows_of_labels(model, tokenizer, many, 50, 10**9) == 3


def test_the_first_of_equal_labels_wins():
    assert best({"b": -1.0, "a": -1.0, "c": -2.0}) == "b"


def test_eager_attention_too(tokenizer):
    model = wide_model(len(tokenizer))
    model.set_attn_implementation("eager")
    assert can_share_prefix(model, 96)
    for one, example in zip(score_batch(model, tokenizer, EXAMPLES, task()), EXAMPLES, strict=True):
        for label, (total, _) in expected(model, tokenizer, example, task()).items():
            assert one.sums[label] == pytest.approx(total, abs=1e-5)


def test_bf16_stays_near(tokenizer):
    model = wide_model(len(tokenizer))
    exact = score_batch(model, tokenizer, EXAMPLES, task())
    rounded = score_batch(model.bfloat16(), tokenizer, EXAMPLES, task())
    for a, b in zip(exact, rounded, strict=True):
        for label in LABELS:
            assert a.sums[label] == pytest.approx(b.sums[label], rel=0.01)


def test_a_kernel_that_takes_no_such_mask(tokenizer, monkeypatch):
    model = wide_model(len(tokenizer))
    monkeypatch.setattr(model.config, "_attn_implementation", "flex_attention")
    assert not can_share_prefix(model, 96)


def test_flash_attention_gives_way_to_one_that_takes_masks(tokenizer):
    model = wide_model(len(tokenizer))
    expected = score_batch(model, tokenizer, EXAMPLES, task())
    model.config._attn_implementation = "flash_attention_2"
    passes = []
    model.register_forward_hook(lambda *_: passes.append(model.config._attn_implementation))
    found = score_batch(model, tokenizer, EXAMPLES, task())
    assert [one.sums for one in found] == [one.sums for one in expected]
    assert {*passes} == {"sdpa"} and len(passes) < len(LABELS)
    assert model.config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "bloom", "falcon"])
def test_other_architectures(tokenizer, kind):
    """Learned positions, a window shorter than the prompt, ALiBi: what cannot share does not."""
    model = other_model(kind, len(tokenizer))
    assert can_share_prefix(model, 96) == (kind == "gpt2")
    for one, example in zip(score_batch(model, tokenizer, EXAMPLES, task()), EXAMPLES, strict=True):
        for label, (total, _) in expected(model, tokenizer, example, task()).items():
            assert one.sums[label] == pytest.approx(total, abs=1e-5)


def other_model(kind, vocabulary):
    import transformers as hf

    common = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2}
    configs = {
        "gpt2": lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **common),
        "mistral": lambda: hf.MistralConfig(sliding_window=8, **SIZES, **common),
        "falcon": lambda: hf.FalconConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, **common
        ),
        "bloom": lambda: hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **common),
    }
    config = configs[kind]()
    config.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hf.AutoModelForCausalLM.from_config(config).eval()


def test_passes_do_not_depend_on_the_batch(tokenizer, monkeypatch):
    """Ranks that keep step make as many passes for one example as for five."""
    model = wide_model(len(tokenizer))
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("moram_dist.decode.labels.WORTH_A_PASS", 1)
    for size, synced, passes in ((1, True, 1), (5, True, 1), (1, False, 1), (5, False, 2)):
        score_batch(model, tokenizer, BEGIN_ALIKE[:size], task(), synced=synced)
        assert len(calls) == passes
        calls.clear()
    model = other_model("bloom", len(tokenizer))
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for size in (1, 5):
        score_batch(model, tokenizer, EXAMPLES[:size], task())
        assert calls == [1] * len(LABELS)
        calls.clear()


def test_scores_of_cut_prompts(tokenizer):
    model, rules = wide_model(len(tokenizer)), task(max_prompt_tokens=12)
    for one, example in zip(score_batch(model, tokenizer, EXAMPLES, rules), EXAMPLES, strict=True):
        text = encode_candidates(tokenizer, example, rules)
        assert len(text.prefix) <= 12
        for label, tail in zip(LABELS, text.tails, strict=True):
            by_hand = brute_force(model, [*text.prefix, *tail], len(tail))
            assert one.sums[label] == pytest.approx(by_hand, abs=1e-5)


def walk(model, one) -> tuple[int, ...]:
    """The most likely allowed token, one full pass after another."""
    said: tuple[int, ...] = ()
    while said not in one.tails:
        allowed = {t[len(said)] for t in one.tails if t[: len(said)] == said}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*one.prefix, *said]])).logits[0, -1]
        said = (*said, max(allowed, key=lambda token: float(logits[token])))
    return said


@pytest.mark.parametrize("size", [1, 5])
def test_constrained_is_the_greedy_walk_through_the_labels(model, tokenizer, size):
    found = [
        label
        for k in range(0, len(EXAMPLES), size)
        for label in choose_batch(model, tokenizer, EXAMPLES[k : k + size], task())
    ]
    for label, example in zip(found, EXAMPLES, strict=True):
        one = encode_candidates(tokenizer, example, task())
        assert label == LABELS[one.tails.index(walk(model, one))]


def test_constrained_ignores_repetition_rules_and_length(tokenizer):
    """Both may forbid a label: one that the prompt repeats, one that is longer than any answer."""
    model = wide_model(len(tokenizer))
    rules = task(max_answer_tokens=1)
    strict = Decoding(repetition_penalty=9.0, no_repeat_ngram_size=1)
    examples = [
        Example(label, " ".join(other for other in LABELS if other != label) + ":", ("x",))
        for label in LABELS
    ]
    found = answer_batch(["constrained"], model, tokenizer, examples, rules, strict)
    for answer, example in zip(found["constrained"], examples, strict=True):
        one = encode_candidates(tokenizer, example, rules)
        assert answer.text == LABELS[one.tails.index(walk(model, one))]


def test_modes(model, tokenizer):
    modes = ["labels_mean", "constrained", "labels", "generate"]
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    both = answer_batch(modes[::2], model, tokenizer, EXAMPLES, task(), Decoding())
    handle.remove()
    assert calls == [1]  # scored once for both
    found = answer_batch(modes, model, tokenizer, EXAMPLES, task(), Decoding())
    assert list(found) == modes
    assert {mode: found[mode] for mode in both} == both
    for mode in ("labels", "labels_mean"):
        for one in found[mode]:
            assert list(one.log_likelihoods) == list(LABELS)
            assert one.text == best(one.log_likelihoods)
    assert {one.text for one in found["constrained"]} <= {*LABELS}
    assert all(one.log_likelihoods is None for one in found["generate"] + found["constrained"])


def test_without_labels_all_modes_generate(model, tokenizer):
    open_task = task(labels=())
    found = answer_batch(["labels"], model, tokenizer, EXAMPLES, open_task, Decoding())
    freely = answer_batch(["generate"], model, tokenizer, EXAMPLES, open_task, Decoding())
    assert found == {"labels": freely["generate"]}
