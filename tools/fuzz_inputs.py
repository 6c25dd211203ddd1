"""The inputs of ``tools/fuzz.py``: eight areas, each with a command that reads them.

An area is a function of a random generator, an empty folder to fill, and the folder of a successful
run. It returns the command to try on what it wrote.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from moram_dist import config_io
from moram_dist.config import EMBEDDED_IMAGES
from tools.mutations import (
    ODD,
    TEXTS,
    dump_json,
    dump_yaml,
    spoil_bytes,
    spoil_file,
    spoil_folder,
    spoil_value,
)

ROOT = Path(__file__).resolve().parents[1]
DEMO_BASE = ROOT / "moram_dist" / "models" / "demo_base"
QUICK = (
    "--order topic,mood --limit_train 8 --limit_eval 4 --epochs 1 --batch_size 4 "
    "--max_answer_tokens 4 --log_every 1 --tracking none"
).split()

Do = Callable[[], int | None]
"""The function that runs in the child, in the input's folder. It returns the exit code."""


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


def pictures(rng: Random, folder: Path, run: Path) -> Do:
    """A user's own pictures: folders of classes, and a list of them."""
    from PIL import Image

    listed: dict[str, list[list[object]]] = {"train": [], "test": []}
    for split, records in listed.items():
        for label, name in enumerate(("cat", "dog")):
            for n in range(2):
                path = folder / "one" / split / name / f"{n}.{rng.choice(('png', 'jpg'))}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.effect_noise((20, 24), 60).convert("RGB").save(path)
                records.append([str(path.relative_to(folder / "one")), label, name])
    if rng.random() < 0.5:
        (folder / "one" / "split.json").write_text(dump_json(listed))
    (folder / "tasks.yaml").write_bytes(
        dump_yaml([{"name": "one", "folder": "one", "template": "a {}.", "epochs": 1}])
    )
    kind = rng.random()
    spoil_folder(rng, folder, "tasks.yaml" if kind < 0.3 else "one/split.json*")
    if kind > 0.5:
        spoil_file(rng, rng.choice(sorted((folder / "one").rglob("?.*"))))
    words = ["--benchmark", "images", "--data_dir", "."]
    if rng.random() < 0.3:
        return evaluate(["audit", *words])
    return check_run([*words, "--model", EMBEDDED_IMAGES, "--order", "one"])


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
    "pictures": pictures,
    "deepspeed": deepspeed_files,
    "models": model_folders,
    "memories": memory_folders,
    "evaluation": evaluation_files,
}
