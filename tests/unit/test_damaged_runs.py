"""The evaluation commands on damaged files: one line and exit code 2, and nothing written."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from eval.run import main
from tests.helpers.made_up_runs import make_run

TASKS = ["topic", "mood"]
CELLS = {(0, 0): [100.0, 0.0], (1, 0): [100.0, 100.0], (1, 1): [50.0, 100.0]}
VALUES = [
    "null", "true", "0", "-1", "1e400", "NaN", '""', '"x"', "[]", "{}", "[null]", '{"name": 1}',
    '[["a"]]', "[" * 2000, "9" * 5000, '"\\ud800"', '"\\u0000\\u001b[2J"', '"<script>"', '"a|b"',
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with every file that the commands read."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "whole", CELLS, tasks=TASKS)
    benchmark = json.loads((folder / "benchmark.json").read_text())
    benchmark |= {"notes": ["a note"], "tasks": [{"name": t, "train": 4, "test": 2} for t in TASKS]}
    stored = [{"name": t, "file": f"{t}.safetensors", "sha256": "00"} for t in TASKS]
    manifest = json.loads((folder / "memory/memory.json").read_text()) | {"tasks": stored}
    (folder / "benchmark.json").write_text(json.dumps(benchmark))
    (folder / "memory/memory.json").write_text(json.dumps(manifest))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"a": "1"}}))
    lines = [{"step": k, "task": TASKS[k // 2], "train/loss": 1.0} for k in range(4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def files(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def mutations(text: str, rng: random.Random) -> list[bytes]:
    """A file cut, with a byte of no text, with other values in it, and with other content."""
    content = text.encode()
    cut = rng.randrange(len(content))
    found = [content[:cut], content[:cut] + b"\xff\xfe" + content[cut:], b"", b"\0" * 10]
    found += [value.encode() for value in rng.sample(VALUES, 4)]
    try:
        value = json.loads(text)
    except ValueError:  # YAML, or lines
        words = text.split(": ")
        for _ in range(6):
            k = rng.randrange(1, len(words))
            other = rng.choice(VALUES) + words[k][len(words[k].split(",")[0].split("\n")[0]) :]
            found.append(": ".join([*words[:k], other, *words[k + 1 :]]).encode())
        return found
    for _ in range(8):
        found.append(replaced(value, rng).encode())
    return found


def replaced(value: object, rng: random.Random) -> str:
    """JSON with one part of it gone or replaced."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    parts = {k: json.dumps(value[k]) for k in keys}
    if rng.random() < 0.3:
        del parts[key]
    else:
        parts[key] = replaced(value[key], rng)
    if isinstance(value, list):
        return f"[{', '.join(parts.values())}]"
    return f"{{{', '.join(f'{json.dumps(k)}: {v}' for k, v in parts.items())}}}"


def commands(run: Path, whole: Path) -> list[list[str]]:
    predictions = run / "predictions/after_001/on_000_topic.jsonl"
    return [
        ["report", "--run", str(run)],
        ["metrics", "--scores", str(run), "--single_task", str(whole)],
        ["metrics", "--scores", str(whole), "--multitask", str(run)],
        ["compare", str(run), str(whole), "--resamples", "1000"],
        ["rescore", "--predictions", str(predictions), "--metric", "sari"],
    ]


def check(command: list[str], capsys) -> int:
    """The exit code, once it is 0, or 2 with a line of error and nothing else."""
    code = main(command)
    out, err = capsys.readouterr()
    assert code in (0, 2), (command, code, err)
    if code:
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, (command, err)
        assert err.isprintable() or err.rstrip("\n").isprintable(), err
    return code


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.nightly) for s in (1, 2))])
def test_damaged_files(tmp_path, whole, capsys, monkeypatch, seed):
    monkeypatch.setattr(
        "eval.report.write.svg_text", lambda _: "<svg></svg>"
    )  # drawn in other tests
    rng = random.Random(seed)
    refused = 0
    for name in files(whole):
        run = tmp_path / "whole"
        shutil.copytree(whole, run)
        for content in mutations((whole / name).read_text(), rng):
            (run / name).write_bytes(content)
            for command in commands(run, whole):
                code = check(command, capsys)
                refused += code == 2
                if command[0] == "report" and code:
                    assert not (run / "report").exists(), name
            shutil.rmtree(run / "report", ignore_errors=True)
        shutil.rmtree(run)
    assert refused > 100


