"""Looking at a memory from the command line."""

import pytest
import torch

from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.memory import main


@pytest.fixture
def folder(tmp_path):
    files = MemoryFiles(tmp_path / "memory")
    manifest = Manifest(
        method="moram", settings={}, base={"name": "tiny", "fingerprint": "f" * 64}, modules=["q"]
    )
    for name, atoms in (("A", 3), ("B", 5)):
        tensors = {"q.keys": torch.rand(atoms, 4), "q.values": torch.rand(atoms, 2)}
        manifest = files.publish(manifest, name, tensors)
    return files.folder


def test_show(folder, capsys):
    assert main(["show", str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("moram on 1 linears of tiny")
    assert [line.split()[:2] for line in out[2:4]] == [["A", "3"], ["B", "5"]]
    assert all(line.endswith("verified") for line in out[2:4])


def test_a_changed_byte_is_shown_and_refused(folder, capsys):
    path = folder / "001_B.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["show", str(folder)]) == 0
    assert "001_B.safetensors has sha256" in capsys.readouterr().out
    assert main(["verify", str(folder)]) == 2
    assert "001_B.safetensors" in capsys.readouterr().err


def test_verify(folder, capsys):
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out == "2 tasks verified\n"


@pytest.mark.parametrize("words", [[], ["show"], ["shw", "x"], ["show", "nowhere"]])
def test_bad_input_is_one_line(words, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_names_are_no_commands_to_a_terminal(folder, capsys):
    path = folder / "memory.json"
    path.write_text(path.read_text().replace('"tiny"', '"\\u001b[2Jtiny"'))
    assert main(["show", str(folder)]) == 0
    out = capsys.readouterr().out
    assert r"linears of \x1b[2Jtiny" in out and "\x1b" not in out


def test_a_manifest_of_other_types_is_one_line(folder, capsys):
    path = folder / "memory.json"
    path.write_text(path.read_text().replace('"bytes": ', '"bytes": -'))
    for command in ("show", "verify"):
        assert main([command, str(folder)]) == 2
        assert capsys.readouterr().err == (
            f"error: {path}: tasks.0.bytes: should not be negative\n"
        )
