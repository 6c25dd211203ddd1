"""Wrong input: one line that names it, exit code 2, nothing done and nothing left behind.

Most cases call the command's own ``main`` in this process; a few go through a real command line.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import launch.train
from launch.session import Session
from moram_dist import config_io
from moram_dist.models.language_model import DEMO_BASE
from tests.helpers.architectures import bare
from tests.integration.launching import TRAIN, launcher, run

pytestmark = pytest.mark.integration


class RefusedError(Exception):
    pass


@pytest.fixture
def complaint(monkeypatch, tmp_path):
    """Gives flags to the command; returns what it says, once it is sure that it only said that."""

    def refuse(error, code=2):
        raise RefusedError(str(error))

    def work(session):
        pytest.fail("this was not refused")

    monkeypatch.setattr(launch.train, "refuse", refuse)
    monkeypatch.setattr(Session, "run", work)
    monkeypatch.chdir(tmp_path)

    def give(*arguments: str, **flags: object) -> str:
        settled = {"preset": "published", "tracking": "none", "output_dir": tmp_path / "out"}
        flags = settled | flags
        out = Path(str(flags["output_dir"]))
        before = everything_in(out)
        with pytest.raises(RefusedError) as caught:
            launch.train.main(*arguments, **{name: str(value) for name, value in flags.items()})
        assert everything_in(out) == before
        assert not (tmp_path / "runs").exists()
        message = str(caught.value)
        assert message.strip() and "\n" not in message
        return message

    return give


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FLAGS = [
    ({"topk": 3}, "unknown flag '--topk'; did you mean '--top_k'?"),
    ({"metod.top_k": 3}, "unknown flag 'metod.top_k'; did you mean 'top_k'?"),
    ({"train.top_k": 3}, "unknown flag 'train.top_k'; did you mean 'top_k'?"),
    ({"benchmark": "tarce"}, "unknown benchmark 'tarce'; did you mean 'trace'?"),
    ({"method": "moran"}, "unknown method 'moran'; did you mean 'moram'?"),
    ({"order": "revresed"}, "unknown order 'revresed'; did you mean 'reversed'?"),
    ({"order": "topic,mod"}, "unknown task 'mod'; did you mean 'mood'?"),
    ({"order": "topic,topic"}, "names task 'topic' twice"),
    ({"protocol": "moram"}, "unknown protocol 'moram'; known: demo"),
    ({"dtype": "fp16"}, "unknown --dtype 'fp16'"),
    ({"attention": "flash"}, "unknown --attention 'flash'; known: auto, eager, flash_attention_2"),
    ({"attention": "flash_attention_2", "dtype": "fp32"}, "--attention flash_attention_2 needs"),
    ({"schedule": "cosin"}, "did you mean 'cosine'?"),
    ({"eval_rows": "every"}, "unknown --eval_rows 'every'; known: all, diagonal, last, seen"),
    ({"tracking": "wandb"}, "unknown --tracking 'wandb'; known: mlflow, none"),
    ({"top_k": 0}, "--top_k must be >= 1, got 0"),
    ({"atoms_per_task": 0}, "--atoms_per_task must be >= 1, got 0"),
    ({"temperature": 0}, "--temperature must be > 0, got 0.0"),
    ({"temperature": -0.5}, "--temperature must be > 0, got -0.5"),
    ({"threshold": 1.5}, "--threshold must be in [0, 1], got 1.5"),
    ({"dropout": 1}, "--dropout must be in [0, 1), got 1.0"),
    ({"replay_budget": 0}, "--replay_budget must be > 0, got 0"),
    ({"demonstrations": 0}, "--demonstrations must be > 0, got 0"),
    ({"batch_size": 0}, "--batch_size must be > 0, got 0"),
    ({"limit_train": -1}, "--limit_train must be > 0, got -1"),
    ({"seed": -1}, "--seed must be >= 0, got -1"),
    ({"top_k": "four"}, "--top_k must be a whole number, got 'four'"),
    ({"top_k": 2.5}, "--top_k must be a whole number, got '2.5'"),
    ({"top_k": "inf"}, "--top_k must be a whole number, got 'inf'"),
    ({"learning_rate": "fast"}, "--learning_rate must be a number, got 'fast'"),
    ({"learning_rate": "nan"}, "--learning_rate must be a number, got 'nan'"),
    ({"epochs": "inf"}, "--epochs must be a number, got 'inf'"),
    ({"gradient_checkpointing": "perhaps"}, "--gradient_checkpointing must be true or false"),
    ({"splits": "eval"}, "--splits must be a mapping, got 'eval'"),
    ({"target_modules": "query"}, "--target_modules 'query' matches no linear layer of Llama"),
    ({"target_modules": "("}, "--target_modules '(' is no regular expression"),
]


@pytest.mark.parametrize(("flags", "expected"), FLAGS, ids=[str(f) for f, _ in FLAGS])
def test_flags(complaint, flags, expected):
    assert expected in complaint(**flags)


def test_stray_argument(complaint):
    assert "unexpected argument 'zero3.json'" in complaint("zero3.json", top_k=4)


# Data.

GOOD = [{"prompt": "2+2?", "answer": "4"}, {"prompt": "2+3?", "answer": "5"}]

DATA = [
    ("{", "train.json, line 1, column 2: malformed JSON"),
    ('[{"prompt": "a",\n "answer" 1}]', "train.json, line 2, column 11: malformed JSON"),
    ("[]", "train.json: holds no examples"),
    ('{"prompt": "a"}', "train.json: expected a list of objects, got an object"),
    (json.dumps([GOOD[0], {"prompt": "a"}]), "train.json, record 1: no field 'answer'"),
    (json.dumps([{**GOOD[0], "answer": " "}]), "train.json, record 0: 'answer' is empty"),
    (json.dumps([{**GOOD[0], "prompt": 5}]), "train.json, record 0: 'prompt' must be a text"),
    (b"\xff[]", "train.json: not UTF-8 at byte 0"),
]


@pytest.fixture
def tasks(tmp_path):
    """A folder of one good task."""
    folder = tmp_path / "tasks"
    (folder / "sums").mkdir(parents=True)
    for split in ("train", "test"):
        (folder / "sums" / f"{split}.json").write_text(json.dumps(GOOD))
    return folder


@pytest.mark.parametrize(("content", "expected"), DATA)
def test_data_files(complaint, tasks, content, expected):
    path = tasks / "sums" / "train.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"{tasks / 'sums'}/{expected}" in complaint(benchmark="jsonl", data_dir=tasks)


@pytest.mark.parametrize("benchmark", ["trace", "jsonl"])
def test_data_dir(complaint, tmp_path, benchmark):
    assert f"{benchmark} needs --data_dir" in complaint(benchmark=benchmark)
    nowhere = tmp_path / "nowhere"
    message = complaint(benchmark=benchmark, data_dir=nowhere)
    assert message.startswith("--data_dir: no such") and str(nowhere) in message


def test_missing_files(complaint, tasks):
    (tasks / "sums" / "test.json").unlink()
    message = complaint(benchmark="jsonl", data_dir=tasks)
    assert f"{tasks / 'sums'}: expected one file test that ends in" in message
    (tasks / "FOMC").mkdir()
    message = complaint(benchmark="trace", data_dir=tasks, order="FOMC")
    assert str(tasks / "FOMC" / "train.json") in message


# Recipe and DeepSpeed file.

RECIPES = [
    ("train: [\n", ", line 2, column 1: malformed YAML"),
    ("[1, 2]\n", ": expected a mapping of names to values"),
    ("top_kk: 3\n", "unknown key in {path} 'top_kk'; did you mean 'top_k'?"),
    ("trian:\n  epochs: 1\n", "unknown key in {path} 'trian'; did you mean 'train'?"),
    ("train:\n  top_k: 3\n", "unknown key in {path} 'train.top_k'; did you mean 'top_k'?"),
    ("top_k: [3]\n", "--top_k must be a whole number, got [3]"),
]


@pytest.mark.parametrize(("content", "expected"), RECIPES)
def test_recipes(complaint, tmp_path, content, expected):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    assert expected.format(path=path) in complaint(recipe=path)


DS_CONFIGS = [
    ('{"zero_optimization": {\n  "stage": 3,\n}}', ", line 3, column 1: malformed JSON"),
    ("[]", ": expected a JSON object"),
    ('{"train_batch_size": 7}', ": train_batch_size is 7, but"),
    ('{"train_micro_batch_size_per_gpu": 3}', ": train_micro_batch_size_per_gpu is 3, but"),
    ('{"gradient_accumulation_steps": 2}', ": gradient_accumulation_steps is 2, but"),
    ('{"gradient_clipping": 0.5}', ": gradient_clipping is 0.5, but"),
    ('{"bf16": {"enabled": true}}', ": bf16.enabled is True, but the run's --dtype"),
    ('{"bf16": true}', ": bf16 must be an object, got True"),
    ('{"fp16": {"enabled": true}}', ": remove 'fp16'; it is set by --dtype"),
    ('{"optimizer": {"type": "Adam"}}', ": remove 'optimizer'; it is set by --learning_rate"),
    ('{"scheduler": {"type": "WarmupLR"}}', ": remove 'scheduler'; it is set by --schedule"),
    ('{"zero_optimization": 3}', ": zero_optimization must be an object, got 3"),
    (
        '{"zero_optimization": {"stage": 4}}',
        ": zero_optimization.stage: input should be 0, 1, 2, 3",
    ),
    (
        '{"zero_optimization": {"stag": 3}}',
        ": zero_optimization: unknown key 'stag'; did you mean 'stage'?",
    ),
]


@pytest.mark.parametrize(("content", "expected"), DS_CONFIGS)
def test_deepspeed_files(complaint, tmp_path, content, expected):
    path = tmp_path / "ds.json"
    path.write_text(content)
    assert f"{path}{expected}" in complaint(ds_config=path, dtype="fp32")


@pytest.mark.parametrize("flag", ["recipe", "ds_config"])
def test_files_that_are_not_there(complaint, tmp_path, flag):
    path = tmp_path / "none"
    assert f"{path}: no such file" in complaint(**{flag: path})
    assert f"{tmp_path}: cannot be read: Is a directory" in complaint(**{flag: tmp_path})


# Models.


@pytest.fixture
def model(tmp_path):
    """A copy of the demo's base."""
    return shutil.copytree(DEMO_BASE, tmp_path / "model")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_model_folders(complaint, model):
    assert f"--model {model}x: no such folder" in complaint(model=f"{model}x")
    change(model / "config.json", model_type="vit")
    assert f"--model {model}: is no causal language model" in complaint(model=model)
    change(model / "config.json", model_type="nonesuch")
    assert f"--model {model}: config.json cannot be used" in complaint(model=model)
    (model / "config.json").write_text("{")
    assert f"{model / 'config.json'}, line 1, column 2: malformed" in complaint(model=model)
    (model / "config.json").unlink()
    assert f"{model / 'config.json'} does not exist" in complaint(model=model)


