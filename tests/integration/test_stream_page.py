"""Every command of docs/stream.md, in order: from files to a served model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys

import pytest

from launch.moram import main
from moram_dist.comm import env
from tests.helpers.documents import ROOT, commands
from tests.helpers.shell import TIMEOUT_S, shell, words_of
from tests.integration.launching import run, started

pytest.importorskip("openai")

pytestmark = pytest.mark.integration
PAGE = ROOT / "docs" / "stream.md"
BY_ITSELF = re.compile("moram (train|memory drop) ")
"""Commands that start a process group, so they are not called in this process."""


def test_every_command_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    port = str(env.free_port())
    given = [command.text.replace("8000", port) for command in commands(PAGE)]
    assert len(given) >= 15
    said = {}
    with contextlib.ExitStack() as serving:
        for text in given:
            if text.startswith("moram serve"):
                words = [sys.executable, ROOT, *words_of(text)[1:]]
                process = serving.enter_context(started(*words, cwd=tmp_path, timeout_s=TIMEOUT_S))
                assert process.stdout.readline().startswith("serving stream at http://127.0.0.1:")
            elif BY_ITSELF.match(text):
                untracked = ["--tracking", "none"] if text.startswith("moram train") else []
                words = [sys.executable, ROOT, *words_of(text)[1:], *untracked]
                done = run(*words, cwd=tmp_path)
                assert done.code == 0, (text, done.out + done.err)
                said[text] = done.out
            elif text.startswith("moram "):
                capsys.readouterr()
                assert main(words_of(text)[1:]) in (0, None), (text, capsys.readouterr())
                said[text] = capsys.readouterr().out
            else:
                done = shell(text, cwd=tmp_path, env=os.environ)
                assert done.returncode == 0, (text, done.stderr)
                said[text] = done.stdout
    answers = [said[text].strip() for text in given if text.startswith("moram generate")]
    (asked,) = (said[text] for text in given if text.startswith("curl"))
    answers.append(json.loads(asked)["choices"][0]["message"]["content"].strip())
    assert answers[0] == "pet" and answers[-1] == "tool"
    assert "recall prefix" in next(said[text] for text in given if text.startswith("moram train"))
    tasks = json.loads((tmp_path / "runs" / "without_hour" / "scores.json").read_text())["tasks"]
    assert tasks == ["kind", "taste"]
