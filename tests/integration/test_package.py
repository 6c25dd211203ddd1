"""The wheel, built from the source distribution, installed in an empty folder, and run from there.

Dependencies come from the environment of the tests; nothing of this checkout is on the path.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moram_dist.command_line import EXTRAS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("moram_dist", "launch", "eval", "ds_configs")
TIMEOUT_S = 240


def python(*words: str | Path, cwd: Path | None = None) -> None:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def pip(*words: str | Path) -> None:
    python("-m", "pip", "--disable-pip-version-check", *words)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of a copy of what git tracks, so that no build leaves files in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    # With the packages that are here, as an environment of pip's own would need an index.
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(sources)!r})"
    python("-c", build, cwd=folder)
    (archive,) = sources.iterdir()
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, archive)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder that stands for site-packages."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


@pytest.fixture
def run(installed, tmp_path):
    """Run Python, or the installed command, in an empty folder; its output."""

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
        assert str(ROOT / "moram_dist") not in done.stderr
        return done.stdout + done.stderr

    return run


def test_what_is_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {*PACKAGES}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    for folder in PACKAGES:  # every file of a package, whatever its kind
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in names


def test_the_command(installed, run):
    command = str(installed / "bin" / "moram")
    assert "moram train" in run(command, "--help")
    for name in ("train", "plan", "doctor", "submit", "report", "compare", "audit", "metrics"):
        assert f"moram {name}" in run(command, name, "--help")
    assert "unknown flag '--topk'" in run(command, "train", "--topk", "3", code=2)


def test_the_package_and_the_demo(run):
    asks = (
        "import moram_dist, eval, launch; from pathlib import Path;"
        "from moram_dist.models.language_model import DEMO_BASE;"
        "from transformers import AutoModelForCausalLM;"
        "model = AutoModelForCausalLM.from_pretrained(DEMO_BASE);"
        "print(moram_dist.__file__, model.num_parameters())"
    )
    said = run("-c", asks)
    assert str(ROOT) not in said and "moram_dist/__init__.py" in said


def test_files_that_ship(run):
    run(
        "-c",
        "from launch import flags, job_script, submit; from eval.run import METRICS;"
        "import launch.planning.table, eval.compare.references, eval.report.page;"
        "assert flags.read_flags((), {})[1].is_file();"
        "assert flags.read_flags((), {'ds_config': 'zero2.json'})[1].is_file();"
        "flags.read_flags((), {'recipe': 'trace_llama2_7b.yaml'});"
        "assert job_script.BODY.is_file() and submit.SITE.is_file();"
        "assert flags.train_script() == ['--module', 'launch.train']",
    )


def test_a_job_script_starts_the_installed_module(installed, run):
    said = run(str(installed / "bin" / "moram"), "submit", "--dry_run", "--output_dir", "r")
    assert "command=(--module launch.train --ds_config" in said


def test_the_doctor_asks_for_the_ranges(run):
    code = (
        "from launch import checks;"
        "print(checks.python().state, checks.packages().found, checks.flash_attn().state)"
    )
    said = run("-c", code)
    assert said.startswith("ok ") and "moram-dist needs" in said
    assert not any(f"{name} is missing" in said for name in EXTRAS)
