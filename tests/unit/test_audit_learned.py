"""The audit shows a training example of each task, with what is learned in colour or in marks."""

from __future__ import annotations

import json
import shutil

import pytest

from eval.audit.learned import LONGEST, learned_example, parts_of_page
from eval.run import main
from moram_dist.config import ModelConfig
from moram_dist.families.causal import Causal
from moram_dist.families.encoder_decoder import EncoderDecoder
from moram_dist.models.language_model import DEMO_BASE, load_tokenizer
from moram_dist.tasks import Example, Task
from moram_dist.terminal import marked, say_marked
from tests.helpers.chats import CHATML
from tests.helpers.tiny_t5 import save_tiny_t5

CHAT = [("user", "A cat?"), ("assistant", "pet"), ("user", "A saw?"), ("assistant", "tool")]
SHOWN = """

## What is learned: the first training example of each task

t, train-0:

    <|im_start|>user
    A cat?<|im_end|>
    <|im_start|>assistant
    [[pet<|im_end|>]]
    <|im_start|>user
    A saw?<|im_end|>
    <|im_start|>assistant
    [[tool<|im_end|></s>]]
"""


@pytest.fixture
def chats(tmp_path):
    """The audit's words, for a chat and a base with a template."""
    base = shutil.copytree(DEMO_BASE, tmp_path / "base")
    (base / "chat_template.jinja").write_text(CHATML)
    record = {"messages": [{"role": role, "content": text} for role, text in CHAT]}
    for split in ("train", "test"):
        (tmp_path / "data" / "t").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "t" / f"{split}.jsonl").write_text(json.dumps(record))
    words = ["audit", "--benchmark", "jsonl", "--data_dir", str(tmp_path / "data")]
    return [*words, "--model", str(base)]


def test_marks(chats, tmp_path, capsys):
    assert main([*chats, "--out", str(tmp_path / "a.md")]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(SHOWN)
    assert (tmp_path / "a.md").read_text() == printed
    assert main([*chats, "--loss_turns", "last", "--out", str(tmp_path / "a.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("[[") == 1 and printed.endswith("[[tool</s>]]\n")
    (found,) = json.loads((tmp_path / "a.json").read_text())["learned"]
    assert (found["task"], found["id"]) == ("t", "train-0")
    assert found["parts"][-1] == ["tool</s>", True]


def test_colours(chats, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*chats, "--out", str(tmp_path / "a.md")]) == 0
    printed = capsys.readouterr().out
    assert "[[" not in printed
    assert "assistant\n    \x1b[1;32mpet<|im_end|>\x1b[0m\n    <|im_start|>user" in printed
    assert "[[pet<|im_end|>]]" in (tmp_path / "a.md").read_text()
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(chats) == 0
    assert capsys.readouterr().out.endswith(SHOWN)


def test_a_text_gives_no_commands_to_a_terminal(capsys, monkeypatch):
    parts = [("a\x1b[2J", False), ("b\x1b[2J\nc", True)]
    say_marked(parts)
    assert capsys.readouterr().out == "a\\x1b[2J[[b\\x1b[2J\nc]]\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    say_marked(parts)
    green = "\x1b[1;32mb\\x1b[2J\x1b[0m\n\x1b[1;32mc\x1b[0m"
    assert capsys.readouterr().out == f"a\\x1b[2J{green}\n"


def test_refusals(chats, tmp_path, capsys):
    def refused(*words):
        assert main(words) == 2
        out, line = capsys.readouterr()
        assert not out and line.count("\n") == 1
        return line

    assert "unknown --loss_turns 'first'; known: all" in refused(*chats, "--loss_turns", "first")
    said = refused("audit", "--benchmark", "demo", "--loss_turns", "all")
    assert "no task of demo has chats" in said
    base = save_tiny_t5(tmp_path / "t5")
    (base / "chat_template.jinja").write_text(CHATML)
    capsys.readouterr()
    said = refused(*chats[:-1], str(base))
    assert "task t, train-0: the assistant answers more than once" in said
    assert main([*chats[:-1], str(base), "--loss_turns", "last"]) == 0


def a_task(prompt):
    return Task(
        name="t",
        metric="exact_match",
        train=(Example("train-0", prompt, ("yes",)),),
        test=(),
        separator=" ",
    )


def test_an_encoder_reads_the_prompt_and_a_decoder_learns_the_answer(tmp_path):
    tokenizer = load_tokenizer(ModelConfig(model=str(save_tiny_t5(tmp_path))))
    found = learned_example(a_task("Is snow white?"), tokenizer, EncoderDecoder(0))
    assert marked(found.parts) == "Is snow white?</s>\n<unk>[[ yes</s>]]"


def test_the_middle_of_a_long_prompt_is_left_out():
    tokenizer = load_tokenizer(ModelConfig())
    found = learned_example(a_task("x" * 900 + "y" * LONGEST), tokenizer, Causal())
    (prompt, _), _ = found.parts
    assert prompt.startswith("<s>") and prompt.endswith("y" * (LONGEST // 2))
    assert " characters] ... " in prompt and len(prompt) < LONGEST + 50
    assert marked(parts_of_page([found])).count("\n") == 5
