"""Give the commands thousands of wrong inputs; each must be refused in one line or must work.

    python tools/fuzz.py --seed 0 --inputs 2000
    python tools/fuzz.py --seed 0 --only recipes:17

Seven areas take turns: flags, recipes, YAML listings, DeepSpeed files, model folders, memory
folders, and the files of a run that eval/run.py reads. An input depends only on (seed, area,
index). Faults are a trace-back or a crash, an undocumented exit code, more than 5 s of CPU, and
files written by a command that refused its input. Each input has its own process, forked after the
imports. Exit code 1 if there was a fault; the first ones are printed with commands to repeat them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from moram_dist import config_io
from moram_dist.registry import MachineError, unknown
from moram_dist.terminal import say
from tools.mutations import (
    ODD,
    TEXTS,
    dump_json,
    dump_yaml,
    spoil_bytes,
    spoil_folder,
    spoil_value,
)

ROOT = Path(__file__).resolve().parents[1]
CPU_S, WALL_S = 5, 60
SHOWN = 20
"""Number of faults that are printed."""

DEMO_BASE = ROOT / "moram_dist" / "models" / "demo_base"
QUICK = (
    "--order topic,mood --limit_train 8 --limit_eval 4 --epochs 1 --batch_size 4 "
    "--max_answer_tokens 4 --log_every 1 --tracking none"
).split()

Do = Callable[[], int | None]
"""The function that runs in the child, in the input's folder. It returns the exit code."""


@dataclass(frozen=True)
class Result:
    """The result of one input."""

    area: str
    index: int
    state: str
    """ok, refused or fault."""

    said: str


def check_run(words: Sequence[str]) -> Do:
    """All steps of ``launch/train.py`` before training."""

    def do() -> None:
        from launch import session, train

        session.Session.run = lambda self: None  # type: ignore[method-assign]
        train.run([*QUICK, *words])

    return do


def flags(rng: Random, folder: Path, run: Path) -> Do:
    """Plausible and absurd settings."""
    fields = [*config_io.fields(), "recipe", "preset", "ds_config", "nope", "", "method.top_k"]
    words = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(fields)
        value = rng.choice((*TEXTS, *(str(v) for v in ODD if isinstance(v, int | float))))
        value = value.replace("\0", "").encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        forms = ([f"--{name}={value}"], [f"--{name}", value], [f"--{name}"], [value], [f"-{name}"])
        words += rng.choice(forms[:2] if rng.random() < 0.8 else forms)
    if rng.random() < 0.2:
        from launch import submit
        from moram_dist.command_line import run_command

        own = rng.choice(("--nodes", "--time", "--seeds", "--orders", "--evaluate", "--site"))
        words += [own, rng.choice(TEXTS).replace("\0", "")]
        return lambda: run_command(submit.main, ["--dry_run", *QUICK, *words])
    return check_run(words)


def recipes(rng: Random, folder: Path, run: Path) -> Do:
    """The spoilt configuration of a successful run."""
    content = (run / "run.yaml").read_bytes()
    (folder / "recipe.yaml").write_bytes(_spoilt_yaml(rng, content))
    return check_run(["--recipe", "recipe.yaml", "--output_dir", "out"])


LISTING = [
    {
        "name": name,
        "train": "data.jsonl",
        "test": "data.json",
        "metric": "exact_match",
        "labels": ["pet", "tool"],
        "prompt_field": "prompt",
        "answer_field": "answer",
        "epochs": 1,
        "max_prompt_tokens": 32,
        "max_answer_tokens": 4,
        "separator": " ",
    }
    for name in ("one", "two")
]


def listings(rng: Random, folder: Path, run: Path) -> Do:
    """A user's own tasks: the list, or the files that it names."""
    records = [{"prompt": f"what is {n}?", "answer": ("pet", "tool")[n % 2]} for n in range(6)]
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (folder / "tasks.yaml").write_bytes(dump_yaml(LISTING))
    spoil_folder(rng, folder, "tasks.yaml" if rng.random() < 0.6 else "data.*")
    words = ["--benchmark", "jsonl", "--data_dir", rng.choice((".", "tasks.yaml"))]
    if rng.random() < 0.3:
        return evaluate(["audit", *words])
    return check_run([*words, "--order", rng.choice(("one,two", "two", "default"))])