def test_a_model_without_tokenizer_or_weights(complaint, model):
    for path in model.glob("tokenizer*"):
        path.unlink()
    assert f"--model {model}: holds neither tokenizer.json nor" in complaint(model=model)
    (model / "model.safetensors").unlink()
    assert f"--model {model}: holds no *.safetensors" in complaint(model=model)


def test_a_model_without_the_target_modules(complaint, model):
    bare("Mamba2").config.save_pretrained(model)
    said = "--target_modules 'attention' matches no linear layer of Mamba2ForCausalLM; it has: in_p"
    assert said in complaint(model=model)
    said = complaint(model=model, target_modules="in_proj,qproj")
    assert "'qproj' is no linear layer of Mamba2ForCausalLM" in said


@pytest.mark.parametrize("model_type", ["llama", "nonesuch"])
def test_a_models_own_code_does_not_run(complaint, model, tmp_path, model_type):
    planted = tmp_path / "planted"
    (model / "own.py").write_text(f"open({str(planted)!r}, 'w')\nclass Own: pass\n")
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    change(model / "config.json", model_type=model_type, auto_map=own)
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    # A known type loads by transformers' own code, and is then refused for another reason.
    expected = "needs code of its own" if model_type == "nonesuch" else "--target_modules 'query'"
    assert expected in complaint(model=model, target_modules="query")
    assert not planted.exists()


