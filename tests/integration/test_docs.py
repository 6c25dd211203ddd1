"""Every command of README.md and docs/*.md works: checked in seconds here, run by ``WALK=1``.

    WALK=1 python -m pytest tests/integration/test_docs.py

walks through all of them, in order, in a fresh copy of the checkout, which takes half an hour on
two cores. Without it those that take seconds are run, and of the others it is checked that files
and flags exist. What is not run as printed stands in CHANGED and NOT_RUN, each with the reason.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.flags import OWN, read_flags
from launch.moram import MODULES, SCORING
from launch.submit import train_flags
from moram_dist import config_io
from moram_dist.comm import env
from tests.helpers.documents import ROOT, Command, blocks, commands, pages

WALK = bool(os.environ.get("WALK"))
MODEL = "../shared/models/t0-llama-5m"
CLIP = "../shared/models/clip-tiny"
SHORT = (
    "--limit_train 8 --limit_eval 2 --epochs 1 --max_prompt_tokens 64 --max_answer_tokens 4 "
    "--batch_size 8"
)
LESS = "--limit_train 32 --limit_eval 8"
TIMEOUT_S = 570

CHANGED = (  # what is looked for, what stands there in the walk, why
    (r"\b(?:PATH_OR_HF_ID|ID)\b", MODEL, "a base of 5 M parameters, as none of 7 B is at hand"),
    (r"\bBASE\b", repr(MODEL), "as above, in Python"),
    (r"openai/clip-vit-base-patch16", CLIP, "the small CLIP here"),
    (r"--data_dir my_pictures", "--data_dir ../shared/data/vision", "the pictures here"),
    (r"^(moram train.*--benchmark images)", r"\1 --order gtsrb,mnist --epochs 1", "two of seven"),
    (r"(--benchmark (trace|superni)\b.*--data_dir) DIR", r"\1 ../shared/data/\2", "the data here"),
    (r"(--benchmark standard_cl.*--data_dir) DIR", r"\1 ../shared/data/long_sequence", "as above"),
    (r"(--recipe.*trace.*--data_dir) DIR", rf"\1 ../shared/data/trace --model {MODEL}", "as above"),
    (r"--num_gpus [3-9]", "--num_gpus 2", "two cores"),
    (r"^(deepspeed .*(?:--recipe|--benchmark (?!jsonl)).*)", rf"\1 {SHORT}", "not for days"),
    (r"^(deepspeed .*zero3.json(?: --(?:method|preset) .*)?)$", rf"\1 {LESS}", "a short demo"),
    (r"^(python launch/submit.py (?!.*--data_dir|.*--evaluate).*)", rf"\1 {LESS}", "the same run"),
    (r"^(moram train (?!.*--recipe runs/).*)", rf"\1 {LESS}", "a short demo"),
    (r"^(moram serve .*--port) \d+", r"\1 {port}", "as above"),
    (r"^moram ", "python . ", "the command of this copy, which is not installed"),
    (r"^deepspeed", "deepspeed --master_port {port}", "others may use the default one"),
    (r"^(mlflow (?:ui|server).*)", r"\1 --port {port}", "as above"),
    (r"^(python launch/doctor.py.*)", r"\1 --port {port}", "as above"),
    (r"^(python launch/submit.py(?!.*dry_run).*)", r"\1 --dry_run", "test_slurm.py submits"),
    (r"^make ", "make -o .venv/installed ", "the environment is there, and not to be touched"),
    (r"^(python -m bench (?!.*--quick).*)", r"\1 --quick", "small sizes instead of 11 minutes"),
    (r"^(python tools/kill_test.py.*)", r"\1 --runs 2", "2 runs instead of 40"),
    (r"^(python tools/fuzz.py.*)", r"\1 --inputs 14", "14 inputs instead of 2,000"),
)

NOT_RUN = (  # what is looked for, why
    (r"^make test", "it is what runs this test"),
    (r"pytest tests/integration/test_docs.py", "it is this test"),
    (r"^(?:srun|scancel|scontrol|sbatch)\b", "needs SLURM; test_slurm.py does it on virtual nodes"),
    (r"^docker\b", "needs docker; test_image.py follows the Dockerfile step by step"),
    (r"^pip install", "the environment is there, and not to be touched"),
    (r"^pytest tests/gpu|gpu_check.py.*--budget", "needs a GPU"),
    (r"gpu_wheels.py", "downloads; test_gpu_wheels.py compares its pins with requirements.txt"),
    (r"^python tools/compare_clip.py", "some 80 runs, an hour and a half on quiet cores"),
    (r"^python tools/compare_gemma.py", "hours, and its base is not here"),
    (r"^python tools/compare_demo.py", "24 whole runs, a quarter of an hour on quiet cores"),
    (r"kill_test.py --runs 40 --seed 0", "of the log, which says what was run then"),
    (r"^python tools/train_demo_clip.py", "five minutes of training"),
    (r"^python tools/bench_(?:labels|placement).py", "minutes that need a quiet machine"),
    (r"--recipe \S*clip|audit --benchmark xtail", "its data sets are not here"),
    (r"use_safetensors=False", "needs the hub, and reads a pickle"),
    (r"^mlflow server$", "named in passing; mlflow ui is run"),
    (r"--general\b", "needs lm-eval; test_general_run.py does it"),
    (r"^curl .*/v1/|from openai import", "ask a server; test_using_page.py starts one"),
)

FORM = r"\.\.\.|\b(?:HOST|JOB)\b"
"""Of a command that is a form to fill in, with what only its reader knows. It is not run."""

QUICK = (  # what seconds are enough for, and needs nothing that training makes
    r"--help$|^(?:mkdir|cat >)|^source ",
    r"^python eval/run.py (?:audit .*jsonl|compare docs/results)",
    r"^python launch/submit.py .*--benchmark demo",
)

SERVES = r"^(?:mlflow (?:ui|server)|moram serve)"

ALL = [command for page in pages() for command in commands(page)]
"""In order: later ones use what earlier ones made."""


def why_not_run(command: Command) -> str | None:
    """The reason for which not even the walk runs it."""
    if re.search(FORM, command.text) and "<<" not in command.text:
        return "a form to fill in"
    return next((why for pattern, why in NOT_RUN if re.search(pattern, command.text)), None)


def as_run(command: Command) -> str:
    """The command after all that is in CHANGED."""
    text = command.text
    for pattern, new, _ in CHANGED:
        text = re.sub(pattern, new, text)
    return text.replace("{port}", str(env.free_port()) if "{port}" in text else "")


@dataclass(frozen=True)
class Checkout:
    """A copy of the tracked files, with the environment and the shared folder where they belong."""

    folder: Path

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        """A command in a shell of its own. Whatever it started is ended with it."""
        process = self.start(text)
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            end(process)
        return subprocess.CompletedProcess(text, process.returncode, out, err)

    def start(self, text: str) -> subprocess.Popen[str]:
        """The same, not waited for."""
        return subprocess.Popen(
            ["bash", "-c", text],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def end(process: subprocess.Popen[str]) -> None:
    """Kill a command with all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    place = tmp_path_factory.mktemp("walk")
    folder = place / "checkout"
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        pytest.skip("no git checkout: which files belong to the project is not known")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    if (ROOT.parent / "shared").is_dir():
        (place / "shared").symlink_to(ROOT.parent / "shared")
    return Checkout(folder)


