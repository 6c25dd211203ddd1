"""Scores are by the protocol's decoding, whatever the base's generation_config.json says."""

from __future__ import annotations

import json

import pytest
import torch

from moram_dist.config import ModelConfig
from moram_dist.decode.generate import greedy
from moram_dist.families import answer_batch, family_of_model
from moram_dist.models.language_model import load, load_tokenizer
from moram_dist.tasks.task import Decoding, Example, Task
from tests.helpers.answers import generate_batch
from tests.helpers.tiny import save_tiny_model, tiny_model, tokens
from tests.helpers.tiny_t5 import WIDE, tiny_t5

NEARLY_ALL = range(3, 370)
"""Tokens of the demo's vocabulary."""

HOSTILE = {
    "min_new_tokens": {"min_new_tokens": 6},
    "min_length": {"min_length": 40},
    "max_length": {"max_length": 3},
    "max_new_tokens": {"max_new_tokens": 1},
    "max_time": {"max_time": 1e-9},
    "suppressed": {"suppress_tokens": [*NEARLY_ALL], "begin_suppress_tokens": [*NEARLY_ALL]},
    "forced": {"forced_bos_token_id": 7, "forced_eos_token_id": 9},
    "eos": {"eos_token_id": [*NEARLY_ALL], "pad_token_id": 5, "bos_token_id": 8},
    "decoder_start": {"decoder_start_token_id": 11},
    "stop_strings": {"stop_strings": ["a", "e", "."]},
    "static_cache": {"cache_implementation": "static"},
    "no_cache": {"use_cache": False},
    "beams": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    "returns": {"num_return_sequences": 2, "num_beams": 2},
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5},
    "repetition": {"repetition_penalty": 1.9, "no_repeat_ngram_size": 1},
    "encoder": {"encoder_repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[token] for token in NEARLY_ALL]},
    "bias": {"sequence_bias": [[[token], -99.0] for token in NEARLY_ALL]},
    "decay": {"exponential_decay_length_penalty": [1, 3.0]},
    "guidance": {"guidance_scale": 2.5},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "watermark": {"watermarking_config": {"bias": 9.0, "greenlist_ratio": 0.2}},
    "returned": {"return_dict_in_generate": True, "output_scores": True},
    "own_fields": {"top_secret": 1, "transformers_version": "9.0"},
}
TASK = Task(
    name="t",
    metric="exact_match",
    train=(),
    test=(),
    labels=("food", "animal", "tool"),
    max_prompt_tokens=24,
    max_answer_tokens=12,
    separator=" ",
)
EXAMPLES = [Example(str(i), f"what {'very ' * i}is {i}?", ("food",)) for i in range(3)]


def models():
    tokenizer = load_tokenizer(ModelConfig())
    causal = tiny_model()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        causal.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return tokenizer, causal, tiny_t5(**WIDE)


def can_stream(model):
    return family_of_model(model).can_stream(model)


@pytest.fixture(scope="module")
def plain():
    """Answers of models that say nothing of generation."""
    tokenizer, causal, t5 = models()
    assert can_stream(causal) and not can_stream(t5)
    return answers(tokenizer, causal, t5)


def answers(tokenizer, causal, t5):
    rules = Decoding(repetition_penalty=1.2, no_repeat_ngram_size=3)
    ways = ("generate", "constrained", "labels")
    prompt = tokens(1, 9)[0].tolist()
    return [
        answer_batch(ways, causal, tokenizer, EXAMPLES, TASK, rules),
        generate_batch(t5, tokenizer, EXAMPLES, TASK, rules),
        greedy(causal, tokenizer, [prompt, prompt[:4]], max_new_tokens=8).tolist(),
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_base_says_of_generation_changes_no_answer(name, plain):
    tokenizer, causal, t5 = models()
    for model in (causal, t5):
        for field, value in HOSTILE[name].items():
            setattr(model.generation_config, field, value)
    own = causal.generation_config.to_dict()
    assert answers(tokenizer, causal, t5) == plain
    assert causal.generation_config.to_dict() == own  # a model that was lent stays as it was


def test_settings_that_would_change_answers_do_so_by_transformers_own_way():
    """The hostile ones are hostile: else the test above would show nothing."""
    _, causal, _ = models()
    ids = tokens(1, 9)
    free = causal.generate(ids, max_new_tokens=8, pad_token_id=0).tolist()
    alike = []
    for name in ("suppressed", "bad_words", "bias", "eos"):
        _, causal, _ = models()
        for field, value in HOSTILE[name].items():
            setattr(causal.generation_config, field, value)
        if causal.generate(ids, max_new_tokens=8).tolist() == free:
            alike.append(name)
    assert not alike


@pytest.mark.parametrize("content", [{"min_new_tokens": 6}, {"num_beams": "many"}, None])
def test_the_file_is_not_read_at_all(tmp_path, content):
    """So neither a setting in it nor a broken file is of any consequence."""
    folder = save_tiny_model(tmp_path / "base")
    text = "{" if content is None else json.dumps(content)
    (folder / "generation_config.json").write_text(text)
    base = load(ModelConfig(model=str(folder), dtype="fp32"), {"zero_optimization": {"stage": 0}})
    assert base.model.generation_config.min_new_tokens is None
    assert torch.equal(base.model.lm_head.weight, tiny_model().lm_head.weight)
