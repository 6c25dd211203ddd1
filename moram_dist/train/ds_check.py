"""Check a whole DeepSpeed file against DeepSpeed's own models, before any work.

DeepSpeed itself ignores unknown top-level keys, reads "true" as a number in some fields and as text
in others, and finds most wrong values only after ranks have connected and a model is loaded.
"""

from __future__ import annotations

import importlib.util
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moram_dist.comm.lean import import_deepspeed
from moram_dist.registry import InputError, unknown
from moram_dist.terminal import quoted, shown
from moram_dist.train.ds_rules import (
    CHOICES,
    DTYPES,
    KNOWN,
    LARGEST,
    LARGEST_BUCKET,
    MONITORS,
    NO_PART,
    NOT_HERE,
    OFF,
    RUN_FILLS,
    SWITCHES,
)

if typing.TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


def check(file: Mapping[str, Any], *, path: Path) -> None:
    """Check that DeepSpeed and this trainer accept every key and value of a DeepSpeed file.

    Imports DeepSpeed, which takes seconds. ``resolve`` checks values that must agree with the run.

    Args:
        file: from ``ds_config.read``; "auto" in a section is DeepSpeed's default.
        path: of the file, for messages.

    Raises:
        InputError: names the first wrong key or value, and says why.
    """
    import_deepspeed()
    from deepspeed.runtime import config as library

    removed = library._REMOVED_TOP_LEVEL_CONFIG_KEYS
    for key, value in file.items():
        if key in removed:
            raise InputError(f"{path}: remove {key!r}; {removed[key].split('. ')[0]}")
        if key not in KNOWN:
            raise InputError(f"{path}: {unknown('key', key, KNOWN - NOT_HERE.keys())}")
        if key in NOT_HERE and not _is_off(value):
            raise InputError(f"{path}: remove {key!r}; {NOT_HERE[key]}")
    for key, value in file.items():
        _can_be_meant(value, f"{path}: {key}")
    _scalars(file, path)
    for key, kind in _models().items():
        if key in file:
            _section(kind, file[key], f"{path}: {key}")
    _plain_sections(file, path)
    _monitors(file, path)
    _zero(file, path)
    _library_takes(file, path)