# Where results go.


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_tracking_uri(complaint, uri):
    message = complaint(tracking="mlflow", tracking_uri=uri)
    assert f"--tracking_uri {uri!r}: MLflow keeps no runs in a plain folder" in message


def test_an_output_directory_that_cannot_be_written(complaint, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    assert f"--output_dir {folder}: cannot write" in complaint(output_dir=folder)
    if os.geteuid() != 0:  # to root, every folder is writable
        (tmp_path / "locked").mkdir(mode=0o500)
        message = complaint(output_dir=tmp_path / "locked")
        assert f"--output_dir {tmp_path / 'locked'}: cannot write" in message


def test_an_output_directory_with_something_else_in_it(complaint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    assert f"{tmp_path / 'out'} is not empty and holds no run" in complaint()


def test_an_output_directory_of_another_configuration(complaint, tmp_path):
    flags = {"top_k": "4", "order": "topic", "learning_rate": "1e-4", "batch_size": "32"}
    saved = config_io.to_dict(config_io.build({**flags, "protocol": "demo"}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.yaml").write_text(yaml.safe_dump(saved))
    message = complaint(**{**flags, "top_k": 5})
    assert f"--output_dir {tmp_path / 'out'} holds another configuration (top_k: 4 -> 5)" in message


# The command line itself.


def one_line(done) -> str:
    assert done.code == 2, done.out + done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    return done.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--topk", "3"], "unknown flag '--topk'; did you mean '--top_k'?"),
        (["--nope"], "unknown flag '--nope'"),
        (["--top_k=4", "-", "--seed", "1"], "unexpected argument '-'"),
        (["--top_k"], "--top_k must be a whole number, got 'True'"),
        (["--data_dir", "a\nb", "--benchmark", "trace"], "--data_dir holds '\\n': 'a\\nb'"),
    ],
)
def test_as_a_script_from_anywhere(tmp_path, words, expected):
    done = run(sys.executable, TRAIN, *words, "--output_dir", "out", cwd=tmp_path, timeout_s=120)
    assert expected in one_line(done)
    assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_through_the_launcher(tmp_path):
    done = run(*launcher("--model", "./none", "--output_dir", "out"), cwd=tmp_path)
    assert "--model ./none: no such folder" in one_line(done)
    assert not list(tmp_path.iterdir())
