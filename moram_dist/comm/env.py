"""Ranks: how a process determines its rank, joins the other ranks and leaves them.

Without a launcher there is one rank.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moram_dist.registry import InputError

LIMIT_S = 1800.0
"""Longest wait for other ranks in a collective, unless the caller gives another."""


def rank() -> int:
    """Rank of this process, from 0."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Number of processes on this machine, according to torchrun or else DeepSpeed's launcher."""
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
    return int(next((os.environ[n] for n in names if n in os.environ), world_size()))


def is_main() -> bool:
    """Whether this process prints, writes files and talks to the tracker."""
    return rank() == 0


def device() -> torch.device:
    """The device on which this rank computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def sent(tensor: Tensor, to: torch.device) -> Tensor:
    """A tensor of the host on a device; the host does not wait until it has arrived."""
    if to.type != "cuda":
        return tensor.to(to)
    return tensor.pin_memory().to(to, non_blocking=True)


def memory_bytes() -> int:
    """Memory per rank: the device's, or an equal part of the host's; the minimum over ranks."""
    if device().type == "cuda":
        own = torch.cuda.get_device_properties(device()).total_memory
    else:
        own = host_memory_bytes() // local_world_size()
    return min(gather_objects(own))


def host_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_launcher() -> None:
    """Refuse to start if each of srun's processes would train a run of its own.

    Raises:
        InputError: there are several, and no launcher gave them ranks.
    """
    count = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" not in os.environ and count != "1":
        raise InputError(
            f"srun started {count} processes, none of which knows its rank; moram submit starts "
            "ranks on a cluster"
        )


def make_deterministic() -> None:
    """Use only operations that give the same bits each time. Call before any work on a GPU.

    An operation that has no such form raises RuntimeError when it is called.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True)
    # Else torch also fills new tensors with NaN, which finds bugs and takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def from_main(value: Any) -> Any:
    """The main rank's ``value``, on every rank."""
    return from_rank(0, value)


def from_rank(source: int, value: Any) -> Any:
    """The ``value`` of rank ``source``, on every rank."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=source)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's ``value``, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, value)
    return out


def all_true(value: bool) -> bool:
    """Whether ``value`` is true on every rank."""
    return not any_true(not value)


def all_sum(values: list[float]) -> list[float]:
    """Element-wise sum over ranks, in float64."""
    total = torch.tensor(values, dtype=torch.float64, device=device())
    if world_size() > 1:
        dist.all_reduce(total)
    return total.tolist()


def control_group(limit_s: float = LIMIT_S) -> Any:
    """A gloo group of all ranks, for agreements that need not wait for the device.

    All ranks must call it together. None, which means the default group, if that is gloo already.

    Args:
        limit_s: longest wait in a collective; a new group does not take over the world's.
    """
    if world_size() == 1 or dist.get_backend() == "gloo":
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=limit_s))


def any_true(value: bool) -> bool:
    """Whether ``value`` is true on some rank."""
    if world_size() == 1:
        return value
    flag = torch.tensor([int(value)], dtype=torch.int32, device=device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def sum_(tensor: Tensor) -> None:
    """Sum over ranks, in place; the tensor is on ``device()``."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def all_gather(tensor: Tensor) -> Tensor:
    """Every rank's tensor, in rank order, (P, ...); all have one shape and are on ``device()``."""
    if world_size() == 1:
        return tensor[None]
    out = tensor.new_empty(world_size(), *tensor.shape)
    dist.all_gather([*out], tensor.contiguous())
    return out


def free_port() -> int:
    """A TCP port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
