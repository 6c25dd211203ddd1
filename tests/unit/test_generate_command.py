"""``moram generate``: refusals in one line, chats, and files of prompts that lose no answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from launch.generate import main
from moram_dist import answered_by, load_memory
from moram_dist.config import ModelConfig
from moram_dist.models.language_model import DEMO_BASE, load_tokenizer
from moram_dist.registry import InputError
from moram_dist.use.answerer import Answerer
from moram_dist.use.prompt_file import answer_file, read_questions
from moram_dist.use.text_stream import TextStream
from tests.helpers.drawn_runs import demo_benchmark, draw_run, save_tiny_gpt2
from tests.helpers.tiny_clip import save_tiny_clip
from tests.helpers.tiny_t5 import save_tiny_t5

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [example.prompt for task in demo_benchmark().tasks for example in task.test]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return draw_run(tmp_path_factory.mktemp("drawn") / "run")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": str(i), "prompt": text}) for i, text in enumerate(PROMPTS)]
    path.write_text("\n".join(lines) + "\n")
    return path


def one_by_one(run, upto, numbers=None, new=8):
    """What transformers' own ``generate`` says to each prompt alone."""
    tokenizer = load_tokenizer(ModelConfig())
    model = load_memory(AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32), run)
    said = []
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([[1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        with answered_by(model, [numbers[i] if numbers else upto]):
            out = model.generate(
                ids, max_new_tokens=new, do_sample=False, eos_token_id=2, pad_token_id=3
            )
        said.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return said


def answers(path):
    return [json.loads(line)["prediction"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("upto", ["topic", "2", "0"])
def test_a_file_is_answered_as_by_transformers_one_by_one(run, prompts, tmp_path, capsys, upto):
    out = tmp_path / "answers.jsonl"
    words = [str(run), "--file", str(prompts), "--out", str(out), "--upto", upto]
    assert main([*words, "--recall", "all"]) == 0
    number = {"topic": 1}.get(upto) or int(upto)
    assert answers(out) == one_by_one(run, number)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [str(i) for i in range(len(PROMPTS))]
    assert "recognised" not in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "prompts.jsonl"]


def test_each_prompt_of_a_file_is_recognised(run, prompts, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert main([str(run), "--file", str(prompts), "--out", str(out), "--recall", "prefix"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    names = [line["recognised"] for line in lines]
    assert {"topic", "mood"} <= {*names}
    numbers = [1 if name == "topic" else 2 for name in names]
    assert answers(out) == one_by_one(run, 2, numbers)


def test_one_prompt_is_streamed_to_standard_output(run, capsys):
    for i in (0, len(PROMPTS) - 1):
        assert main([str(run), "--prompt", PROMPTS[i], "--recall", "all"]) == 0
        said = capsys.readouterr()
        assert said.out == one_by_one(run, 2)[i] + "\n" and said.err == ""
    assert main([str(run), "--prompt", PROMPTS[0], "--recall", "prefix"]) == 0
    assert capsys.readouterr().err == "recognised: topic\n"
    assert main([str(run), "--prompt", PROMPTS[0], "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out == one_by_one(run, 2, new=2)[0] + "\n"


def test_a_memory_folder_with_its_base(run, capsys):
    words = [str(run / "memory"), "--model", "demo", "--prompt", PROMPTS[0]]
    assert main([*words, "--max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out == one_by_one(run, 2)[0] + "\n"


def test_an_encoder_decoder(tmp_path, prompts, capsys):
    base = save_tiny_t5(tmp_path / "base")
    run = draw_run(tmp_path / "run", model=str(base))
    tokenizer = load_tokenizer(ModelConfig(model=str(base)))
    model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32)
    load_memory(model, run, recall="all")
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=8, do_sample=False)
        expected.append(tokenizer.decode(out[0], skip_special_tokens=True))
    words = ["--file", str(prompts), "--out", str(tmp_path / "out.jsonl"), "--recall", "all"]
    assert main([str(run), *words]) == 0
    assert answers(tmp_path / "out.jsonl") == expected
    capsys.readouterr()
    assert main([str(run), "--prompt", PROMPTS[0], "--recall", "all"]) == 0
    assert capsys.readouterr().out == expected[0] + "\n"


def test_more_tokens_than_the_model_has_positions(tmp_path, capsys):
    base = save_tiny_gpt2(tmp_path / "base")
    flags = {"model": str(base), "target_modules": "c_attn"}
    run = draw_run(tmp_path / "run", **flags)
    capsys.readouterr()
    words = [str(run), "--prompt", "a", "--recall", "all"]
    length = 1 + len(load_tokenizer(ModelConfig())("a", add_special_tokens=False)["input_ids"])
    last = 256 - length + 1  # nothing is read after the last one
    assert main([*words, "--max_new_tokens", str(last + 1)]) == 2
    said = capsys.readouterr().err
    assert f"a prompt of {length} tokens and {last + 1} new ones exceed the model's 256" in said
    assert main([*words, "--max_new_tokens", str(last)]) == 0


def test_a_prompt_that_the_rules_cut_is_told(run, capsys):
    assert main([str(run), "--prompt", "long " * 100, "--max_new_tokens", "2"]) == 0
    assert capsys.readouterr().err == "1 of 1 prompts are cut to 64 tokens, as in task mood\n"


def test_an_answer_that_is_a_part_of_the_text_is_not_streamed(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    text = (copy / "inputs.json").read_text()
    (copy / "inputs.json").write_text(text.replace('"answer_after": ""', '"answer_after": ":"'))
    assert main([str(copy), "--prompt", PROMPTS[0], "--recall", "all"]) == 0
    assert capsys.readouterr().out == one_by_one(run, 2)[0].strip() + "\n"


def test_what_was_answered_is_not_asked_again(run, prompts, tmp_path, capsys, monkeypatch):
    out = tmp_path / "answers.jsonl"
    words = [str(run), "--file", str(prompts), "--out", str(out), "--recall", "all"]
    answer = Answerer.answers
    asked = []

    def stops(self, texts, numbers):
        asked.append(len(texts))
        for count, found in enumerate(answer(self, texts, numbers)):
            if count == 3 and len(asked) == 1:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Answerer, "answers", stops)
    assert main(words) == 130
    partial = tmp_path / "answers.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 1 + 3 and not out.exists()
    with partial.open("a") as file:
        file.write('{"index": 7, "predic')  # as a kill within a write leaves it
    capsys.readouterr()
    assert main([*words, "--upto", "topic"]) == 2
    assert "partial holds answers to other prompts, settings or tasks" in capsys.readouterr().err
    assert main(words) == 0
    assert "3 of 12 answers are there already" in capsys.readouterr().err
    assert asked == [12, 9] and not partial.exists()
    assert answers(out) == one_by_one(run, 2)
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


def test_two_processes_do_not_write_one_file(run, prompts, tmp_path):
    questions = read_questions(prompts, None, chat=False)
    with answer_file(tmp_path / "a.jsonl", "d", questions):
        with pytest.raises(InputError, match="in use by another process"):
            with answer_file(tmp_path / "a.jsonl", "d", questions):
                pass


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def test_chats_are_written_by_the_template(run, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(DEMO_BASE, base)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    plain = "<user>Hello\n<assistant>"
    words = [str(run), "--recall", "all", "--model", str(base)]
    assert main([*words, "--prompt", "Hello", "--chat"]) == 0
    expected = capsys.readouterr().out
    file = tmp_path / "chats.jsonl"
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    file.write_text(json.dumps(chat) + "\n" + json.dumps({"prompt": "Hello"}) + "\n")
    tokenizer = load_tokenizer(ModelConfig(model=str(base)))
    assert [q.text for q in read_questions(file, tokenizer, chat=True)] == [plain, plain]
    out = tmp_path / "out.jsonl"
    words += ["--file", str(file), "--out", str(out)]
    assert main([*words, "--chat"]) == 0
    assert answers(out) == [expected.removesuffix("\n")] * 2
    out.unlink()
    assert main(words) == 2
    assert "some records are chats and some are not" in capsys.readouterr().err
    file.write_text(json.dumps(chat) + "\n")
    assert main(words) == 0
    assert answers(out) == [expected.removesuffix("\n")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of --prompt and --file"),
        (["--prompt", "x", "--file", "y"], "give one of --prompt and --file"),
        (["--file", "y.jsonl"], "--file and --out belong together"),
        (["--prompt", " "], "--prompt is empty"),
        (["--file", "none.jsonl", "--out", "o.jsonl"], "none.jsonl: no such file"),
        (["--prompt", "x", "--upto", "mod"], "unknown task 'mod'; did you mean 'mood'?"),
        (["--prompt", "x", "--upto", "3"], "unknown task '3'"),
        (["--prompt", "x", "--recall", "some"], "unknown --recall 'some'; known: all, prefix"),
        (["--prompt", "x", "--task", "music"], "unknown task 'music'"),
        (["--prompt", "x", "--max_new_tokens", "0"], "--max_new_tokens must be from 1"),
        (["--prompt", "x", "--chat"], "--chat: the base's tokenizer has no chat template"),
        (["--prompt", "x", "--model", "CLIP"], "reads pictures and chooses among classes"),
        (["--prompt", "x", "--model", "OTHER"], "is another model or another version"),
    ],
)
def test_a_refusal_is_one_line(run, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    if "CLIP" in words:
        save_tiny_clip(tmp_path / "CLIP")
    if "OTHER" in words:
        shutil.copytree(DEMO_BASE, tmp_path / "OTHER")
        model = AutoModelForCausalLM.from_pretrained(DEMO_BASE)
        model.model.norm.weight.data += 1
        model.save_pretrained(tmp_path / "OTHER")
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()  # what saving a model may say
    assert main([str(run), *words]) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and said in found.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("in_context", "in_context puts training examples before each prompt"),
        ("sequential_lora", "does not keep its earlier states"),
    ],
)
def test_methods_that_cannot(tmp_path, capsys, method, said):
    run = draw_run(tmp_path / "run", method, recall="prefix")
    assert main([str(run), "--prompt", "x"]) == 2
    assert said in capsys.readouterr().err


def test_folders_that_are_no_run(run, tmp_path, capsys):
    assert main([str(tmp_path), "--prompt", "x"]) == 2
    assert "holds no memory" in capsys.readouterr().err
    assert main([str(run / "memory"), "--prompt", "x"]) == 2
    assert "give --model, the folder or hub id of demo" in capsys.readouterr().err


def test_the_pieces_of_a_stream_add_up():
    """Where a token's text depends on others: bytes of a character, spaces of SentencePiece."""
    tokenizer = load_tokenizer(ModelConfig())
    for text in ("é ü 漢字 ok", "a\nb  c\n", "ß"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = []
        stream = TextStream(tokenizer, pieces.append)
        for one in [[1, 2, 3], *ids, 2]:
            stream.put(torch.tensor([one]))
        stream.end()
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(pieces) == whole == stream.text
        assert not any("\ufffd" in piece for piece in pieces)


HIDDEN = {"deepspeed", "accelerate", "mlflow", "matplotlib", "PIL", "peft", "datasets", "pandas"}
CHILD = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] not in {hidden}:
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
from launch.generate import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_no_package_of_training_is_needed(run):
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(hidden=HIDDEN), str(run), "--prompt", PROMPTS[0]],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == one_by_one(run, 2)[0] + "\n"
