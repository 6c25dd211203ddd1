"""Published Transfer, Average and Last: the rows, what marks them, and the table beside ours."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from eval.column_blocks import BLOCKS
from eval.compare.command import compare_runs
from eval.compare.comparison import compare
from eval.compare.published import published_tables
from eval.compare.references import Setting, read_references
from eval.compare.runs import read_runs
from eval.compare.setting import setting_of
from moram_dist.tasks.pictures.published_sets import IMAGE_SETS
from tests.helpers.made_up_runs import make_run, random_scores

PICTURES = [one for one in read_references() if one.benchmark in ("xtail", "mtil")]
FULL = Setting(
    base="clip-vit-base-patch16",
    protocol="full",
    orders=("1",),
    shots="all",
    splits="torchvision's",
)


def rows_of(benchmark: str, ours: Setting = FULL) -> list[tuple[str, ...]]:
    (table,) = published_tables([one for one in PICTURES if one.benchmark == benchmark], ours)
    assert table.header[5:8] == tuple(BLOCKS.values())
    return list(table.rows)


def test_every_row_says_base_shots_and_source_and_has_all_three_figures():
    for one in PICTURES:
        assert (one.model, one.metric in BLOCKS) == ("CLIP ViT-B/16", True), one
        assert one.shots in (("16",) if one.benchmark == "xtail" else ("all", "5")), one
        assert one.provenance != "unverified", one
    for row in (*rows_of("xtail"), *rows_of("mtil")):
        assert "–" not in row[5:8], row


def test_some_rows():
    assert [(row[0], *row[5:8]) for row in rows_of("xtail")] == [
        ("MoE-Adapters", "56.0", "63.0", "70.5"),
        ("RAIL-Primal", "62.4", "70.7", "79.1"),
        ("CoDyRA", "63.2", "71.3", "79.2"),
        ("MoRAM", "63.3", "72.7", "80.9"),
    ]
    found = {(row[0], *row[2:5]): row[5:8] for row in rows_of("mtil")}
    assert found["ZSCL", "all", "torchvision's", "1"] == ("68.1", "75.4", "83.6")
    assert found["ZSCL", "all", "torchvision's", "2"] == ("64.2", "74.5", "83.4")
    assert found["CoDyRA", "5", "CoOp's lists", "1"] == ("70.1", "73.3", "78.0")
    assert found["ZSCL", "5", "not stated", "1"] == ("65.3", "64.4", "67.4")
    assert len(found) == len(rows_of("mtil")) == 8 * 2 + 2 + 6


def test_marks_of_mtil():
    marks = {(row[0], row[2], row[4]): row[-1] for row in rows_of("mtil")}
    assert marks["ZSCL", "all", "1"] == "comparable (read in the source)"
    assert marks["ZSCL", "all", "2"] == "not comparable: other order (read in the source)"
    assert marks["MoE-Adapters", "all", "1"] == "comparable (restated by a third party)"
    assert marks["CoDyRA", "5", "1"] == (
        "not comparable: protocol not stated; other shots; other splits (read in the source)"
    )
    assert "dagger" in marks["MoE-Adapters", "5", "1"]
    tiny = replace(FULL, base="clip-tiny", splits="torchvision's, not all test pictures")
    marks = {(row[0], row[2], row[4]): row[-1] for row in rows_of("mtil", tiny)}
    assert marks["ZSCL", "all", "1"] == (
        "not comparable: other base model; other splits (read in the source)"
    )


def test_published_matrices_give_the_published_figures(shared):
    path = shared / "data" / "vision" / "published_matrices.json"
    rows = {
        (one.method.partition(" (")[0], order, one.metric): value
        for one in PICTURES
        if (one.benchmark, one.shots) == ("mtil", "all")
        for order, value in one.values.items()
    }
    for one in json.loads(path.read_text()):
        for metric in BLOCKS:
            printed = rows[one["method"], f"{one['order']}", metric]
            assert printed == pytest.approx(one[metric], abs=0.051), (one["method"], metric)


def picture_run(folder, tests, *, limit=None, **names):
    generator = np.random.default_rng(0)
    cells = {
        (i, j): random_scores(generator, n, 0.5)
        for i in range(len(tests))
        for j, n in enumerate(tests.values())
    }
    run = make_run(folder, cells, tasks=[*tests], **names)
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(f"{text}data: {{limit_train: {limit or 'null'}}}\n")
    return run


@pytest.mark.slow
def test_the_setting_of_runs(tmp_path):
    def setting(name, tests, **names):
        return setting_of(compare(read_runs([picture_run(tmp_path / name, tests, **names)])))

    whole = {"dtd": IMAGE_SETS["dtd"].tests, "oxford_pets": IMAGE_SETS["oxford_pets"].tests}
    xtail = setting("a", whole, benchmark="xtail", protocol="moram")
    assert (xtail.shots, xtail.splits) == ("16", "CoOp's lists")
    cut = setting("b", whole | {"dtd": 47}, benchmark="xtail", protocol="moram", limit=20)
    assert (cut.shots, cut.splits) == ("20 a task", "CoOp's lists, not all test pictures")
    few = setting("c", {"DTD": 1_692}, benchmark="mtil", order="DTD")
    assert (few.shots, few.splits, few.orders) == ("5", "CoOp's lists", ("DTD",))
    full = setting("d", {"DTD": 1_880}, benchmark="mtil", protocol="full")
    assert (full.shots, full.splits) == ("all", "torchvision's")
    texts = setting("e", {"topic": 10})
    assert (texts.shots, texts.splits) == ("", "")


def test_the_table_beside_ours(tmp_path):
    run = picture_run(tmp_path / "a", {"dtd": 10, "mnist": 10}, benchmark="xtail", protocol="rail")
    text, _ = compare_runs([run], resamples="1000")
    assert "## Published numbers" not in text
    section = text.partition("## Published Transfer, Average and Last\n")[2]
    (moram,) = [line for line in section.split("\n") if line.startswith("| MoRAM |")]
    assert moram.startswith("| MoRAM | CLIP ViT-B/16 | 16 | CoOp's lists | default | 63.3 | 72.7 |")
    assert "not comparable: other base model; other protocol; other splits; other order" in moram
