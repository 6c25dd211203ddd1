"""Ranks: how a process determines its rank, joins the other ranks and leaves them.

Without a launcher there is one rank.
"""

from __future__ import annotations

import os
import resource
import socket
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moram_dist.registry import MachineError


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


def choose_accelerator() -> None:
    """Call before DeepSpeed is imported: otherwise, on a CPU, it warns that it found no GPU."""
    if device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def join(timeout_s: float = 1800.0, still: Callable[[], None] = lambda: None) -> None:
    """Join the other ranks (gloo on a CPU, NCCL on CUDA). Announces a build of extensions.

    Args:
        timeout_s: longest wait for the other ranks in any single collective.
        still: called from time to time, here and later, while an extension is compiled.

    Raises:
        InputError: the port at which the ranks meet is taken.
        MachineError: not all ranks arrived.
    """
    from moram_dist.comm import extension, rendezvous

    choose_accelerator()
    # DeepSpeed calls torch's collectives by names that torch 2.13 renamed.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    import deepspeed  # slow to import, and only ranks need it

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    allow_many_files()
    meeting = None
    if not dist.is_initialized():
        if rendezvous.one_machine():
            keep_gloo_inside()
        meeting = rendezvous.Rendezvous(timeout_s)
        meeting.meet()
    if device().type == "cuda":
        torch.cuda.set_device(device())
    else:
        # One machine's ranks share its cores; without this each would start a thread per core.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world_size()))
        extension.guard(still)
        if meeting:
            extension.prepare(meeting)
    # If LOCAL_SIZE is set, DeepSpeed allocates 69 MB of shared memory per CPU rank, for an
    # all-reduce of inference engines that is not used here, and leaks it when the rank ends.
    local_size = os.environ.pop("LOCAL_SIZE", None)
    try:
        deepspeed.init_distributed(
            "nccl" if device().type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s),
            auto_mpi_discovery=False,
            verbose=False,
            init_method=meeting and meeting.init_method(),
        )
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        if "time" not in str(error).lower():
            raise
        raise MachineError(
            f"rank {rank()} waited {timeout_s:g} s for the other ranks to connect"
        ) from None
    finally:
        if local_size is not None:
            os.environ["LOCAL_SIZE"] = local_size


def allow_many_files() -> None:
    """Raise the limit of open files to the maximum: gloo connects each rank to every other one.

    With the usual soft limit, 1,024, that fails at about 1,000 ranks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_gloo_inside() -> None:
    """Let the ranks of one machine talk over loopback, so that no port is open to others."""
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


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
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
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


def control_group() -> Any:
    """A gloo group of all ranks, for agreements that need not wait for the device.

    All ranks must call it together. None, which means the default group, if that is gloo already.
    """
    if world_size() == 1 or dist.get_backend() == "gloo":
        return None
    return dist.new_group(backend="gloo")


def any_true(value: bool, control: Any = None) -> bool:
    """Whether ``value`` is true on some rank. ``control`` is a ``control_group``."""
    if world_size() == 1:
        return value
    on = device() if control is None else torch.device("cpu")
    flag = torch.tensor([int(value)], dtype=torch.int32, device=on)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=control)
    return bool(flag.item())


def sum_(tensor: Tensor) -> None:
    """Sum over ranks, in place; the tensor is on ``device()``."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def free_port() -> int:
    """A TCP port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
