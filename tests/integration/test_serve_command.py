"""``moram serve`` as a command: it says where it listens, answers, and leaves at a signal."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys

import pytest

from launch.serving.command import main
from tests.helpers.drawn_runs import demo_benchmark, draw_run
from tests.helpers.tiny_t5 import save_tiny_t5
from tests.integration.launching import ROOT, started

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.integration
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return draw_run(tmp_path_factory.mktemp("drawn") / "my run")


def test_it_serves_until_a_signal_comes(run, monkeypatch):
    monkeypatch.setenv("MORAM_API_KEY", "sesame")
    words = [sys.executable, ROOT, "serve", run, "--port", "0"]
    with started(*words, cwd=run.parent, timeout_s=TIMEOUT_S) as process:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving my run at (http://127\.0\.0\.1:\d+/v1)\n", line)
        assert found, (line, process.communicate())
        client = openai.OpenAI(base_url=found[1], api_key="sesame", timeout=TIMEOUT_S)
        prompt = demo_benchmark().tasks[0].test[0].prompt
        answer = client.completions.create(model="my run", prompt=prompt, max_tokens=4)
        words = [sys.executable, ROOT, "generate", run, "--prompt", prompt, "--max_new_tokens", "4"]
        alone = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert answer.choices[0].text + "\n" == alone.stdout, alone.stderr
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert out == "" and "Traceback" not in err


def test_refusals_come_before_the_model_is_loaded(run, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([str(run), "--port", port]) == 2
    assert "cannot listen: Address already in use" in capsys.readouterr().err
    for words, said in (
        (["--port", "x"], "--port must be a whole number"),
        (["--port", "70000"], "--port must be from 0 to 65535"),
        (["--host", "nowhere.invalid", "--port", "0"], "cannot listen"),
        (["--port", "0", "--upto", "moo"], "did you mean 'mood'?"),
    ):
        assert main([str(run), *words]) == 2
        found = capsys.readouterr()
        assert said in found.err and found.err.count("\n") == 1 and found.out == ""
    t5 = draw_run(tmp_path / "t5", model=str(save_tiny_t5(tmp_path / "base")))
    capsys.readouterr()
    assert main([str(t5), "--port", "0"]) == 2
    assert "takes causal models only" in capsys.readouterr().err
