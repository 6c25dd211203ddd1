"""Wrong answers on pictures in the report: which, as what, and with pictures that are not there."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from eval.predictions import predictions_path
from eval.report.read import read_contents
from eval.report.write import write_report
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.picture_files import encoded, noise
from tests.helpers.reported_runs import make_run

TASKS = ["shapes", "signs"]
CLASSES = ["round", "square & flat"]
SCORES = [[75.0, 25.0], [70.0, 50.0]]


@pytest.fixture
def data_dir(tmp_path):
    """Two tasks of 20 test pictures of each class, 40 x 20 pixels."""
    for t, task in enumerate(TASKS):
        for c, name in enumerate(CLASSES):
            for split, count in (("train", 1), ("test", 20)):
                folder = tmp_path / "data" / task / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    content = encoded(noise(40, 20, seed=100 * t + 40 * c + i))
                    (folder / f"{i:02d}.png").write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def run_dir(tmp_path, data_dir):
    """A run on them after its last task, half of whose answers are wrong."""
    folder = make_run(tmp_path / "run", tasks=TASKS, scores=SCORES, base=None)
    config = yaml.safe_load((folder / "run.yaml").read_text())
    data = {"benchmark": "images", "data_dir": str(data_dir), "order": None, "shots": None}
    (folder / "run.yaml").write_text(yaml.safe_dump(config | {"data": data | {"splits": {}}}))
    rules = {"metric": "exact_match", "texts": [["a photo of a round."]]}
    inputs = {"tasks": [{"name": name, "rules": rules} for name in TASKS]}
    (folder / "inputs.json").write_text(json.dumps(inputs))
    for column, task in enumerate(BENCHMARKS["images"](Source(data_dir=data_dir)).tasks):
        lines = [
            {
                "id": one.id,
                "prompt": one.prompt,
                "references": list(one.references),
                "prediction": CLASSES[0],
                "score": 100.0 * (one.references[0] == CLASSES[0]),
            }
            for one in task.test
        ]
        write_lines(folder, column, lines)
    return folder


def write_lines(run_dir: Path, column: int, lines: list[dict]) -> None:
    path = predictions_path(run_dir, len(SCORES) - 1, column, TASKS[column])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(run_dir: Path, column: int) -> list[dict]:
    path = predictions_path(run_dir, len(SCORES) - 1, column, TASKS[column])
    return [json.loads(line) for line in path.read_text().splitlines()]


def page_of(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def test_wrong_answers_are_shown_with_their_pictures(run_dir, data_dir):
    page = page_of(run_dir)
    uris = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"', page)
    assert len(uris) == 2 * 12  # at most 12 of each task's 20
    for content, name in uris:
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (64, 32)
        assert "square &amp; flat" in name
    assert page.count("<figcaption><b>square &amp; flat</b><br>round</figcaption>") == 24
    for task in TASKS:
        assert f"<summary>{task}: 12 of 20 wrong answers</summary>" in page
    assert len(page.encode()) < 2**20
    shown = read_contents(run_dir).wrong.shown["shapes"]
    assert [Path(one.name).name for one in shown] == [f"{i:02d}.png" for i in range(12)]
    assert page_of(run_dir) == page


def test_the_page_refers_to_nothing_outside(run_dir):
    page = page_of(run_dir)
    found = re.findall(r'\b(?:src|href)="([^"]{0,40})', page)
    assert found and all(one.startswith(("data:image/jpeg;base64,", "#")) for one in found)


def test_a_picture_that_cannot_be_opened_leaves_its_answer(run_dir, data_dir):
    lines = [line for line in read_lines(run_dir, 0) if not line["score"]][:4]
    lines[0]["prompt"] = "../../run/run.yaml"
    lines[1]["prompt"] = "/etc/hostname"
    lines[2]["prompt"] = "nowhere\0.png\"'><script>"
    write_lines(run_dir, 0, lines)
    task = BENCHMARKS["images"](Source(data_dir=data_dir)).tasks[0]
    (task.pictures / lines[3]["prompt"]).write_bytes(encoded(noise(40, 20))[:500])
    page = page_of(run_dir)
    assert page.count(">not readable</span><figcaption><b>square &amp; flat</b><br>round") == 4
    assert page.count("<img ") == 12 and "<script" not in page


def test_without_the_data_there_is_one_line(run_dir, data_dir):
    shutil.move(data_dir, data_dir.with_name("moved"))
    page = page_of(run_dir)
    said = html.unescape(page)
    assert f"The pictures cannot be shown: --data_dir: no such file or folder: {data_dir}" in said
    assert "<img" not in page and "<td>signs</td>" in page


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"benchmark": "xtale"}, "unknown benchmark 'xtale'"),
        ({"order": ["shapes"]}, "order: "),
        ({"protocol": "moram"}, "unknown protocol of images 'moram'"),
    ],
)
def test_a_record_that_was_edited_is_one_line(run_dir, settings, complaint):
    config = yaml.safe_load((run_dir / "run.yaml").read_text())
    config["data"] |= settings
    (run_dir / "run.yaml").write_text(yaml.safe_dump(config))
    (line,) = re.findall(r"The pictures cannot be shown: .*", html.unescape(page_of(run_dir)))
    assert complaint in line


def test_nothing_wrong(run_dir):
    for column in range(2):
        write_lines(
            run_dir, column, [line for line in read_lines(run_dir, column) if line["score"]]
        )
    page = page_of(run_dir)
    assert "<p>No answer was wrong.</p>" in page and "<img" not in page


def test_runs_on_texts_have_no_such_section(run_dir):
    content = (run_dir / "inputs.json").read_text()
    (run_dir / "inputs.json").write_text(content.replace('"texts"', '"labels"'))
    assert "Some wrong answers" not in page_of(run_dir)
    (run_dir / "inputs.json").unlink()
    assert "Some wrong answers" not in page_of(run_dir)
