"""The DeepSpeed file is checked whole, against DeepSpeed's own models, before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moram_dist.registry import InputError
from moram_dist.train.ds_check import check
from moram_dist.train.ds_config import read
from moram_dist.train.ds_rules import KNOWN, NOT_HERE, RUN_FILLS

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
PATH = Path("zero.json")


def zero(**values):
    return {"zero_optimization": {"stage": 3} | values}


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_the_files_that_ship_pass(path):
    check(read(path), path=path)


class Recording(dict):
    """Notes every key that is looked for."""

    looked_for: set[str] = set()  # noqa: RUF012

    def get(self, key, default=None):
        self.looked_for.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.looked_for.add(key)
        return super().__contains__(key)

    def keys(self):
        return self

    def __copy__(self):
        return self


def test_every_key_that_deepspeed_reads_is_allowed_or_refused_by_name():
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, DeepSpeedConfig

    DeepSpeedConfig(Recording(train_batch_size=1))
    assert {"zero_optimization", "bf16", "steps_per_print"} <= Recording.looked_for
    assert Recording.looked_for <= KNOWN | _REMOVED_TOP_LEVEL_CONFIG_KEYS.keys()


@pytest.mark.parametrize("key", sorted(KNOWN - NOT_HERE.keys() - {*RUN_FILLS}))
def test_a_typo_in_any_key_is_named(key):
    with pytest.raises(InputError, match=rf"^zero\.json: unknown key '{key}s'; did you mean '"):
        check({f"{key}s": True}, path=PATH)


@pytest.mark.parametrize("key", sorted(NOT_HERE))
def test_what_has_no_part_here_is_refused_by_name_unless_it_is_off(key):
    check({key: None if key.endswith("_type") else {}}, path=PATH)
    with pytest.raises(InputError, match=rf"^zero\.json: remove '{key}'; "):
        check({key: {"enabled": True}}, path=PATH)


OFFLOAD = {"zero_force_ds_cpu_optimizer": False}

GOOD = [
    {},
    zero(offload_optimizer={"device": "cpu"}) | OFFLOAD,
    zero(offload_param={"device": "cpu", "pin_memory": True}) | OFFLOAD,
    zero(reduce_bucket_size="auto", stage3_max_live_parameters=1e9, overlap_comm=False),
    {"communication_data_type": "bf16", "steps_per_print": 5, "wall_clock_breakdown": True},
    {"comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}},
    {"flops_profiler": {"enabled": True, "profile_step": 2, "recompute_fwd_factor": 0}},
    {"csv_monitor": {"enabled": True, "output_path": "logs"}, "tensorboard": {"enabled": False}},
    {"data_types": {"grad_accum_dtype": "fp32", "keep_in_fp32_modules": "auto"}},
    {"prescale_gradients": True, "zero_optimization": {"stage": 1}},
]


@pytest.mark.parametrize("file", GOOD, ids=json.dumps)
def test_what_works_passes(file):
    check(file, path=PATH)


BAD = [
    ({"zero_optimisation": {"stage": 3}}, "did you mean 'zero_optimization'"),
    (zero(reduce_buket_size=5), "zero_optimization: unknown key 'reduce_buket_size'; did you mean"),
    (zero(offload_optimizer={"devise": "cpu"}), r"offload_optimizer: unknown key 'devise'"),
    ({"bf16": {"enabled": "auto", "nope": 1}}, "bf16: unknown key 'nope'"),
    ({"bf16": {"enabled": "true"}}, "bf16.enabled must be true or false, got 'true'"),
    ({"bf16": True}, "bf16 must be an object, got True"),
    ({"bf16": {"bf16_optimizer_states": True}}, "remove 'bf16_optimizer_states'"),
    ({"communication_data_type": "x"}, "must be one of fp32, fp16, bf16, got 'x'"),
    ({"communication_data_type": ["bf16"]}, "must be one of"),
    *(({"steps_per_print": value}, "steps_per_print must be a") for value in (0, -1, 1.5, "1")),
    ({"wall_clock_breakdown": "false"}, "wall_clock_breakdown must be true or false"),
    ({"gradient_predivide_factor": 0}, "must be > 0"),
    ({"gradient_allreduce_op": "sum"}, "must be one of mean"),
    ({"managed_gradient_accumulation": False}, "must be one of true"),
    ({"log_level": "loud"}, "must be one of debug"),
    ({"activation_checkpointing": 5}, "remove 'activation_checkpointing'; use --gradient"),
    ({"amp": {"enabled": True}}, "remove 'amp'"),
    (zero(offload_optimizer={"device": "cpu"}), 'needs "zero_force_ds_cpu_optimizer": false'),
    (zero(offload_optimizer={"device": "nvme"}) | OFFLOAD, "nvme is not supported"),
    (zero(offload_optimizer={"device": "cpu", "ratio": 0.5}) | OFFLOAD, "ratio must be 1"),
    (zero(stage=0, offload_optimizer={"device": "cpu"}) | OFFLOAD, "needs stage 1, and stage is 0"),
    (zero(stage=2, offload_param={"device": "cpu"}) | OFFLOAD, "needs stage 3, and stage is 2"),
    (zero(offload_optimizer="cpu"), "offload_optimizer must be an object, got 'cpu'"),
    (zero(cpu_offload=True), "cpu_offload: DeepSpeed wants offload_optimizer instead"),
    (zero(mics_shard_size=2), "unknown key 'mics_shard_size'"),
    (zero(zero_quantized_weights=True), "remove 'zero_quantized_weights'"),
    (zero(reduce_bucket_size=-5), "reduce_bucket_size: input should be greater than 0"),
    (zero(reduce_bucket_size=1e18), "at most 2^36 elements"),
    (zero(reduce_bucket_size=10**400), "must be a number of at most 2^63 - 1"),
    (zero(reduce_bucket_size="5e7"), "reduce_bucket_size"),
    (zero(reduce_bucket_size=True), "reduce_bucket_size must be a number, got True"),
    (zero(reduce_bucket_size=[5]), "reduce_bucket_size"),
    (zero(overlap_comm="false"), "overlap_comm must be true or false"),
    (zero(sub_group_size=float("nan")), "sub_group_size must be a number"),
    (zero(stage=7), "stage"),
    (zero(compute_grad_norm=False), "compute_grad_norm"),
    ({"prescale_gradients": True} | zero(), "do not go with stage 3"),
    ({"zero_optimization": True}, "zero_optimization must be an object"),
    ({"data_types": {"grad_accum_dtype": "x"}}, "must be one of fp32, bf16, fp16"),
    ({"data_types": {"param_dtype": "bf16"}}, "data_types: unknown key 'param_dtype'"),
    ({"flops_profiler": {"profile_steps": 1}}, "flops_profiler: unknown key 'profile_steps'"),
    ({"flops_profiler": {"enabled": "auto"}}, "flops_profiler.enabled must be true or false"),
    ({"flops_profiler": {"output_file": "none/x"}}, "no such folder"),
    ({"comms_logger": {"prof_ops": "all"}}, "comms_logger.prof_ops"),
    ({"csv_monitor": {"enable": True}}, "csv_monitor: unknown key 'enable'"),
    ({"csv_monitor": {"job_name": "a\0b"}}, "csv_monitor.job_name holds a control character"),
    (
        {"csv_monitor": {"enabled": True, "output_path": "/dev/null", "job_name": "a"}},
        "'/dev/null' is no folder",
    ),
    ({"comet": {"api_key": "x"}}, "give it as COMET_API_KEY"),
    ({"comet": {"enabled": True}}, "needs the package comet_ml"),
    ({"timers": {"throughput": {"enabled": 5}}}, "DeepSpeed refuses it"),
]


@pytest.mark.parametrize(("file", "said"), BAD, ids=lambda part: str(part)[:60])
def test_what_is_wrong_is_one_line_that_names_the_file(file, said):
    with pytest.raises(InputError) as error:
        check(file, path=PATH)
    assert str(error.value).startswith("zero.json: ")
    assert said in str(error.value)


def test_a_key_that_is_given_twice(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 2, "stage": 3}}')
    with pytest.raises(InputError, match="key 'stage' is given twice"):
        read(path)