def deepspeed_files(rng: Random, folder: Path, run: Path) -> Do:
    """Spoilt copies of the shipped files."""
    content = rng.choice(sorted((ROOT / "ds_configs").glob("*.json"))).read_bytes()
    if rng.random() < 0.7:
        content = dump_json(spoil_value(rng, json.loads(content))).encode()
    else:
        content = spoil_bytes(rng, content)
    (folder / "ds.json").write_bytes(content)
    return check_run(["--ds_config", "ds.json"])


def model_folders(rng: Random, folder: Path, run: Path) -> Do:
    """A spoilt copy of the shipped base; loaded if the checks before a run accept it."""
    shutil.copytree(DEMO_BASE, folder / "base")
    spoil_folder(rng, folder / "base")
    check = check_run(["--model", "base"])

    def load(words: Sequence[str]) -> None:
        from moram_dist.config import ModelConfig
        from moram_dist.models import language_model

        language_model.load(ModelConfig(model="base"), {"zero_optimization": {"stage": 0}})

    def do() -> int:
        from moram_dist.command_line import run_command

        check()
        return run_command(load, [])

    return do


def memory_folders(rng: Random, folder: Path, run: Path) -> Do:
    """A spoilt copy of a published memory."""
    shutil.copytree(run / "memory", folder / "memory")
    spoil_folder(rng, folder / "memory")
    kind = rng.choice(("show", "verify", "load", "load"))

    def load(words: Sequence[str]) -> None:
        from transformers import AutoModelForCausalLM

        from moram_dist import load_memory

        load_memory(AutoModelForCausalLM.from_pretrained(DEMO_BASE), folder / "memory")

    def do() -> int:
        from moram_dist import memory
        from moram_dist.command_line import run_command

        return run_command(load, []) if kind == "load" else memory.main([kind, "memory"])

    return do


def evaluate(words: Sequence[str]) -> Do:
    """A command of ``eval/run.py``."""

    def do() -> int:
        from eval.run import main

        return main(words)

    return do


def evaluation_files(rng: Random, folder: Path, run: Path) -> Do:
    """Spoilt files of a run, and each command that reads them."""
    for name in ("one", "two"):
        shutil.copytree(run, folder / name, ignore=shutil.ignore_patterns("memory", "report"))
    spoil_folder(rng, folder / "one")
    predictions = sorted((run / "predictions").rglob("*.jsonl"))
    chosen = folder / "one" / rng.choice(predictions).relative_to(run)
    commands = (
        ["metrics", "--scores", "one"],
        ["metrics", "--scores", "one/scores.json"],
        ["rescore", "--predictions", str(chosen), "--metric", "exact_match"],
        ["compare", "one", "two"],
        ["report", "--run", "one"],
    )
    return evaluate(rng.choices(commands, weights=(3, 3, 3, 2, 1))[0])


def _spoilt_yaml(rng: Random, content: bytes) -> bytes:
    import yaml

    if rng.random() < 0.7:
        return dump_yaml(spoil_value(rng, yaml.safe_load(content)))
    return spoil_bytes(rng, content)


AREAS: dict[str, Callable[[Random, Path, Path], Do]] = {
    "flags": flags,
    "recipes": recipes,
    "listings": listings,
    "deepspeed": deepspeed_files,
    "models": model_folders,
    "memories": memory_folders,
    "evaluation": evaluation_files,
}


def one(area: str, index: int, seed: int, run: Path) -> Result:
    """Make an input and give it to its command, in a separate process."""
    rng = Random(f"{seed}:{area}:{index}")
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as streams:
        folder = Path(name)
        do = AREAS[area](rng, folder, run)
        before = listing(folder)
        code = in_a_child(do, folder, Path(streams))
        said = (Path(streams) / "err").read_text(encoding="utf-8", errors="backslashreplace")
        state, why = judge(code, said, written=listing(folder) != before)
        return Result(area, index, state, why)


