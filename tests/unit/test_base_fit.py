"""A benchmark whose tokens or lengths a base has no rows or positions for."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from launch.base import check_base
from moram_dist.config import EvalConfig, ModelConfig, RunConfig
from moram_dist.data.limits import check_ids
from moram_dist.families import family_of_model
from moram_dist.models import language_model
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Example, Task
from tests.helpers.bases import GPT2, LLAMA, OPT, ROWS, SMALL, change, made, save
from tests.helpers.configs import config_of
from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_t5 import save_tiny_t5, tiny_t5


def positions(model):
    return family_of_model(model).positions(model)


def benchmark(*tasks, **rules):
    return Benchmark(name="own", order="default", protocol="own", tasks=tasks, **rules)


def task(*, train=("a",), test=("a",), answer="yes", **rules):
    examples = [
        tuple(Example(f"{split}-{i}", prompt, (answer,)) for i, prompt in enumerate(prompts))
        for split, prompts in (("train", train), ("test", test))
    ]
    rules = {"metric": "accuracy", "max_prompt_tokens": 1024, "max_answer_tokens": 8} | rules
    return Task(name="only", train=examples[0], test=examples[1], **rules)


def run(folder, method="moram", answers="generate", **rules):
    """Check a base and a benchmark of one task, as a run does."""
    model = ModelConfig(model=str(folder), dtype="fp32")
    config = RunConfig(
        model=model, method=config_of(method=method), eval=EvalConfig(answers=answers)
    )
    one = benchmark(task(**rules))
    return check_base(config, one, language_model.skeleton(model))


# Tokens beyond the model's rows.


def add_token(folder, **settings):
    """A token in the tokenizer that the model has no row for."""
    added = {str(ROWS): {"content": "[NEW]", "special": True, "lstrip": False, "rstrip": False,
                         "single_word": False, "normalized": False}}  # fmt: skip
    change(folder / "tokenizer_config.json", added_tokens_decoder=added, **settings)


def test_another_pad_token_where_the_model_has_no_row_for_it(tmp_path):
    folder = save("llama", tmp_path, **LLAMA)
    add_token(folder, pad_token="[NEW]")
    tokenizer = language_model.load_tokenizer(ModelConfig(model=str(folder)))
    assert tokenizer.pad_token_id == tokenizer.unk_token_id < ROWS
    run(folder)


@pytest.mark.parametrize("kind", ["eos_token", "bos_token"])
def test_special_tokens_that_the_model_has_no_row_for(tmp_path, kind):
    folder = save("llama", tmp_path, **LLAMA)
    add_token(folder, **{kind: "[NEW]"})
    with pytest.raises(InputError, match=f"{kind} is token {ROWS}, and the model has rows 0 to"):
        run(folder)


def test_texts_with_tokens_that_the_model_has_no_row_for(tmp_path):
    folder = save("llama", tmp_path, **LLAMA)
    add_token(folder)
    run(folder)  # nothing holds it
    for texts in ({"train": ("a", "b [NEW]")}, {"test": ("[NEW]",)}, {"answer": "[NEW]"}):
        with pytest.raises(InputError, match=rf"example of task only holds token {ROWS}"):
            run(folder, **texts)
    with pytest.raises(InputError, match="a label of task only holds token"):
        run(folder, labels=("yes", "[NEW]"))


def test_a_tokenizer_of_another_model(tmp_path):
    folder = save("llama", tmp_path, **LLAMA | {"vocab_size": 100})
    with pytest.raises(InputError, match=r"holds token \d+ .*, and the model has rows 0 to 99"):
        run(folder, train=("The quick brown fox",))


def test_no_pass_over_the_texts_where_all_tokens_have_rows():
    tokenizer = SimpleNamespace(
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=1,
        unk_token="<unk>",
        get_vocab=lambda: {"<unk>": 0, "b": 1, "c": 2},
    )
    check_ids(tokenizer, benchmark(task()), 3, "x")  # it cannot be called


# Texts beyond the model's positions.


@pytest.mark.parametrize(
    ("kind", "settings", "limit"),
    [
        ("gpt2", GPT2, 64),
        ("opt", OPT, 64),
        ("gpt_neo", {**SMALL, "num_layers": 1, "num_heads": 4, "max_position_embeddings": 64,
                     "attention_types": [[["global"], 1]]}, 64),
        ("gptj", {**GPT2, "rotary_dim": 4}, 64),
        ("codegen", {**GPT2, "rotary_dim": 4}, 64),
        ("biogpt", {**SMALL, "intermediate_size": 48, "max_position_embeddings": 64}, 64),
        ("gpt_bigcode", GPT2, 64),
        ("openai-gpt", GPT2, 64),
        ("ctrl", {**GPT2, "dff": 48}, 64),
        ("roberta", {**SMALL, "intermediate_size": 48, "max_position_embeddings": 66,
                     "pad_token_id": 1, "is_decoder": True}, 64),
        ("mpt", {"vocab_size": ROWS, "d_model": 32, "n_layers": 1, "n_heads": 4,
                 "max_seq_len": 64}, 64),
        ("llama", {**LLAMA, "max_position_embeddings": 64}, None),
        ("gpt_neox", {**SMALL, "intermediate_size": 48, "max_position_embeddings": 64}, None),
        ("bloom", {"vocab_size": ROWS, "hidden_size": 32, "n_layer": 1, "n_head": 4}, None),
        ("mamba2", {**SMALL, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}, None),
        ("xglm", {"vocab_size": ROWS, "d_model": 32, "num_layers": 1, "attention_heads": 4,
                  "ffn_dim": 48, "max_position_embeddings": 64}, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_positions_of_architectures(kind, settings, limit):
    """The limit is what the model itself can read, one token more is an error of its own."""
    with torch.device("meta"):
        assert positions(made(kind, **settings)).tokens == limit
    model = made(kind, **settings)
    with torch.no_grad():
        model(input_ids=torch.full((1, 64), 5))
        longer = torch.full((1, 65), 5)
        if limit is None:
            model(input_ids=longer)
            return
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=longer)


def test_rotary_positions_and_none():
    assert positions(tiny_model()).trained == 64
    assert dataclasses.astuple(positions(tiny_t5())) == (None, None, None)


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return save("opt", tmp_path_factory.mktemp("opt"), **OPT)


SHORT, LONG = "a b c", "a b c " * 40


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"train": (SHORT, LONG)}, "training example train-1 of task only takes"),
        ({"train": (SHORT,), "answer": LONG}, "training example train-0 of task only takes"),
        ({"train": (LONG,), "joined": False, "shared_limit": False}, "training example train-0"),
        ({"test": (SHORT, LONG)}, "test example test-1 of task only takes"),
        ({"max_answer_tokens": 512}, "test example test-0 .* 511 of answer"),
        ({"labels": ("yes", LONG), "answers": "labels"}, "test-0 .* with its longest label"),
        ({"labels": ("yes", LONG), "answers": "generate,constrained"}, "with its longest label"),
        ({"test": (LONG,), "method": "zero_shot"}, "test example test-0"),
        ({"train": (SHORT * 15, SHORT * 15), "method": "in_context"}, "test example test-0"),
    ],
    ids=str,
)
def test_texts_beyond_the_positions(opt, settings, where):
    with pytest.raises(InputError, match="has 64 positions, and .*" + where) as caught:
        run(opt, **settings)
    assert "lower --max_prompt_tokens" in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": (LONG,), "test": (LONG,), "max_prompt_tokens": 48},
        {"train": (LONG,), "method": "zero_shot"},
        {"max_answer_tokens": 512, "labels": ("yes", "no"), "answers": "labels"},
        {"labels": (LONG,), "answers": "generate"},
        {"test": (LONG,), "max_prompt_tokens": 57},  # the last token is generated and not read
    ],
    ids=str,
)
def test_texts_within_the_positions(opt, settings):
    assert run(opt, **settings).notes == ()


def test_beyond_what_rotary_positions_were_made_for_is_a_note(tmp_path):
    folder = save("llama", tmp_path, **LLAMA | {"max_position_embeddings": 64})
    assert run(folder, max_answer_tokens=512).notes == ()
    (note,) = run(folder, test=(LONG,)).notes
    assert "test example test-0 of task only" in note
    assert "made for 64" in note


def test_an_encoder_without_a_table_reads_whatever_comes(tmp_path):
    assert run(save_tiny_t5(tmp_path), train=(LONG,), test=(LONG * 3,)).notes == ()
