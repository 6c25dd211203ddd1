"""``moram inspect``: shares by the formula, marks and colours, a page that escapes, refusals."""

from __future__ import annotations

import html
import re

import pytest
import torch

from launch.inspection import main, page
from moram_dist.adapters.routed import routed_linears
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.config import ModelConfig
from moram_dist.models.language_model import load_tokenizer
from moram_dist.terminal import say_numbered
from moram_dist.use.answerer import Answerer, Asked
from moram_dist.use.inspected import InspectedPrompt, InspectedToken, inspect_prompt, pieces
from moram_dist.use.source import read_source
from tests.helpers.drawn_runs import TASKS, draw_run
from tests.helpers.tiny_clip import save_tiny_clip
from tests.helpers.tiny_t5 import save_tiny_t5

PROMPT = "Text: The kitten slept. Topic:"
SCRIPT = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return draw_run(tmp_path_factory.mktemp("drawn") / "run")


def by_formula(x_TD, run, linear):
    """Shares of topic, of mood and of silence: the paper's formula over eight atoms."""
    files = MemoryFiles(run / "memory")
    keys = torch.cat([files.read(task)[f"{linear}.keys"] for task in files.manifest().tasks])
    scores = x_TD.double() @ keys.double().T
    relevance = scores / scores.norm(dim=1, keepdim=True)
    weights = torch.softmax(relevance / 0.03, 1) * (relevance >= 0.2)
    topic, mood = weights[:, :4].sum(1), weights[:, 4:].sum(1)
    return torch.stack([topic, mood, 1 - topic - mood], 1)


def test_shares_are_those_of_the_formula(run):
    answerer = Answerer(read_source(run), Asked(recall="all"))
    linears = read_source(run).manifest.modules[:2]
    read = {}
    for name in linears:
        base = routed_linears(answerer.model)[name].base
        base.register_forward_pre_hook(lambda m, args, name=name: read.update({name: args[0][0]}))
    for names in (linears, linears[:1]):
        found = inspect_prompt(answerer, PROMPT, names)
        expected = torch.stack([by_formula(read[name], run, name) for name in names]).mean(0)
        shares = torch.tensor([token.shares for token in found.tokens], dtype=torch.float64)
        assert torch.allclose(shares, expected, atol=1e-4)
        assert found.linears == tuple(names) and found.tasks == TASKS
        assert found.shares == pytest.approx(expected.mean(0).tolist(), abs=1e-4)
    assert "".join(token.text for token in found.tokens) == f"<s> {PROMPT}"
    assert {0, 1} <= {token.task for token in found.tokens}


def test_of_equal_and_of_silent_shares():
    def token(*shares):
        return InspectedToken(text="a", shares=shares).task

    assert (token(0.4, 0.4, 0.2), token(0.1, 0.5, 0.4), token(0.2, 0.2, 0.6)) == (0, 1, None)


def test_pieces_add_up_to_the_text():
    tokenizer = load_tokenizer(ModelConfig())
    text = "The kitten\n  slept near the river. " * 3 + "é"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids) > 12
    assert "".join(found).replace("\N{REPLACEMENT CHARACTER}", "") == tokenizer.decode(ids)


