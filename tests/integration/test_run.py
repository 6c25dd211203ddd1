"""Whole runs on two ranks: what is on disk afterwards, and what a stop costs.

One run through the real launcher serves most tests. Its base and data are the demo's; nothing here
depends on how well that base learns.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from eval.run import main as eval_command
from moram_dist.tasks import BENCHMARKS, Source
from tests.integration.launching import ROOT, Done, launcher, run, started, train

pytestmark = pytest.mark.integration

TASKS = ("topic", "mood", "place")
STEPS = 4  # of each task: 32 examples, 8 a step
SMALL = ("--limit_train", "32", "--limit_eval", "8", "--epochs", "1", "--batch_size", "8")
SMALL += ("--log_every", "1", "--preset", "published")
ZERO3 = ("--ds_config", ROOT / "ds_configs" / "zero3.json")
FLAGS = (*SMALL, *ZERO3, "--order", ",".join(TASKS), "--answers", "generate,labels")
UNTRACKED = ("--tracking", "none")


def ok(done: Done) -> Done:
    assert done.code == 0, done.out + done.err
    return done


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[tuple[str, int, float]]:
    """(task, global step, loss) in the order in which they were logged."""
    return [
        (line["task"], line["step"], float(line["train/loss"]))
        for line in lines(folder / "metrics.jsonl")
        if "train/loss" in line
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Everything that is a result of training or evaluation, by name."""
    paths = [*folder.glob("memory/*"), *folder.glob("predictions/*/*"), *folder.glob("scores*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def evaluated(*words: str | Path, capsys) -> dict:
    assert eval_command([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run of three tasks, tracked, by the real launcher from another folder."""
    home = tmp_path_factory.mktemp("whole")
    done = ok(run(*launcher(*FLAGS, "--output_dir", home / "run"), cwd=home))
    assert "AP " in done.out and "report:" in done.out
    return home / "run"


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "run")


def test_files(folder):
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {name for name in found if not name.startswith("report/")} == {
        *("run.yaml", "inputs.json", "ds_config.json", "environment.json", "benchmark.json"),
        "tracking.json",
        *("tracking/run.jsonl", "tracking/node_000.jsonl", "tracking/.lock"),
        *("scores.json", "scores.labels.json", "metrics.jsonl", "memory/memory.json", ".lock"),
        *(f"memory/{i:03d}_{name}.safetensors" for i, name in enumerate(TASKS)),
        *(f"memory/{i:03d}_{name}.recogniser.safetensors" for i, name in enumerate(TASKS)),
        *(
            f"predictions/after_{i:03d}/on_{j:03d}_{TASKS[j]}{mode}.jsonl"
            for i in range(len(TASKS))
            for j in range(i + 1)
            for mode in ("", ".labels")
        ),
        *(f"observe/after_{i:03d}.json" for i in range(len(TASKS))),
    }
    assert "report/index.html" in found


def test_records(folder):
    config = yaml.safe_load((folder / "run.yaml").read_text())
    assert config["data"]["order"] == ",".join(TASKS)
    assert config["train"]["batch_size"] == 8
    assert config["train"]["learning_rate"] == BENCHMARKS["demo"](Source()).learning_rate
    ds_config = json.loads((folder / "ds_config.json").read_text())
    assert "auto" not in json.dumps(ds_config)
    assert (ds_config["train_batch_size"], ds_config["bf16"]) == (8, {"enabled": False})
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert {"torch", "deepspeed", "transformers"} <= set(environment["packages"])
    benchmark = json.loads((folder / "benchmark.json").read_text())
    assert [(task["name"], task["train"], task["test"]) for task in benchmark["tasks"]] == [
        (name, 32, 8) for name in TASKS
    ]


def test_memory_holds_one_equal_growth_a_task(folder):
    manifest = json.loads((folder / "memory" / "memory.json").read_text())
    assert [task["name"] for task in manifest["tasks"]] == [*TASKS]
    for task in manifest["tasks"]:
        tensors = load_file(folder / "memory" / task["file"])
        assert set(tensors) == {
            f"{name}.{part}" for name in manifest["modules"] for part in ("keys", "values")
        }
        assert {len(tensor) for tensor in tensors.values()} == {manifest["settings"]["top_k"]}
        assert all(tensors[f"{name}.values"].abs().sum() > 0 for name in manifest["modules"])


def test_losses(folder):
    assert [(task, step) for task, step, _ in losses(folder)] == [
        (name, i * STEPS + step) for i, name in enumerate(TASKS) for step in range(STEPS)
    ]
    assert all(math.isfinite(loss) for *_, loss in losses(folder))


def test_scores_are_those_of_the_predictions(folder, capsys):
    saved = json.loads((folder / "scores.json").read_text())
    assert set(saved) == {"tasks", "metrics", "scores"}
    assert saved["tasks"] == [*TASKS]
    assert [[score is None for score in row] for row in saved["scores"]] == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    by_labels = json.loads((folder / "scores.labels.json").read_text())["scores"]
    for path in folder.glob("predictions/*/*.jsonl"):
        scores = by_labels if path.name.endswith(".labels.jsonl") else saved["scores"]
        i, j = int(path.parent.name[-3:]), int(path.name[3:6])
        metric = saved["metrics"][TASKS[j]]
        again = evaluated("rescore", "--predictions", path, "--metric", metric, capsys=capsys)
        assert (again["score"], again["n"]) == (scores[i][j], 8)
        assert {line["id"] for line in lines(path)} == {f"test-{k}" for k in range(8)}


def test_sequence_metrics(folder, capsys):
    found = evaluated("metrics", "--scores", folder / "scores.json", capsys=capsys)
    last = json.loads((folder / "scores.json").read_text())["scores"][-1]
    assert found["ap"] == pytest.approx(sum(last) / len(last))
    assert found["bwt_gem"] is not None
    assert found["fwt_gem"] is None  # needs eval_rows all


def test_mlflow_has_a_parent_and_a_child_per_task(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "demo"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == {f"{i:03d}_{name}" for i, name in enumerate(TASKS)}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.params["method.top_k"] == "8"

    def history(run, name):
        return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]

    logged = losses(folder)
    for name, child in children.items():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert history(child, "train/loss") == [
            (step, pytest.approx(loss)) for task, step, loss in logged if task == name[4:]
        ]
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    for j, name in enumerate(TASKS):
        expected = [(i + 1, scores[i][j]) for i in range(j, len(TASKS))]
        assert history(parent, f"score/{name}") == expected


def test_a_plain_model_with_the_memory_answers_the_same(folder):
    from transformers import AutoModelForCausalLM

    from moram_dist import load_memory
    from moram_dist.config import ModelConfig
    from moram_dist.models.language_model import DEMO_BASE, load_tokenizer
    from tests.helpers.answers import generate_batch

    demo = BENCHMARKS["demo"](Source(order=",".join(TASKS), limit_eval=8))
    tokenizer = load_tokenizer(ModelConfig())
    answers = {}
    for upto in (1, None):
        model = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype="float32")
        load_memory(model, folder, upto=upto)
        after = (upto or len(TASKS)) - 1
        for j, task in enumerate(demo.tasks[: after + 1]):
            path = folder / f"predictions/after_{after:03d}/on_{j:03d}_{task.name}.jsonl"
            answers[after, j] = generate_batch(model, tokenizer, task.test, task, demo.decoding)
            assert answers[after, j] == [line["prediction"] for line in lines(path)]
    assert len(answers) == 1 + len(TASKS)


def test_labels_are_chosen_beside_generation(folder):
    demo = BENCHMARKS["demo"](Source(order=",".join(TASKS), limit_eval=8))
    saved = json.loads((folder / "scores.labels.json").read_text())
    for i, row in enumerate(saved["scores"]):
        for j, task in enumerate(demo.tasks[: i + 1]):
            found = lines(folder / f"predictions/after_{i:03d}/on_{j:03d}_{task.name}.labels.jsonl")
            for line in found:
                assert {*line["log_likelihoods"]} == {*task.labels}
                best = max(task.labels, key=line["log_likelihoods"].__getitem__)
                assert line["prediction"] == best
            assert row[j] == sum(line["score"] for line in found) / len(found)
    assert "How answers were obtained" in (folder / "report" / "index.html").read_text()


def test_the_same_command_again_does_nothing_again(folder):
    def state():
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in kept}

    kept = [*folder.glob("memory/*"), *folder.glob("predictions/*/*"), folder / "metrics.jsonl"]
    before = state()
    done = ok(train(*FLAGS, "--output_dir", folder))
    assert "all 3 tasks are done" in done.out
    assert "step 1/" not in done.out
    assert state() == before


def test_killed_in_the_second_task(folder, tmp_path):
    flags = (*FLAGS, *UNTRACKED, "--output_dir", tmp_path / "run")
    with started(*launcher(*flags), cwd=tmp_path) as process:
        assert any("task 2/3 mood  step 1/" in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGKILL)
    memory = tmp_path / "run" / "memory"
    published = json.loads((memory / "memory.json").read_text())
    assert [task["name"] for task in published["tasks"]] == ["topic"]
    first = memory / "000_topic.safetensors"
    before = first.stat().st_mtime_ns

    done = ok(train(*flags))

    assert "task 1/3" not in done.out
    assert first.stat().st_mtime_ns == before
    assert losses(tmp_path / "run") == losses(folder)
    assert contents(tmp_path / "run") == contents(folder)
    assert not list(tmp_path.glob("*.db"))


def unfinished(copy: Path, **changes) -> Path:
    """Makes the copied run one that stopped after its second task; ``changes`` its manifest."""
    path = copy / "memory" / "memory.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "tasks": manifest["tasks"][:2], **changes}))
    return copy


def refused(done: Done, code: int = 2) -> str:
    """The one line of a refused run."""
    complaints = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == code, done.out + done.err
    assert "Traceback" not in done.err
    assert len(complaints) == 1, done.err
    return complaints[0]


def test_a_changed_memory_file_is_refused_by_name(copy):
    unfinished(copy)
    path = copy / "memory" / "001_mood.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    before = contents(copy)
    done = train(*FLAGS, *UNTRACKED, "--output_dir", copy)
    assert "001_mood.safetensors has sha256" in refused(done)
    assert "step 1/" not in done.out
    assert contents(copy) == before


def test_a_finished_run_with_a_missing_memory_file_does_not_pass_as_done(copy):
    (copy / "memory" / "000_topic.safetensors").unlink()
    done = train(*FLAGS, *UNTRACKED, "--output_dir", copy)
    assert "000_topic.safetensors is named in memory.json but missing" in refused(done)
    assert "all " not in done.out


def test_a_memory_of_another_base_is_refused(copy):
    unfinished(copy, base={"name": "other-7b", "fingerprint": "0" * 64})
    before = contents(copy)
    done = train(*FLAGS, *UNTRACKED, "--output_dir", copy)
    complaint = refused(done)
    assert "memory.json was trained on other-7b" in complaint
    assert "--model demo" in complaint
    assert "step 1/" not in done.out
    assert contents(copy) == before


def test_a_finished_run_of_other_data_is_refused(copy):
    path = copy / "inputs.json"
    record = json.loads(path.read_text())
    record["tasks"][0]["test"]["digest"] = "0" * 64
    path.write_text(json.dumps(record))
    before = contents(copy)
    complaint = refused(train(*FLAGS, *UNTRACKED, "--output_dir", copy))
    assert "task topic, test split: 8 examples then, 8 now, other content or order" in complaint
    assert contents(copy) == before


def test_an_older_finished_run_gets_its_record(copy):
    (copy / "inputs.json").rename(copy.parent / "inputs.json")
    done = ok(train(*FLAGS, *UNTRACKED, "--output_dir", copy, "--ewc_weight", "3"))
    assert "was started by an older version" in done.out and "nothing is trained again" in done.out
    assert (copy / "inputs.json").read_bytes() == (copy.parent / "inputs.json").read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--placement", "gathered"), marks=pytest.mark.nightly),
        pytest.param(("--placement", "stationary"), marks=pytest.mark.nightly),
        ("--placement", "auto", "--resident_fraction", "0"),
        ("--placement", "stationary", "--atom_group", "node", "--eval_gather", "false"),
    ],
    ids=lambda flags: "-".join(word.strip("-") for word in flags),
)
def test_placement_changes_no_score(folder, tmp_path, flags):
    """Gathered atoms give every bit of a resident memory; parts of ranks are summed to rounding."""
    done = ok(train(*FLAGS, *UNTRACKED, *flags, "--output_dir", tmp_path / "run"))
    assert "placement of the memory: " in done.out
    found, expected = losses(tmp_path / "run"), losses(folder)
    assert [step[:-1] for step in found] == [step[:-1] for step in expected]
    for (*_, loss), (*_, wanted) in zip(found, expected, strict=True):
        assert loss == pytest.approx(wanted, rel=1e-5)
    scores = "scores.json"
    assert (tmp_path / "run" / scores).read_bytes() == (folder / scores).read_bytes()
    if flags[1] == "gathered":
        assert found == expected
        assert contents(tmp_path / "run") == contents(folder)
    sent = {"gathered": "atoms", "stationary": "tokens", "auto": "token_counts"}[flags[1]]
    steps = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" not in line]
    assert max(line.get(f"atoms/{sent}_bytes", 0) for line in steps) > 0
