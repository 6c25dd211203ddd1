"""Several recalls of one run in a comparison: a row each, paired, and the oracle marked."""

from __future__ import annotations

import json

import pytest

from eval.compare.command import compare_runs
from eval.compare.groups import group_runs
from eval.compare.runs import read_run_directory, read_runs, runs_of_directory
from eval.compare.tables import latex, to_csv
from eval.continual import sequence_metrics
from eval.run import main
from moram_dist.registry import InputError
from tests.helpers.made_up_runs import noisy_run


def recalled(folder, rights, **names):
    """A run measured with several recalls, the first one first; ``rights``: recall to chance."""
    first, *_ = rights
    for recall, right in rights.items():
        mark = "" if recall == first else f".{recall}"
        noisy_run(folder, right, recall=",".join(rights), mark=mark, **names)
    return folder


def test_each_recall_of_a_run_is_a_row_and_they_are_paired(tmp_path):
    rights = {"prefix": 0.9, "all": 0.5, "oracle": 0.95}
    folders = [recalled(tmp_path / f"m{seed}", rights, seed=seed) for seed in range(2)]
    folders += [noisy_run(tmp_path / f"s{seed}", 0.4, seed=seed, method="ewc") for seed in range(2)]
    text, comparison = compare_runs(folders)
    told = "moram, recall oracle (told the task)"
    labels = ["moram, recall prefix", "moram, recall all", told, "ewc"]
    assert [group.label for group in comparison.groups] == labels
    assert {group.settings for group in comparison.groups} == {""}  # recall is no setting
    assert f"| {told} | 2 |" in text and "not task-agnostic" in text
    assert "told the task" in latex(comparison) and "told the task" in to_csv(comparison)
    one, other = (group.runs["1", 0] for group in comparison.groups[:2])
    assert (one.name, one.recall, other.name, other.recall) == ("m0", "prefix", "m0", "all")
    assert one == read_run_directory(folders[0]) == runs_of_directory(folders[0])[0]
    assert other == read_run_directory(folders[0], recall="all")
    (difference,) = [
        x for x in comparison.differences if (x.metric, x.first, x.second) == ("AP", *labels[:2])
    ]
    assert difference.estimate.runs == 2 and difference.resolved
    by_hand = [
        sequence_metrics(read_run_directory(folder, recall=recall).scores)["ap"]
        for recall in ("prefix", "all")
        for folder in folders[:2]
    ]
    assert difference.estimate.value == pytest.approx(
        (by_hand[0] + by_hand[1] - by_hand[2] - by_hand[3]) / 2
    )


def test_recalls_are_chosen(tmp_path, capsys):
    folder = recalled(tmp_path / "m", {"all": 0.5, "prefix": 0.9})
    other = noisy_run(tmp_path / "s", 0.4, method="ewc")
    lines = tmp_path / "runs.jsonl"
    runs = read_runs([folder, other])
    lines.write_text("".join(run.to_json() + "\n" for run in runs))
    assert read_runs([lines]) == runs
    assert [(run.method, run.recall) for run in read_runs([lines], recalls=["prefix"])] == [
        ("moram", "prefix")
    ]
    text, comparison = compare_runs([lines], recall="all")
    assert [group.label for group in comparison.groups] == ["moram", "ewc"]
    assert "recall" not in text
    for path, there in ((other, "all"), (folder, "all, prefix")):
        assert main(["compare", str(path), "--recall", "oracle"]) == 2
        complaint = f"{path} holds recall {there}, not oracle\n"
        assert capsys.readouterr().err.endswith(complaint)
    assert main(["compare", str(folder), "--recall", "prefx"]) == 2
    assert "did you mean 'prefix'" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"scores\.prefix\.json"):
        (folder / "scores.prefix.json").unlink()
        read_runs([folder])
    assert len(read_runs([folder], recalls=["all"])) == 1


def test_a_recogniser_is_a_setting_of_recall_by_prefix(tmp_path):
    """An older line has neither: its recall was by all, and its settings were the defaults."""
    folders = [recalled(tmp_path / f"m{k}", {"all": 0.5, "prefix": 0.9}) for k in range(2)]
    path = folders[1] / "run.yaml"
    path.write_text(path.read_text().replace("eval:\n", "eval:\n  recogniser: means\n"))
    groups = group_runs(read_runs(folders, recalls=["prefix"]))
    assert [group.label for group in groups] == [
        "moram, recall prefix, recogniser discriminant",
        "moram, recall prefix, recogniser means",
    ]
    (plain, asked), (same, _) = map(runs_of_directory, folders)
    assert plain.settings == same.settings
    assert "eval.recogniser" in asked.settings and "eval.recogniser" not in plain.settings
    older = json.loads(plain.to_json())
    del older["recall"], older["settings"]["train.learning_rate"]
    lines = tmp_path / "older.jsonl"
    lines.write_text(json.dumps(older))
    (read,) = read_runs([lines])
    assert read.recall == "all" and read.settings.keys() == plain.settings.keys()