def judge(code: int, said: str, *, written: bool) -> tuple[str, str]:
    """Decide whether a command may end like this. Returns the state, and the reason of a fault."""
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if code == -signal.SIGXCPU:
        return "fault", f"more than {CPU_S} s of CPU"
    if "Traceback" in said or code not in (0, 2, 4):
        return "fault", f"exit code {code}: {last}"
    if code and len(errors) != 1:
        return "fault", f"exit code {code} with {len(errors)} lines of error: {last}"
    if code and written:
        return "fault", f"refused, and yet something was written: {last}"
    return ("refused", errors[0]) if code else ("ok", "")


def in_a_child(
    do: Do, folder: Path, streams: Path, cpu_s: int = CPU_S, wall_s: int = WALL_S
) -> int:
    """The exit code of ``do`` in a fork; minus the signal's number if a signal ended it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for descriptor, stream in ((1, "out"), (2, "err")):
                opened = os.open(streams / stream, os.O_WRONLY | os.O_CREAT)
                os.dup2(opened, descriptor)
            os.chdir(folder)
            code = do() or 0
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
        finally:
            os._exit(code)
    deadline = time.monotonic() + wall_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGXCPU


def listing(folder: Path) -> dict[str, Any]:
    """All paths in a folder, with the attributes that writing would change."""
    out: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        out[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return out


def import_all() -> None:
    """Import the commands' modules once for all children."""
    import matplotlib.pyplot
    import safetensors.torch
    import transformers.models.llama.modeling_llama

    import eval.report.write
    import eval.run
    import launch.session
    import launch.submit
    import moram_dist.memory
    from moram_dist.train import ds_check

    ds_check.check({}, path=Path("none"))  # imports DeepSpeed
    del matplotlib, safetensors, transformers, eval, launch, moram_dist


def make_run(folder: Path) -> Path:
    """Make a small successful run, whose files are then spoilt."""

    def do() -> None:
        from launch import train

        train.run([*QUICK, "--ds_config", str(ROOT / "ds_configs/zero2.json"), "--output_dir", "r"])

    code = in_a_child(do, folder, folder, cpu_s=900, wall_s=900)
    if code:
        raise MachineError(f"the run to spoil failed: {(folder / 'err').read_text()[-500:]}")
    return folder / "r"


def fuzz(seed: int, chosen: Sequence[tuple[str, int]], tell: Callable[[Result], None]) -> None:
    """Try the inputs, and pass each result to ``tell``."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_URI": ""}
    import_all()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder))
        for area, index in chosen:
            tell(one(area, index, seed, run))


def main(argv: Sequence[str]) -> int:
    """Fuzz, print the table and the first faults. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=2000, help="over all areas [2000]")
    parser.add_argument(
        "--only", metavar="AREA", help="some areas, joined by commas; or AREA:INDEX"
    )
    args = parser.parse_args(argv)
    names, _, index = (args.only or ",".join(AREAS)).partition(":")
    areas = names.split(",")
    for area in areas:
        if area not in AREAS:
            raise unknown("area", area, AREAS)
    chosen = [(areas[n % len(areas)], n // len(areas)) for n in range(args.inputs)]
    if index:
        chosen = [(areas[0], int(index))]
    counts: Counter[tuple[str, str]] = Counter()
    faults: list[Result] = []

    def tell(result: Result) -> None:
        counts[result.area, result.state] += 1
        if result.state == "fault":
            faults.append(result)
        if index:
            say(f"{result.state}: {result.said}")

    fuzz(args.seed, chosen, tell)
    say(f"{'area':12} {'inputs':>7} {'ok':>7} {'refused':>8} {'faults':>7}")
    for area in areas:
        ok, refused, bad = (counts[area, state] for state in ("ok", "refused", "fault"))
        say(f"{area:12} {ok + refused + bad:7} {ok:7} {refused:8} {bad:7}")
    for fault in faults[:SHOWN]:
        say(f"{fault.area}:{fault.index}  {fault.said[:300]}")
        say(f"    python tools/fuzz.py --seed {args.seed} --only {fault.area}:{fault.index}")
    return 1 if faults else 0


if __name__ == "__main__":
    from moram_dist.command_line import run_command

    sys.exit(run_command(main, sys.argv[1:]))