@pytest.mark.integration
@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_command(command, checkout, request):
    """Run it, where it is quick or this is the walk; else check what it names."""
    if why_not_run(command):
        check(command.text)
        return
    text = as_run(command)
    check(text)
    if not WALK and not any(re.search(pattern, command.text) for pattern in QUICK):
        return
    if "../shared" in text and not (checkout.folder.parent / "shared").is_dir():
        pytest.skip("its data is in ../shared, which is not there")
    if re.search(SERVES, command.text):
        answers(text, checkout)
        return
    done = checkout.run(text)
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for line in printed_after(command):
        assert shape(line) in map(shape, done.stdout.splitlines()), (line, done.stdout[-2000:])


def answers(text: str, checkout: Checkout) -> None:
    """A server that one ends by hand: it must answer."""
    process, port = checkout.start(text), re.findall(r"--port (\d+)", text)[0]
    page = "" if text.startswith("mlflow") else "health"
    try:
        for _ in range(TIMEOUT_S):
            assert process.poll() is None, process.communicate()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5) as found:
                    assert found.status == 200
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(1)
        raise AssertionError(f"{text}: no answer")
    finally:
        end(process)


def printed_after(command: Command) -> list[str]:
    """The score matrix that the page shows for a training command, if it does."""
    if not re.match(r"make demo|deepspeed", command.text):
        return []
    own = [c for c in ALL if c.page == command.page and re.match(r"make demo|deepspeed", c.text)]
    until = min((c.line for c in own if c.line > command.line), default=10**9)
    text = (ROOT / command.page).read_text(encoding="utf-8")
    return next(
        (
            [line for line in lines if line and not line.startswith(("report:", "compare:"))]
            for first, lines in blocks(text)
            if command.line < first < until and lines[0].startswith("score on each task")
        ),
        [],
    )


