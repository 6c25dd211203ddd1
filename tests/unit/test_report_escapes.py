"""The report is safe to open, whatever models and files say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import yaml

import eval.report
from eval.predictions import predictions_path
from eval.report.write import write_report
from tests.helpers.reported_runs import make_run

HOSTILE = "\"'><script>alert('x')</script><img src=x onerror='y'></td>&amp;{{ 7 * 7 }}{% raw %}"
HARMLESS = "good".ljust(len(HOSTILE), ".")


class Page(HTMLParser):
    """What a browser makes of a page: its text, and its elements with names of attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.text += data


def test_page_escapes_what_models_and_files_say(tmp_path):
    run_dir = make_run(tmp_path / "run")
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<b>$Py150$" not in page and "&lt;b&gt;$Py150$" in page
    assert "scores &lt; 100" in page
    assert "secret" not in page


def spoilt(value: object, said: str) -> object:
    """A value of JSON with ``said`` before each key and each value in it."""
    if isinstance(value, dict):
        return {said + key: spoilt(inner, said) for key, inner in value.items()}
    return [spoilt(x, said) for x in value] if isinstance(value, list) else f"{said}{value}"


def saying(folder: Path, said: str) -> Path:
    """A run with ``said`` in every text of every file that the report shows."""
    tasks = [f"{said}{i}" for i in range(3)]
    make_run(folder, tasks=tasks)
    config = yaml.safe_load((folder / "run.yaml").read_text())
    config |= {said: spoilt(config, said), "model": {"model": said}, "method": {"method": said}}
    config["eval"] = {"answers": "generate,labels", "recall": "all,prefix", "recogniser": said}
    (folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(spoilt(environment, said)))
    benchmark = json.loads((folder / "benchmark.json").read_text())
    benchmark |= {"name": said, "order": said, "protocol": said, "notes": [said]}
    (folder / "benchmark.json").write_text(json.dumps(benchmark))
    scores = json.loads((folder / "scores.json").read_text())
    scores["metrics"] = dict.fromkeys(tasks, said)
    for mark in ("", ".labels", ".prefix"):
        (folder / f"scores{mark}.json").write_text(json.dumps(scores))
    memory = [{"name": task, "file": said, "sha256": said} for task in tasks]
    (folder / "memory" / "memory.json").write_text(json.dumps({"tasks": memory}))
    for j, task in enumerate(tasks):
        line = {"id": said, "prompt": said * 10, "references": [said] * 2, "prediction": said}
        line |= {"recognised": tasks[0], "score": 0.0}
        for mark in (None, "prefix"):
            path = predictions_path(folder, 2, j, task, mark)
            path.write_text(json.dumps(line) + "\n")
    return folder


def test_hostile_text_in_every_field_stays_text(tmp_path):
    hostile = Page(write_report(saying(tmp_path / "hostile", HOSTILE)))
    harmless = Page(write_report(saying(tmp_path / "harmless", HARMLESS)))
    assert set(hostile.elements) == set(harmless.elements)
    assert not {tag for tag, _ in hostile.elements} & {"script", "img", "iframe", "link"}
    assert hostile.text.count(HOSTILE) == harmless.text.count(HARMLESS) > 100


def test_only_figures_and_our_own_markup_are_not_escaped():
    templates = sorted(Path(eval.report.__file__).parent.glob("*.html"))
    text = "".join(path.read_text(encoding="utf-8") for path in templates)
    assert len(templates) == 5 and "autoescape" not in text
    unescaped = re.findall(r"""([\w.]+|"[^"]*")\|safe""", text)
    assert [name for name in unescaped if not name.startswith("figures.")] == ['",<br>recall"']


def test_characters_that_nobody_sees_have_a_mark(tmp_path):
    folder = make_run(tmp_path / "run", tasks=["a\x1b[31m", "b\u202ec", "d"])
    page = write_report(folder).read_text(encoding="utf-8")
    assert "\x1b" not in page and "\u202e" not in page
    assert "<td>a\N{REPLACEMENT CHARACTER}[31m</td>" in page