def _is_off(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("enabled") is False or not any(value.values())
    return not value


def _can_be_meant(value: Any, where: str) -> None:
    """Raises InputError for numbers that are too large and texts with control characters."""
    if isinstance(value, dict):
        for key, item in value.items():
            _can_be_meant(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            _can_be_meant(item, where)
    elif isinstance(value, str):
        if shown(value) != value:
            raise InputError(f"{where} holds a control character: {quoted(value)}")
    elif isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:  # nor NaN
        raise InputError(f"{where} must be a number of at most 2^63 - 1")


def _scalars(file: Mapping[str, Any], path: Path) -> None:
    for key in SWITCHES:
        if key in file and not isinstance(file[key], bool):
            raise InputError(f"{path}: {key} must be true or false, got {quoted(file[key])}")
    for key, values in CHOICES.items():
        if key in file and file[key] not in values:
            known = ", ".join(str(value).lower() for value in values if value)
            raise InputError(f"{path}: {key} must be one of {known}, got {quoted(file[key])}")
    steps = file.get("steps_per_print")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise InputError(
            f"{path}: steps_per_print must be a whole number from 1, got {quoted(steps)}"
        )
    factor = file.get("gradient_predivide_factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise InputError(f"{path}: gradient_predivide_factor must be > 0, got {quoted(factor)}")


def _models() -> dict[str, type[BaseModel]]:
    """DeepSpeed's models, for the sections that have one."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    monitors = {name: DeepSpeedMonitorConfig.model_fields[name].annotation for name in MONITORS}
    return {
        "bf16": DeepSpeedBF16Config,
        "zero_optimization": DeepSpeedZeroConfig,
        "comms_logger": CommsLoggerConfig,
        **typing.cast("dict[str, type[BaseModel]]", monitors),
    }


def _section(kind: type[BaseModel], values: Any, where: str) -> None:
    """Check a section with DeepSpeed's model, and for values that the model would convert."""
    from pydantic import ValidationError

    _keys(kind, values, where)
    try:
        made = kind(**values)
    except ValidationError as error:
        raise InputError(f"{where}{_first(error, '.')}") from None
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None
    _kinds(values, made, where)


def _fields(kind: type[BaseModel]) -> dict[str, Any]:
    """Fields by name and by alias."""
    fields = kind.model_fields
    return fields | {field.alias: field for field in fields.values() if field.alias}


def _keys(kind: type[BaseModel], values: Any, where: str) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{where} must be an object, got {quoted(values)}")
    fields = _fields(kind)
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"{where}: {unknown('key', key, fields)}")
        extra = fields[key].json_schema_extra or {}
        if isinstance(extra, dict) and extra.get("deprecated"):
            raise InputError(f"{where}.{key}: DeepSpeed wants {extra.get('new_param')} instead")
        if key in OFF and value not in (False, None, "auto"):
            raise InputError(f"{where}: remove {key!r}; {OFF[key]}")
        inner = _model_in(fields[key].annotation)
        if inner is not None and value not in (None, "auto"):
            _keys(inner, value, f"{where}.{key}")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    from pydantic import BaseModel

    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _kinds(given: Mapping[str, Any], made: BaseModel, where: str) -> None:
    """Check that values kept their types: "true" is not a switch, true is not a number."""
    fields = _fields(type(made))
    names = {id(field): name for name, field in type(made).model_fields.items()}
    for key, value in given.items():
        found = getattr(made, names[id(fields[key])])
        if isinstance(value, dict):
            _kinds(value, found, f"{where}.{key}")
        elif value == "auto" or value is None:
            continue
        elif isinstance(found, bool) and not isinstance(value, bool):
            raise InputError(f"{where}.{key} must be true or false, got {quoted(value)}")
        elif isinstance(found, int | float) and isinstance(value, bool | str):
            if not isinstance(found, bool):
                raise InputError(f"{where}.{key} must be a number, got {quoted(value)}")


def _plain_sections(file: Mapping[str, Any], path: Path) -> None:
    """Check sections without a DeepSpeed model: each value must have its default's type."""
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig

    tables: dict[str, dict[str, Any]] = {
        "flops_profiler": vars(DeepSpeedFlopsProfilerConfig({})) | {"output_file": ""},
        "data_types": {"grad_accum_dtype": "", "keep_in_fp32_modules": []},
        "timers": {"throughput": {}},
    }
    for name, known in tables.items():
        values = file.get(name, {})
        if not isinstance(values, dict):
            raise InputError(f"{path}: {name} must be an object, got {quoted(values)}")
        for key, value in values.items():
            if key not in known:
                raise InputError(f"{path}: {name}: {unknown('key', key, known)}")
            wanted = type(known[key])
            number = wanted is float and type(value) is int
            decides = key == "keep_in_fp32_modules" and value == "auto"
            if not (type(value) is wanted or value is None or number or decides):
                raise InputError(
                    f"{path}: {name}.{key} must be {_WORDS[wanted]}, got {quoted(value)}"
                )
    dtype = file.get("data_types", {}).get("grad_accum_dtype")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(
            f"{path}: data_types.grad_accum_dtype must be one of {', '.join(DTYPES)}, "
            f"got {quoted(dtype)}"
        )
    profiler = file.get("flops_profiler", {})
    if profiler.get("profile_step", 1) < 1:
        raise InputError(f"{path}: flops_profiler.profile_step must be >= 1")
    output = profiler.get("output_file")
    if output and not Path(output).parent.is_dir():
        raise InputError(f"{path}: flops_profiler.output_file {output}: no such folder")


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def _monitors(file: Mapping[str, Any], path: Path) -> None:
    for name, package in MONITORS.items():
        section = file.get(name, {})
        if section.get("api_key"):
            raise InputError(f"{path}: {name}: a key is a secret; give it as COMET_API_KEY")
        if section.get("enabled") and package and importlib.util.find_spec(package) is None:
            raise InputError(f"{path}: {name} needs the package {package}, which is not installed")
        if section.get("enabled") and "output_path" in section:
            _folder(Path(section["output_path"], section.get("job_name", "")), f"{path}: {name}")


def _folder(folder: Path, where: str) -> None:
    """Check that a folder exists or can be created."""
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not there.is_dir():
        raise InputError(f"{where}: {quoted(str(folder))}: {quoted(str(there))} is no folder")


def _zero(file: Mapping[str, Any], path: Path) -> None:
    """Refuse settings that only an engine would reject, or that resets do not support."""
    zero = file.get("zero_optimization", {})
    where = f"{path}: zero_optimization"
    stage = zero.get("stage", 0)
    stage = 0 if stage == "auto" else stage
    for key in ("offload_optimizer", "offload_param"):
        offload = zero.get(key)
        device = offload.get("device", "none") if isinstance(offload, dict) else "none"
        if device == "nvme":
            raise InputError(f"{where}.{key}: nvme is not supported; offload to cpu")
        if device == "cpu" and stage < (3 if key == "offload_param" else 1):
            least = 3 if key == "offload_param" else 1
            raise InputError(f"{where}.{key} needs stage {least}, and stage is {stage}")
        if device == "cpu" and file.get("zero_force_ds_cpu_optimizer", True):
            raise InputError(
                f'{where}.{key} needs "zero_force_ds_cpu_optimizer": false at the top of the file, '
                "as in ds_configs/zero3_offload.json: resets between tasks are made for torch's "
                "AdamW"
            )
        if isinstance(offload, dict) and offload.get("ratio", 1) not in (1, "auto"):
            raise InputError(f"{where}.{key}.ratio must be 1: a part needs DeepSpeed's optimizer")
    if zero.get("compute_grad_norm") is False:
        raise InputError(f"{where}: remove 'compute_grad_norm'; the run clips by the norm")
    if zero.get("zero_hpz_partition_size", 1) not in (1, "auto"):
        raise InputError(f"{where}: remove 'zero_hpz_partition_size'; {NO_PART}")
    for key in ("reduce_bucket_size", "allgather_bucket_size"):
        size = zero.get(key, 1)
        if isinstance(size, int | float) and size > LARGEST_BUCKET:
            raise InputError(f"{where}.{key} must be at most 2^36 elements, got {size:g}")
    scaled = file.get("prescale_gradients") or file.get("gradient_predivide_factor", 1) != 1
    if scaled and stage >= 2 and zero.get("reduce_scatter", True):
        raise InputError(
            f"{path}: prescale_gradients and gradient_predivide_factor do not go with stage {stage}"
        )


def _library_takes(file: Mapping[str, Any], path: Path) -> None:
    """Refuse everything else that DeepSpeed's own reader of these files rejects."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    plain = {key: value for key, value in file.items() if key not in RUN_FILLS}
    try:
        DeepSpeedConfig(_without_auto(plain) | {"train_batch_size": 1})
    # The reader indexes, calls and compares unchecked values, so it may raise nearly anything.
    except (DeepSpeedConfigError, ArithmeticError, AssertionError, AttributeError) as error:
        raise _refused(path, error) from None
    except (ImportError, LookupError, TypeError, ValueError) as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: Exception) -> InputError:
    from pydantic import ValidationError

    what = _first(error, " ") if isinstance(error, ValidationError) else f": {error!r}"
    return InputError(f"{path}: DeepSpeed refuses it{what}")


def _first(error: ValidationError, separator: str) -> str:
    """The first error that pydantic found, after the name of its field."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{separator}{field}: {first['msg'].lower()}" if field else f": {first['msg'].lower()}"


def _without_auto(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != "auto"
    }