def test_what_the_terminal_shows(run, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([str(run), "--prompt", PROMPT]) == 0
    said = capsys.readouterr().out
    assert re.sub(r"\[\d:|\]", "", said).startswith(f"<s> {PROMPT}\n")
    assert re.search(r"\n\[1:topic \d+\.\d%\]\n\[2:mood \d+\.\d%\]\nsilent \d+\.\d%\n$", said)
    assert main([str(run), "--prompt", PROMPT, "--upto", "topic"]) == 0
    said = capsys.readouterr().out
    assert "[1:topic" in said and "mood" not in said and "[2:" not in said
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([str(run), "--prompt", PROMPT]) == 0
    assert "\x1b[1;34mtopic " in (said := capsys.readouterr().out) and "[2:" not in said


def test_numbers_where_colours_run_out(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    say_numbered([("a\x1b", 1), ("b", None), ("c\nd", 7)])
    said = capsys.readouterr().out
    assert said == "\x1b[1;34m[1:a\\x1b]\x1b[0mb\x1b[1;34m[7:c\x1b[0m\n\x1b[1;34md]\x1b[0m\n"


def test_the_page_escapes_and_loads_nothing(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    layer = read_source(run).manifest.modules[0].rpartition(".")[0]
    assert main([str(run), "--prompt", SCRIPT, "--layer", layer, "--out", str(out)]) == 0
    assert capsys.readouterr().err == f"page: {out}\n"
    written = out.read_text(encoding="utf-8")
    assert "<script" not in written and layer in written
    assert not re.search(r"\b(src|href)=|@import|<link|https?:", written)
    prompt = re.search(r'<div id="prompt">(.*?)</div>', written, re.DOTALL)[1]
    assert html.unescape(re.sub(r"<[^>]+>", "", prompt)) == f"<s> {SCRIPT}"
    assert len(re.findall(r'title="topic \d+\.\d %, mood \d+\.\d %, silent \d+\.\d %"', prompt)) > 5
    hostile = InspectedPrompt(
        tasks=('"><b>',),
        linears=("q",),
        tokens=(InspectedToken(text="\x1b&\ud800", shares=(1.0, 0.0)),),
    )
    shown = page(hostile, "<i>")
    assert "<b>" not in shown and "&amp;" in shown and "&lt;i&gt;" in shown
    assert "\x1b" not in shown and "\ud800" not in shown


@pytest.mark.slow
def test_experts_and_an_encoder_decoder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    moe = draw_run(tmp_path / "moe", "moe_lora")
    assert main([str(moe), "--prompt", PROMPT]) == 0
    assert capsys.readouterr().out.endswith("silent 0.0%\n")
    t5 = draw_run(tmp_path / "t5", model=str(save_tiny_t5(tmp_path / "base")))
    capsys.readouterr()
    assert main([str(t5), "--prompt", PROMPT]) == 0
    assert PROMPT in re.sub(r"\[\d:|\]", "", capsys.readouterr().out)
    assert main([str(t5), "--prompt", PROMPT, "--layer", "decoder"]) == 2
    assert "reads no token of the prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prompt", " "], "--prompt is empty"),
        ([], "arguments are required: --prompt"),
        (["--prompt", "a", "--layer", "q_porj"], "unknown layer 'q_porj'"),
        (["--prompt", "a", "--layer", "model.layers.0.self_attn.q"], "did you mean 'model.layers"),
        (["--prompt", "a", "--upto", "food"], "unknown task 'food'"),
        (["--prompt", "a", "--upto", "0"], "nothing is learned before the first task"),
        (["--prompt", "a", "--out", "page.txt"], "--out page.txt: expected"),
        (["--prompt", "a", "--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(run, capsys, words, says):
    assert main([str(run), *words]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out


def test_runs_without_atoms_are_refused(tmp_path, capsys):
    lora = draw_run(tmp_path / "lora", "inc_lora")
    assert main([str(lora), "--prompt", PROMPT]) == 2
    assert "inc_lora has no atoms or experts" in (said := capsys.readouterr().err)
    assert "methods that have: moe_lora, moram" in said and said.count("\n") == 1
    assert main([str(tmp_path), "--prompt", PROMPT]) == 2
    assert "holds no memory" in capsys.readouterr().err
    clip = str(save_tiny_clip(tmp_path / "clip"))
    assert main([str(lora.parent / "lora" / "memory"), "--model", clip, "--prompt", "a"]) == 2
    capsys.readouterr()
    moram = draw_run(tmp_path / "moram")
    assert main([str(moram / "memory"), "--model", clip, "--prompt", "a"]) == 2
    assert "reads pictures" in capsys.readouterr().err


def test_a_prompt_that_is_cut_is_said(run, capsys):
    assert main([str(run), "--prompt", "word " * 3000]) == 0
    assert re.match(r"the prompt is cut to \d+ tokens, as in task mood\n", capsys.readouterr().err)