def shape(line: str) -> str:
    """A line without its figures, which rounding changes from machine to machine."""
    return re.sub(r"-?\d+\.\d+", "#", " ".join(line.split()))


def check(text: str) -> None:
    """That the files and flags exist which a command names, and training's values can be meant."""
    for line in text.split("\n") if "<<" not in text else text.split("\n")[:1]:
        check_line(line)


def check_line(text: str) -> None:
    if not text.strip():
        return
    text = re.sub(r"^moram (\w+)", lambda found: f"python {SCRIPTS[found[1]]}", text)
    first, *words = text.replace("&&", " ").split()
    script = next((w for w in words if re.fullmatch(r"[\w/]+\.py", w)), None)
    if words[:1] == ["-m"]:
        script = module(words[1])
    if first not in ("deepspeed", "python") or script is None:
        return
    path = ROOT / script
    assert path.is_file(), f"{text}: no {script}"
    flags = [word.partition("=")[0] for word in words if re.match(r"--\w", word)]
    known = literal_flags(path) | {"--help"}
    if re.match(r"launch/(train|submit)|tools/kill_test", script):
        known |= {f"--{name}" for name in (*OWN, *config_io.fields(), "ranks")}
    if first == "deepspeed":
        package = importlib.util.find_spec("deepspeed").origin
        known |= literal_flags(Path(package).parent / "launcher" / "runner.py")
    assert not set(flags) - known, f"{text}: {set(flags) - known}"
    if script == "launch/train.py" and "--help" not in words:
        given = train_flags(words[words.index(script) + 1 :])
        given.pop("ranks", None)  # of moram train
        _, ds_config = read_flags((), given)
        assert (ROOT / ds_config).is_file(), text


SCRIPTS = {
    **{name: f"{module.replace('.', '/')}.py" for name, module in MODULES.items()},
    **{name: f"eval/run.py {name}" for name in SCORING},
    "train": "launch/train.py",
}
"""What each command of ``moram`` is in a checkout."""


def module(name: str) -> str:
    """The file that ``python -m name`` runs, from the checkout's root."""
    path = name.replace(".", "/")
    return f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"


def literal_flags(path: Path) -> set[str]:
    """Words that begin with two dashes in the strings of a Python file."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return {word for text in texts for word in re.findall(r"(?<![\w-])--\w+", text)}


def test_every_entry_of_the_tables_is_needed():
    """One that fits no command is left over from a command that is gone."""
    texts = [command.text for command in ALL]
    for pattern, *_ in (*NOT_RUN, *((pattern,) for pattern in (*QUICK, SERVES))):
        assert any(re.search(pattern, text) for text in texts), pattern
    for pattern, new, _ in CHANGED:
        assert any(re.search(pattern, text) for text in texts), pattern
        texts = [re.sub(pattern, new, text) for text in texts]
