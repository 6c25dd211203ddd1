"""A plan's parts, each against numbers by hand or against the code that a run goes through."""

from __future__ import annotations

import gc
import json
import os

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from launch import plan
from launch.planning.calibration import Calibration
from launch.planning.meter import Meter, PretendGroup
from launch.planning.rehearsal import Ranks, Rehearsal
from launch.planning.sizes import standing
from launch.planning.steps import task_steps
from launch.planning.table import table
from launch.settings import resolve
from moram_dist.adapters import moments
from moram_dist.config_io import build
from moram_dist.data.encode import encode_training
from moram_dist.data.stream import steps
from moram_dist.families.causal import Causal
from moram_dist.families.targets import choose_targets
from moram_dist.models import language_model
from moram_dist.registry import InputError
from tests.helpers.tiny import HIDDEN, save_tiny_model
from tests.helpers.tiny_clip import LONGEST, save_tiny_clip
from tests.helpers.tiny_t5 import save_tiny_t5

CAUSAL = Causal()
NO_PASSES = ("--calibrate", "false")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "0"], "--nodes must be > 0, got 0"),
        (["--memory", "-1"], "--memory must be > 0, got -1"),
        (["--method", "ewc"], "--method ewc: plans are for moram"),
        (["--json", "no/such/plan.json"], "--json no/such/plan.json: no such folder"),
        (["--topk", "4"], "unknown flag '--topk'; did you mean '--top_k'?"),
        (["--gradient_checkpointing"], "--gradient_checkpointing true: plans are for runs"),
        (["--target_modules", "x_proj"], "--target_modules 'x_proj' matches no linear layer"),
    ],
)
def test_wrong_input_is_one_line(words, message):
    with pytest.raises(InputError) as caught:
        plan.main(words)
    assert str(caught.value).startswith(message)


def test_an_encoder_is_not_planned(tmp_path):
    with pytest.raises(InputError, match="plans are for causal models and CLIP"):
        plan.main(["--model", str(save_tiny_t5(tmp_path)), *NO_PASSES])


def test_a_meter_counts_what_is_alive():
    kept = torch.zeros(100)
    with Meter([kept]) as meter:
        made = kept + 1  # 400 bytes
        view = made[:50]
        kept.add_(1)  # known
        assert (meter.now, meter.peak) == (400, 400)
        more = made * view[0]
        del made
        assert (meter.now, meter.peak) == (800, 800)  # the view keeps it
        del view, more
        gc.collect()
        assert (meter.now, meter.peak) == (0, 800)


def test_ranks_that_are_not_there_are_counted():
    group = PretendGroup(4)
    assert group.all_gather(torch.zeros(3), "a").shape == (4, 3)
    assert group.exchange(torch.zeros(4, 2), "b").shape == (4, 2)
    assert {name: moved.bytes for name, moved in group.traffic.items()} == {"a": 36, "b": 24}
    alone = PretendGroup(1)
    assert alone.all_gather(torch.ones(3), "a").tolist() == [[1, 1, 1]]
    assert not alone.traffic


def rehearsal(model, placement, *, ranks=2, **flags):
    settings = {"model": str(model), "dtype": "fp32", "target_modules": "o_proj"}
    config = build(settings | {"top_k": "4"} | flags)
    return Rehearsal(config, Ranks(ranks, ranks, "cpu", 1e9), placement, 4, stage=3)


