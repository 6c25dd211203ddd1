"""How a process joins the other ranks of a run."""

from __future__ import annotations

import os
import resource
import socket
import warnings
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from moram_dist.comm import env, extension, links, rendezvous
from moram_dist.comm.lean import import_deepspeed
from moram_dist.registry import MachineError

SOMEWHERE = "192.0.2.1"
"""An address that no machine has (RFC 5737): the default route leads to it."""


def join(
    timeout_s: float = env.LIMIT_S,
    still: Callable[[], None] = lambda: None,
    load: Callable[[], object] = lambda: None,
) -> None:
    """Join the other ranks (gloo on a CPU, NCCL on CUDA). Announces a build of extensions.

    Args:
        timeout_s: longest wait for the other ranks in any single collective.
        still: called from time to time, here and later, while an extension is compiled.
        load: loads further extensions of CPU ranks than DeepSpeed's.

    Raises:
        InputError: the port at which the ranks meet is taken.
        MachineError: not all ranks arrived.
    """
    # DeepSpeed calls torch's collectives by names that torch 2.13 renamed.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    deepspeed = import_deepspeed()  # only ranks need it
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    _allow_many_files()
    meeting = None
    if not dist.is_initialized():
        if rendezvous.one_machine():
            _keep_gloo_inside()
        else:
            _let_gloo_out()
        meeting = rendezvous.Rendezvous(timeout_s)
        meeting.meet()
    if env.device().type == "cuda":
        torch.cuda.set_device(env.device())
    else:
        # One machine's ranks share its cores; without this each would start a thread per core.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // env.local_world_size()))
        extension.guard(still)
        if meeting:
            extension.prepare(meeting, load)
    # If LOCAL_SIZE is set, DeepSpeed allocates 69 MB of shared memory per CPU rank, for an
    # all-reduce of inference engines that is not used here, and leaks it when the rank ends.
    local_size = os.environ.pop("LOCAL_SIZE", None)
    try:
        deepspeed.init_distributed(
            "nccl" if env.device().type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s),
            auto_mpi_discovery=False,
            verbose=False,
            init_method=meeting and meeting.init_method(),
        )
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        if "time" not in str(error).lower():
            raise
        raise MachineError(
            f"rank {env.rank()} waited {timeout_s:g} s for the other ranks to connect"
        ) from None
    finally:
        if local_size is not None:
            os.environ["LOCAL_SIZE"] = local_size
    _give_deepspeed_a_group(timeout_s)


def _give_deepspeed_a_group(timeout_s: float) -> None:
    """Let DeepSpeed's own group of all ranks wait as long as the others.

    DeepSpeed would make one with the default limit, at which NCCL ends the process: 10 minutes.
    """
    from deepspeed.utils import groups

    if groups._WORLD_GROUP is None:
        groups._WORLD_GROUP = dist.new_group(timeout=timedelta(seconds=timeout_s))


def _allow_many_files() -> None:
    """Raise the limit of open files to the maximum: gloo connects each rank to every other one.

    With the usual soft limit, 1,024, that fails at about 1,000 ranks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_gloo_inside() -> None:
    """Let the ranks of one machine talk over loopback, so that no port is open to others."""
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _let_gloo_out() -> None:
    """Let ranks of several machines reach each other where a machine's name resolves to loopback.

    gloo listens at the address of the machine's name, which on Debian is 127.0.1.1 by default.
    """
    try:
        own = socket.gethostbyname(socket.gethostname())
    except OSError:
        own = rendezvous.LOOPBACK
    if rendezvous.is_loopback(own) and (name := _interface_outwards()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _interface_outwards() -> str | None:
    """The interface that leads to MASTER_ADDR or, on that machine, takes the default route."""
    import psutil  # DeepSpeed needs it, too

    for host in (os.environ["MASTER_ADDR"], SOMEWHERE):
        try:
            address = links.leads_to(host)
        except OSError:
            continue
        if not rendezvous.is_loopback(address):
            for name, own in psutil.net_if_addrs().items():
                if address in {one.address for one in own}:
                    return name
    return None
