"""How launch/train.py ends where a run raises what nobody expected."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

import launch.session
import launch.train
from moram_dist.registry import MachineError


class PeerWatchdog:
    def __init__(self):
        self.heard = []

    def let_speak(self):
        self.heard.append("let speak")

    def leave(self, code):
        self.heard.append(code)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Makes a run raise; gives the exit code, what its watchdog was told, and its folder."""

    def leave(code):
        raise SystemExit(code)

    def of(error):
        def fail():
            raise error

        watchdog, folder = PeerWatchdog(), SimpleNamespace(path=tmp_path)
        session = SimpleNamespace(run=fail, watchdog=watchdog, run_dir=folder)
        monkeypatch.setattr(launch.session, "prepare", lambda config, path: session)
        monkeypatch.setattr(os, "_exit", leave)
        monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(SystemExit) as ended:
            launch.train.main()
        return ended.value.code, watchdog.heard, sorted(path.name for path in tmp_path.iterdir())

    return of


def test_a_fault_is_one_line_and_a_file_of_the_run(run, capsys):
    code, heard, files = run(KeyError("lost"))
    # A fault may be the echo of another rank's death, and that rank's line is the better one.
    assert (code, heard) == (1, ["let speak", 1])
    assert len(files) == 1 and files[0].startswith("crash_")
    said = capsys.readouterr().err
    assert said.startswith("error: KeyError: 'lost' (a fault of this program") and files[0] in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MachineError("a rank died"), 4, "error: a rank died\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; rerun the same command to resume\n"),
        (MemoryError(), 4, "error: out of memory\n"),
    ],
)
def test_what_is_no_fault_of_the_program_keeps_no_file(run, capsys, error, code, said):
    assert run(error)[::2] == (code, [])
    assert capsys.readouterr().err == said
