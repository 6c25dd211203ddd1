"""The wheels for a machine without a network: which ones, and how much they may weigh."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launch.versions import pins
from moram_dist.registry import InputError
from tools import gpu_wheels

ROOT = Path(__file__).resolve().parents[2]


def test_wheels_are_the_pinned_ones_and_bring_what_they_need():
    wheels, sources = gpu_wheels.requirements()
    named = {canonicalize_name(r.name): r for r in map(Requirement, [*wheels, *sources])}
    pinned = {canonicalize_name(k): v for k, v in pins(ROOT / "requirements.txt").items()}
    for name in (*gpu_wheels.PINNED, *gpu_wheels.SOURCES):
        assert str(named[name].specifier) == f"=={pinned[name]}"
    for name in gpu_wheels.BEHIND:
        assert name not in pinned
    for name in named:
        for each in map(Requirement, metadata.requires(name) or ()):
            other = named.get(canonicalize_name(each.name))
            if other and not (each.marker and "extra" in str(each.marker)):
                assert each.specifier.contains(str(other.specifier)[2:]), (name, each)


def test_too_many_wheels_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_wheels, "LIMIT", 3 * 2**20)

    def pip(words):
        place = Path(words[words.index("--dest" if "--dest" in words else "--wheel-dir") + 1])
        (place / f"{words[0]}.whl").write_bytes(b"." * size)

    monkeypatch.setattr(gpu_wheels, "pip", pip)
    size = 2**20
    assert gpu_wheels.main(["--out", str(tmp_path / "few")]) == 0
    assert f"2.0 MiB in {tmp_path / 'few'}" in capsys.readouterr().out
    size = 2**21
    with pytest.raises(InputError, match=r"4.0 MiB of wheels, but only 3 MiB may be carried"):
        gpu_wheels.main(["--out", str(tmp_path / "many")])
    with pytest.raises(InputError, match="exists; choose another folder"):
        gpu_wheels.main(["--out", str(tmp_path / "few")])
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_what_pip_says_is_told(monkeypatch):
    with pytest.raises(InputError, match="pip download failed: ERROR"):
        gpu_wheels.pip(["download", "--no-index", "--find-links", "/nowhere", "no-such-package"])
