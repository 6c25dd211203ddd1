"""The bench's table and its command."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import __main__ as command
from bench import exact, layer, measure, published, report, variants
from bench.contest import COMPILED, LINEAR, OURS, PEFT_ACTIVE, PUBLISHED
from bench.measure import look
from bench.results import BenchResults, Level, Measurement, environment
from tests.unit.test_bench import FAST, SMALL, K, by_way


def made_up(level="layer", **fields):
    case = {"tokens": 2048, "width": 1024, "atoms": 4096, "what": "update"}
    return Measurement(
        **{"level": level, "case": case, "least": 1.0, "median": 1.5, "repeats": 3} | fields
    )


def results_of(*rows):
    levels = {row.level: Level(load_before=3.0, load_after=2.0, seconds=60.0) for row in rows}
    return BenchResults(
        environment=environment() | {"quick": False}, levels=levels, rows=list(rows)
    )


def test_the_table():
    rows = [
        made_up(way=PUBLISHED, saved_bytes=1_000_000, least=4.9),
        made_up(way=PEFT_ACTIVE, saved_bytes=8_000),
        made_up(way=OURS, saved_bytes=2_000, kept_bytes=0),
    ]
    results = results_of(*rows)
    text = report.markdown(results)
    assert "| time, published / ours |  | 1,024 | 4,096 | >= 5 | 4.90 | no |" in text
    assert "| time, PEFT's active rows / ours |  | 1,024 | 4,096 | >= 1 | 1.00 | yes |" in text
    assert "| saved bytes, published / ours |  | 1,024 | 4,096 | >= 300 | 500.00 | yes |" in text
    assert "bare linear |" not in text  # it was not measured
    assert "| 2,048 | 1,024 | 4,096 | update | ours | 1,000.0 | 1,500.0 | 3 | 0.20 | 2 |" in text
    assert "The machine was busy" in text and "torch.compile" not in text
    assert BenchResults.from_json(results.to_json()) == results


def test_targets_of_a_step():
    case = {"rows": 16, "width": 256, "atoms": 240}
    bare = made_up("step", way=LINEAR, case=case, least=1.0)
    text = report.targets([bare, made_up("step", way=OURS, case=case, least=1.2)])
    (line,) = text.splitlines()[2:]
    assert line.endswith("ours / bare model | 16 | 256 | 240 | <= 1.15 | 1.20 | no |")
    alone = made_up("step", way=OURS, case={**case, "rows": 1}, least=1.2)
    assert len(report.targets([bare, alone]).splitlines()) == 2  # not of the same rows


@pytest.mark.parametrize(
    ("seconds", "own", "taken"),
    [(600, 540.0, 0.9), (1e-3, 3.0, 3 / 60)],
    ids=["nine tenths of a core", "just started"],
)
def test_load_of_others(monkeypatch, seconds, own, taken):
    monkeypatch.setattr(measure.time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    monkeypatch.setattr(measure.os, "times", lambda: (own, 0.0, 0.0, 0.0, seconds))
    assert measure.load_of_others(1000 - seconds) == pytest.approx(1.5 - taken, rel=1e-3)


def test_the_command(monkeypatch, tmp_path, capsys):
    def runner(level):
        right = [made_up(way=PUBLISHED, saved_bytes=9), made_up(way=OURS, saved_bytes=1)]
        wrong = [made_up("decode", way=OURS, passed=False, least=None)]
        return lambda settings: iter([right if level == "layer" else wrong])

    monkeypatch.setattr(command, "runner", runner)
    monkeypatch.setattr(command, "compiler_missing", lambda: "no g++")
    out = tmp_path / "bench"
    assert command.main(["--levels", "layer", "--out", str(out)]) == 0
    assert "Without torch.compile: no g++." in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names == {"results.json", "table.md", "time.svg", "memory.svg"}
    assert "<svg" in (out / "time.svg").read_text()
    assert command.main(["--levels", "decode", "--out", str(out)]) == 1
    assert "failed its check: decode" in capsys.readouterr().err
    kept = BenchResults.from_json((out / "results.json").read_text())
    assert {row.level for row in kept.rows} == {*kept.levels} == {"layer", "decode"}
    assert command.main(["--levels", "layers"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown level 'layers'; did you mean")


def test_without_a_compiler_the_rest_goes_on(monkeypatch):
    from bench import contest

    def broken(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: no working\nC++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    assert contest.compiler_missing() == (
        "it does not work here, InvalidCxxCompiler: no working C++ compiler"
    )
    assert COMPILED not in by_way(layer.one_case(variants.draw(SMALL), FAST))


def test_each_size_is_compiled_afresh(monkeypatch):
    """torch gives up on a function that was compiled for eight sizes."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **more: compiled(f, backend="eager", **more))
    for num_tokens in range(2, 12):
        inputs = variants.draw(replace(SMALL, num_tokens=num_tokens))
        way = variants.published_compiled(inputs)
        seen = look(way, inputs.upstream_TD, top_k=K, counted=False)
        assert exact.compare(seen.answers, exact.memory(inputs), seen.chosen_TK).passed


def test_published_is_not_slowed_down():
    """It has the operations of the public code and no more: six products, two concatenations."""
    inputs = variants.draw(SMALL)
    seen = look(variants.published_eager(inputs), inputs.upstream_TD, top_k=K)
    operations = seen.counts.operations
    assert operations["aten.mm"] == 6 and operations["aten.cat"] == 2
    assert published.recall.__module__ == "bench.published"
