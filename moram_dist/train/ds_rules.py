"""The keys of a DeepSpeed file that this trainer accepts or refuses, and why."""

from __future__ import annotations

import sys

_OWN_STATE = "the run saves its own state (--save_every)"
_ONLY_ZERO = "models are sharded by ZeRO alone here"
_EXAMPLES = "the run deals out its examples itself"
NO_PART = "this trainer does not use it"

NOT_HERE = {
    "activation_checkpointing": "use --gradient_checkpointing true",
    "aio": "nothing is offloaded to NVMe here",
    "autotuning": NO_PART,
    "bfloat16": 'write "bf16"',
    "checkpoint": _OWN_STATE,
    "compile": NO_PART,
    "data_efficiency": _EXAMPLES,
    "dataloader_drop_last": _EXAMPLES,
    "datastates_ckpt": _OWN_STATE,
    "expert_parallel": _ONLY_ZERO,
    "hybrid_engine": NO_PART,
    "pipeline": _ONLY_ZERO,
    "seq_parallel_communication_data_type": _ONLY_ZERO,
    "sequence_parallel_size": _ONLY_ZERO,
    "tensor_parallel": _ONLY_ZERO,
    "torch_autocast": "--dtype decides the precision (fp32 or bf16)",
    "use_data_before_expert_parallelism": _ONLY_ZERO,
    "vocabulary_size": "the model's own is taken",
    "weight_quantization": NO_PART,
}
"""Keys of DeepSpeed that have no effect here or would change a setting of the run, and why."""

RUN_FILLS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
)
"""Keys whose values ``ds_config.resolve`` checks."""

SWITCHES = (
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "memory_breakdown",
    "prescale_gradients",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)

CHOICES: dict[str, tuple[str | bool | None, ...]] = {
    "communication_data_type": ("fp32", "fp16", "bf16", None),
    "gradient_allreduce_op": ("mean",),
    "log_level": ("debug", "info", "warning", "error", "critical", None),
    "managed_gradient_accumulation": (True,),  # the trainer marks the end of a step
}
NUMBERS = ("steps_per_print", "gradient_predivide_factor")
MONITORS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml", "csv_monitor": ""}
"""DeepSpeed's monitors, each with the package that it needs."""

SECTIONS = ("bf16", "zero_optimization", "comms_logger", "timers", *MONITORS)
KNOWN = frozenset(
    {*NOT_HERE, *RUN_FILLS, *SWITCHES, *CHOICES, *NUMBERS, *SECTIONS, "data_types"}
    | {"flops_profiler"}
)

DTYPES = ("fp32", "bf16", "fp16")
LARGEST = sys.maxsize
LARGEST_BUCKET = 2**36
"""In elements. DeepSpeed allocates whole buckets, so a larger number must be a mistake."""

OFF = {
    "bf16_master_weights_and_grads": "masters are in fp32 here",
    "bf16_optimizer_states": "moments are in fp32 here",
    "elastic_checkpoint": _OWN_STATE,
    "leaf_module": "layers with atoms are gathered one by one",
    "legacy_stage1": "DeepSpeed has it no more",
    "zenflow": "resets between tasks are not made for it",
    "super_offload": "it needs DeepSpeed's own optimizer",
    "fast_init": "nothing is offloaded to NVMe here",
    "zero_quantized_weights": "weights stay as --dtype says",
    "zero_quantized_nontrainable_weights": "weights stay as --dtype says",
    "zero_quantized_gradients": "gradients stay as --dtype says",
}
"""Keys of sections that must be off, and why."""