@pytest.mark.parametrize("ranks", [2, 3])
def test_bytes_are_those_of_the_formulas(model, ranks):
    """Two layers, one linear each; docs/placement.md. The first one's input wants no gradient."""
    P, D, T, N, R, K = ranks, HIDDEN, 10, 12, 12, 4
    calls = rehearsal(model, "resident", ranks=1).calls()
    assert [call.wanted for call in calls] == [False, True]
    gathered = rehearsal(model, "gathered", ranks=P, atoms_per_task="12")
    gathered.grow()
    assert gathered.received(T, calls) == {"atoms": 2 * 2 * (P - 1) * (N // P) * 2 * D * 4}
    stationary = rehearsal(model, "stationary", ranks=P, atoms_per_task="12")
    stationary.grow()
    assert stationary.received(T, calls) == {
        "token counts": (P - 1) * 8,
        "tokens": 2 * (P - 1) * T * D * 4,
        "candidates": 2 * (P - 1) * P * T * (4 + 8 * K),
        "outputs": 2 * (P - 1) * T * D * 4,
        "gradients": 2 * (P - 1) * T * D * 4,
        "sums": 2 * (P - 1) * P * T * 8,
        "input gradients": (P - 1) * T * (D * 4 + 2 * R // P * 4),
    }


def test_a_copy_is_gathered_once_a_task(model):
    resident = rehearsal(model, "auto")
    assert resident.takes(100) == "resident" and not resident.announced(100)
    shard = 4 * 2 * HIDDEN * 4 * 2  # half of 8 frozen atoms, two linears
    assert resident.grow() == {"copies": shard}
    assert resident.stored_bytes == (1 + 4) * shard  # the copy also has room for 8 active atoms


def test_auto_takes_what_a_run_takes(model):
    auto = rehearsal(model, "auto", resident_fraction="0", atoms_per_task="40000")
    assert auto.takes(10) == "gathered"  # nothing is frozen yet
    auto.grow()
    assert auto.takes(10) == "stationary"
    assert auto.takes(30000) == "gathered"
    assert auto.announced(10) == {"token counts": 8}


def test_more_frozen_atoms_and_more_tokens_take_more(model):
    from moram_dist.data.encode import Encoded

    one = rehearsal(model, "resident", ranks=1)
    short, long = (CAUSAL.collate([Encoded("", (0,) * n, 4)], 0) for n in (50, 100))
    before = one.train(short), one.train(long)
    one.grow()
    after = one.train(short), one.train(long)
    # Scores of 8 more atoms are kept for each token, linear and layer; 4 bytes each.
    assert after[1] - before[1] >= 100 * 2 * 8 * 4
    assert before[0] < before[1] and after[0] < after[1]
    assert before[1] < 2.2 * before[0]


@pytest.mark.parametrize("world_size", [1, 3])
def test_micro_batches_are_the_trainers(world_size):
    flags = {"limit_train": "20", "limit_eval": "2", "batch_size": "8", "epochs": "2"}
    config, benchmark = resolve(build(flags | {"micro_batch_tokens": "60"}))
    tokenizer = language_model.load_tokenizer(config.model)
    one = rehearsal(language_model.DEMO_BASE, "resident", ranks=1)
    found = task_steps(config, benchmark, one.method, CAUSAL, tokenizer, 1, world_size)
    task = benchmark.tasks[1]
    ranks = [
        [
            [batch.inputs["input_ids"].numel() for batch in step.micro_batches]
            for step in steps(
                [encode_training(tokenizer, example, task) for example in task.train],
                CAUSAL,
                batch_size=8,
                micro_batch_size=None,
                micro_batch_tokens=60,
                epochs=2,
                seed=0,
                task=1,
                rank=rank,
                world_size=world_size,
                pad_id=tokenizer.pad_token_id,
            )
        ]
        for rank in range(world_size)
    ]
    busiest = [[max(each) for each in zip(*step, strict=True)] for step in zip(*ranks, strict=True)]
    assert [list(step) for step in found.steps] == busiest
    assert len(busiest) == 6 and found.num_examples == 20
    assert found.largest[0].inputs["input_ids"].numel() == max(map(max, busiest))


@pytest.mark.parametrize(
    ("stage", "base", "gathered", "trained", "bucket"),
    [
        # 10 + 7 frozen numbers, 5 active ones, two ranks, bf16.
        (0, 34, 0, 2 * 5 + 12 * 5 + 4 * 5, 0),
        (1, 34, 0, 2 * 5 + 12 * 3 + 4 * 5, 0),
        (2, 34, 0, 2 * 5 + 12 * 3 + 4 * 3, 200),
        (3, 2 * (5 + 4), 34, 2 * 5 + 12 * 3 + 4 * 3, 200),
    ],
)
def test_what_zero_keeps(stage, base, gathered, trained, bucket):
    zero = {"stage": stage, "reduce_bucket_size": 100}
    found = standing(
        [10, 7],
        [5],
        ds_config={"zero_optimization": zero},
        ranks=2,
        number_bytes=2,
        device="cuda",
    )
    assert (found.base, found.gathered, found.trained, found.bucket) == (
        base,
        gathered,
        trained,
        bucket,
    )
    assert found.arriving == gathered  # less than the bucket for what is gathered ahead


def test_seconds_are_on_a_line():
    found = Calibration(0, ((10, 1.0), (20, 1.5), (30, 2.0)))
    assert found.seconds(50) == pytest.approx(3.0)
    assert found.seconds(0) == pytest.approx(0.5)


def test_a_plan_for_gpus_needs_none(model, tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = ["--model", model, "--limit_train", "8", "--limit_eval", "2", "--order", "topic,mood"]
    words += ["--nodes", "2", "--gpus_per_node", "4", "--device", "cuda", "--json", out]
    plan.main([str(word) for word in words])
    said = capsys.readouterr().out
    assert "8 ranks on cuda" in said and "in bf16" in said
    assert "resident: the memory's 0.0 MB after the last task fit the 8,192 MB" in said
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["process"] is None and found["standing"]["bucket"] == 5e7 * 2
    assert [task["num_frozen"] for task in found["tasks"]] == [0, 8]
    assert all(sum(task["received"]["gathered"]) == 0 for task in found["tasks"][:1])
    assert sum(found["tasks"][1]["received"]["gathered"]) > 0
    assert not [name for name in os.listdir(tmp_path) if name != "plan.json"]


def test_what_quiet_keys_keep_is_planned(model):
    words = ["--model", str(model), "--limit_train", "8", "--limit_eval", "2"]
    words += ["--order", "topic,mood", "--target_modules", "all-linear", "--threshold", "0"]
    words += ["--memory", "4"]

    def planned(*more):
        own, rest = plan.parser().parse_known_args([*words, *more, *NO_PASSES])
        return plan.make(own, *plan.read_flags((), plan.train_flags(rest)))

    free, quiet = planned(), planned("--quiet_keys", "0.9")
    # Two layers: q, k, v; o; gate, up; down.
    inputs = 2 * [HIDDEN, HIDDEN, HIDDEN, 48]
    assert free.directions == free.moments == 0
    assert quiet.directions == sum(4 * size**2 for size in inputs)
    assert quiet.moments == sum(8 * size**2 for size in inputs) + 4 * 8 * 48**2
    assert quiet.training - free.training == quiet.evaluation - free.evaluation == quiet.directions
    assert quiet.boundary - free.boundary == quiet.directions + quiet.moments
    assert quiet.tasks == free.tasks
    lines = ("directions of older tasks' inputs", "moments of inputs", "directions beside them")
    for line in lines:
        assert line in table(quiet) and line not in table(free)


def test_a_round_of_moments_has_a_limit(monkeypatch):
    monkeypatch.setattr(moments, "AT_ONCE", 1000)
    assert moments.round_bytes([4, 5]) == 8 * (16 + 25) + 4 * 8 * 25
    assert moments.round_bytes([8, 8, 8]) == 1000 + 4 * 8 * 64
    assert moments.round_bytes([20, 8]) == 5 * 8 * 400  # one that is larger is alone


def test_a_clip_is_planned(tmp_path, capsys):
    """Two towers: pictures by the batch, and the texts of a task's classes beside them."""
    for name in ("one", "two"):
        for split, count in (("train", 3), ("test", 1)):
            for label, colour in enumerate(((255, 0, 0), (0, 255, 0))):
                folder = tmp_path / "data" / name / split / "ab"[label]
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (20, 20), colour).save(folder / f"{i}.png")
    out = tmp_path / "plan.json"
    flags = {
        "model": save_tiny_clip(tmp_path / "model"),
        "benchmark": "images",
        "data_dir": tmp_path / "data",
        "target_modules": "all-linear",
        "batch_size": 4,
        "epochs": 2,
        "gpus_per_node": 2,
        "resident_fraction": 0,
        "json": out,
    }
    plan.main([*(str(word) for k, v in flags.items() for word in (f"--{k}", v)), *NO_PASSES])
    found = json.loads(out.read_text())
    assert found["pictures"] and found["examples"] == 4 * 2 * 3 * 16 * 16 * 4
    for task in found["tasks"]:
        assert (task["num_examples"], task["num_steps"], task["num_micro_batches"]) == (6, 4, 4)
        assert task["tokens"] == 5 * (2 + 1 + 2 + 1)  # of the rank with most, 5 tokens a picture
        assert (task["largest"], task["texts"]) == ([2, 5], [2, LONGEST])
    first, second = found["tasks"]
    # The second tower announces its tokens too: nothing but counts moves before atoms are frozen.
    assert first["received"]["run"] == [16] * 4
    # Two towers of two layers. A rank lacks 4 of 8 frozen atoms, and fetches them twice.
    atom = 4 * (32 + 32) + (32 + 48) + (48 + 32)
    moved = 2 * 2 * 4 * atom * 2 * 4
    assert second["received"]["gathered"] == [moved] * 4
    assert second["received"]["run"] == [moved + 16] * 4
    assert "2 x 5 + 2 x 12" in capsys.readouterr().out


def test_parameters_of_a_task_on_vit_b16():
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
    names = choose_targets(model, "all-linear").names
    linears = [model.get_submodule(name) for name in names]
    assert len(names) == 144
    assert sum(16 * (one.in_features + one.out_features) for one in linears) == 4_423_680