@pytest.mark.parametrize("name", ["run.yaml", "scores.json", "metrics.jsonl", "benchmark.json"])
def test_files_that_are_folders(tmp_path, whole, capsys, name):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / name).unlink()
    (run / name).mkdir()
    assert check(["report", "--run", str(run)], capsys) == 2
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("benchmark.json", "[]", "benchmark.json: expected a JSON object"),
        ("memory/memory.json", "[]", "memory.json: expected a JSON object"),
        ("metrics.jsonl", '{"train/loss": 1}\n', "metrics.jsonl, line 1: step: "),
        ("predictions/after_001/on_000_topic.jsonl", "{}", "line 1: prompt: "),
        ("environment.json", "3", "environment.json: expected a JSON object"),
        ("scores.json", '{"tasks": ["\\ud800"], "metrics": {}, "scores": []}', "which is no text"),
    ],
)
def test_the_place_is_named(tmp_path, whole, capsys, file, content, complaint):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / file).write_text(content)
    assert main(["report", "--run", str(run)]) == 2
    assert complaint in capsys.readouterr().err


def test_a_last_line_that_was_cut_is_no_damage(tmp_path, whole, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 5, "task": "ä'.encode()[:-1])
    assert check(["report", "--run", str(run)], capsys) == 0


def test_names_of_any_characters(tmp_path, capsys):
    tasks = [
        "<script>x</script>",
        "a|b\\c_d&#%$~^{}",
        "line\nbreak \x1b[31m",
        "n" * 200,
        "$\\frac$",
    ]
    cells = {(t, i): [100.0, 0.0] for t in range(5) for i in range(t + 1)}
    run = make_run(tmp_path / "run", {}, tasks=tasks)
    scores = json.loads((run / "scores.json").read_text())
    scores["scores"] = [[50.0 if (t, i) in cells else None for i in range(5)] for t in range(5)]
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "environment.json").write_text('{"\\u001b[2J": "\\ud800"}')
    assert check(["report", "--run", str(run)], capsys) == 0
    page = (run / "report/index.html").read_text(encoding="utf-8")
    assert "<script" not in page and "\x1b" not in page
    for path in (run / "report").glob("*.svg"):
        assert "\x1b" not in path.read_text(encoding="utf-8")


def test_a_comparison_of_odd_names(tmp_path, capsys):
    runs = [
        make_run(tmp_path / f"r{seed}", CELLS, tasks=TASKS, method=method, order=order, seed=seed)
        for seed, (method, order) in enumerate([("a|b\\c_", "1"), ("x\n# y\x1b[2J", "~^_<>")])
    ]
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\n# y" not in out and r"a\|b\\c\_" in out
    table = (tmp_path / "out/compare.tex").read_text()
    assert r"a$|$b\textbackslash{}c\_" in table
    assert r"\textasciitilde{}\textasciicircum{}\_$<$$>$" in table


@pytest.mark.parametrize(
    ("command", "out", "code"),
    [
        (["compare", "RUN", "--resamples", "1000"], "FILE", 2),
        (["compare", "RUN", "--resamples", "1000"], "/proc/none", 4),
        (["compare", "RUN", "--resamples", "1000"], "n" * 300, 4),
    ],
)
def test_where_nothing_can_be_written(tmp_path, whole, capsys, command, out, code):
    (tmp_path / "file").write_text("")
    out = out.replace("FILE", str(tmp_path / "file"))
    words = [str(whole) if word == "RUN" else word for word in command]
    assert main([*words, "--out", out]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and out in err


@pytest.mark.parametrize(
    "command",
    [
        ["report", "--run", "n" * 5000],
        ["metrics", "--scores", "n" * 5000],
        ["compare", "n" * 5000],
        ["compare", "n" * 5000 + ".jsonl"],
        ["rescore", "--predictions", "n" * 5000, "--metric", "sari"],
    ],
)
def test_names_that_no_file_can_have(capsys, command):
    assert check(command, capsys) == 2
