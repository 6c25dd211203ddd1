"""Every command of docs/using.md, in order, on runs whose memory is drawn by hand."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys

import pytest

from launch.moram import main
from moram_dist.comm import env
from moram_dist.models.language_model import DEMO_BASE
from tests.helpers.documents import ROOT, commands
from tests.helpers.drawn_runs import TASKS, draw_run
from tests.helpers.shell import TIMEOUT_S, shell, words_of
from tests.integration.launching import started

pytest.importorskip("openai")

pytestmark = pytest.mark.integration
PAGE = ROOT / "docs" / "using.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, method, tasks in (
        ("demo", "moram", ("topic", "mood", "place", "job")),
        ("trace", "moram", TASKS),
        ("demo-sequential_lora-seed0", "sequential_lora", TASKS),
        ("first", "moram", TASKS),
        ("second", "moram", ("place", "time")),
        ("alone", "single_task", TASKS),
    ):
        draw_run(tmp_path / "runs" / name, method, tasks=tasks, atoms_per_task=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(text):
    """A snippet, in this process; what it printed."""
    code = re.sub(r"^python - <<'END'\n|\nEND$", "", text).replace("BASE", repr(str(DEMO_BASE)))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, str(PAGE), "exec"), {})
    return said.getvalue()


def test_every_command_works(folder, capsys):
    port = str(env.free_port())
    left = [command.text.replace("8000", port) for command in commands(PAGE)]
    assert len(left) >= 12
    with contextlib.ExitStack() as serving:
        for text in left:
            if text.startswith(("pip ", "moram train")):  # test_memory_edits.py trains
                continue
            if re.match("moram memory (drop|prune|merge)", text) and "--write_only" not in text:
                text += " --write_only"
            if text.startswith("moram serve"):
                words = [sys.executable, ROOT, *words_of(text)[1:]]
                process = serving.enter_context(started(*words, cwd=folder, timeout_s=TIMEOUT_S))
                assert process.stdout.readline().startswith("serving demo at http://127.0.0.1:")
            elif text.startswith("moram "):
                assert main(words_of(text)[1:]) in (0, None), (text, capsys.readouterr())
            elif text.startswith("python - "):
                python(text)
            else:
                done = shell(text, cwd=folder, env=os.environ)
                assert done.returncode == 0, (text, done.stderr)
                if text.startswith("curl"):
                    assert '"object":"text_completion"' in done.stdout
    there = {"answers.jsonl", "saved", "lora", "topic_lora", "for_the_hub", "lora_again", "two"}
    assert there <= {path.name for path in folder.iterdir()}
