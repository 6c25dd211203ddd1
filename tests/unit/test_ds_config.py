"""DeepSpeed files: "auto" is filled in, and what disagrees with the run is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from moram_dist.registry import InputError
from moram_dist.train.ds_config import read, resolve

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
RUN = {
    "path": Path("zero.json"),
    "batch_size": 22,
    "world_size": 4,
    "clip": 0.5,
    "bf16": True,
}
SIZES = {
    "train_batch_size": 24,
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 6,
    "gradient_clipping": 0.5,
}


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.name)
@pytest.mark.parametrize("bf16", [False, True])
def test_the_files_that_ship(path, bf16):
    file = read(path)
    found = resolve(file, **(RUN | {"path": path, "bf16": bf16}))
    assert {key: found[key] for key in SIZES} == SIZES
    assert found["bf16"]["enabled"] is bf16
    assert '"auto"' not in json.dumps(found)
    assert found["zero_allow_untested_optimizer"] is True
    # DeepSpeed's own AdamW would not be the one that start_fresh is tested with.
    assert found.get("zero_force_ds_cpu_optimizer", False) is False


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*offload*.json")), ids=lambda p: p.name)
def test_offloading_keeps_our_optimizer(path):
    assert read(path)["zero_force_ds_cpu_optimizer"] is False


def test_an_empty_file_is_filled_in():
    found = resolve({}, **RUN)
    assert found["zero_optimization"]["stage"] == 0
    assert {key: found[key] for key in SIZES} == SIZES


def test_deepspeed_times_nothing_unless_asked():
    """Its timer of samples per second waits for the device in each pass."""
    assert resolve({}, **RUN)["timers"] == {"throughput": {"enabled": False}}
    asked = {"timers": {"throughput": {"enabled": True, "synchronized": False}}}
    assert resolve(asked, **RUN)["timers"] == asked["timers"]


def test_the_file_is_not_changed():
    file = read(DS_CONFIGS / "zero3.json")
    before = copy.deepcopy(file)
    resolve(file, **RUN)
    assert file == before


@pytest.mark.parametrize(("key", "value"), SIZES.items())
def test_equal_numbers_agree_and_others_are_refused(key, value):
    assert resolve({key: value}, **RUN)[key] == value
    with pytest.raises(InputError, match=rf"^zero\.json: {key} is 7, .* make it {value}; write"):
        resolve({key: 7}, **RUN)


@pytest.mark.parametrize("bf16", [False, True])
def test_precision_must_agree(bf16):
    run = RUN | {"bf16": bf16}
    assert resolve({"bf16": {"enabled": bf16}}, **run)["bf16"]["enabled"] is bf16
    with pytest.raises(InputError, match=rf"bf16\.enabled is {not bf16}.*makes it {bf16}".lower()):
        try:
            resolve({"bf16": {"enabled": not bf16}}, **run)
        except InputError as error:
            raise InputError(str(error).lower()) from None


@pytest.mark.parametrize(
    ("key", "section", "flag"),
    [
        ("optimizer", {"type": "Adam"}, "--learning_rate"),
        ("scheduler", {"type": "WarmupLR"}, "--schedule"),
        ("fp16", {"enabled": True}, "--dtype"),
        ("fp16", {"enabled": "auto"}, "--dtype"),
    ],
)
def test_what_the_run_decides(key, section, flag):
    with pytest.raises(InputError, match=rf"^zero\.json: remove '{key}'; it is set by {flag}"):
        resolve({key: section}, **RUN)


def test_a_section_that_is_off_may_stay():
    assert resolve({"fp16": {"enabled": False}}, **RUN)["fp16"] == {"enabled": False}


@pytest.mark.parametrize("stage", [4, -1, "3", "auto", None])
def test_unknown_stages(stage):
    with pytest.raises(InputError, match="stage must be 0, 1, 2 or 3"):
        resolve({"zero_optimization": {"stage": stage}}, **RUN)


@pytest.mark.parametrize(
    ("content", "said"),
    [("[1]", "expected a JSON object"), ("{,}", "line 1, column 2: malformed JSON")],
)
def test_files_that_are_no_object(tmp_path, content, said):
    path = tmp_path / "zero.json"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        read(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"zero\.json: no such file"):
        read(tmp_path / "zero.json")
