"""Triton kernels without a GPU: the interpreter, the compiler for sm_90, what is launched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from moram_dist import kernels
from moram_dist.atoms import shard
from moram_dist.atoms.bank import Bank
from moram_dist.atoms.kernels import launch
from moram_dist.atoms.placement import Resident
from moram_dist.atoms.recall import recall_together
from moram_dist.atoms.routing import Routing
from moram_dist.comm.collectives import AtomGroup

ROOT = Path(__file__).resolve().parents[2]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def test_kernels_serve_cuda_only():
    assert kernels.THERE
    assert not kernels.serve(torch.zeros(1))
    assert not kernels.serve(torch.zeros(1, device="meta"))


@pytest.mark.slow
def test_in_the_interpreter():
    """In a process of its own: Triton reads TRITON_INTERPRET once, when it is imported.

    The tests of recall run too, with kernels for tensors on the CPU. Left out are one that looks at
    how bfloat16 is rounded, which the interpreter does not do, and one that calls recall thousands
    of times.
    """
    words = [sys.executable, "-m", "pytest", "-p", "tests.helpers.kernels_on_cpu", "-rs"]
    words += [
        f"tests/unit/{name}.py"
        for name in ("kernel_parity", "mixture_parity", "dropout_parity", "test_recall")
    ]
    words += ["-k", "not bfloat16_routes and not gradcheck", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 150, done.stdout
    assert "skipped" not in done.stdout, done.stdout


class _NoDevice(DriverBase):
    """Lets Triton compile for a GPU that is not there."""

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        raise AssertionError("nothing is launched")

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return -1  # so that nothing compiled here is taken for a real device

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        raise AssertionError("nothing is launched")

    def get_benchmarker(self):
        raise AssertionError("nothing is launched")


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """What launching compiles, with the arguments that a launch has; nothing is launched."""
    found = []

    def compile_only(kernel, grid, *arguments, **constants):
        found.append(kernel.run(*arguments, grid=grid, warmup=True, **constants))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(driver, "_active", _NoDevice())
    monkeypatch.setattr(kernels, "launch", compile_only)
    return found


def resources(kernel, tmp_path):
    """Registers a thread, and bytes of stack and local memory, as the machine code has them."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    said = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}


def assert_fits(kernel, tmp_path):
    used = resources(kernel, tmp_path)
    threads = 32 * kernel.metadata.num_warps
    assert kernel.metadata.target.arch == 90
    assert (used["STACK"], used["LOCAL"]) == (0, 0), f"{kernel.metadata.name} spills: {used}"
    assert kernel.metadata.shared <= 48 * 1024
    assert used["REG"] * threads <= 65536, f"{kernel.metadata.name}: {used}"


@pytest.mark.slow
@pytest.mark.parametrize("num_kept", [8, 64])
@pytest.mark.parametrize("num_scores", [1, 48, 240, 1024, 2048, 4096, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_routing_compiles_without_spills(dtype, num_scores, num_kept, compiled, tmp_path):
    score_TN = torch.zeros(4, num_scores, dtype=dtype)
    launch.route(score_TN, num_kept, num_atoms=num_scores)
    assert len(compiled) == (2 if num_scores > 4096 else 1)
    whole = launch.choose(score_TN, min(num_kept, num_scores), temperature=0.03, threshold=0.2)
    assert (whole is None) == (num_scores > 4096)
    assert len(compiled) == 2
    for kernel in compiled:
        assert_fits(kernel, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "num_kept"),
    [
        (torch.bfloat16, 1),
        (torch.bfloat16, 8),
        (torch.bfloat16, 64),
        (torch.float16, 16),
        (torch.float32, 16),
        (torch.float64, 64),
    ],
)
def test_the_rest_compiles_without_spills(rows, num_kept, compiled, tmp_path):
    dtype = torch.promote_types(rows, torch.float32)
    a_TK, norm_T1, total_T2 = (torch.zeros(4, n, dtype=dtype) for n in (num_kept, 1, 2))
    row_TK = torch.zeros(4, num_kept, dtype=torch.int32)
    launch.weigh(a_TK, norm_T1, 0.03, 0.2)
    launch.sums(a_TK, a_TK, a_TK, a_TK)
    launch.score_gradient(a_TK, norm_T1, a_TK, a_TK, a_TK, a_TK, total_T2, 0.03)
    for num_features in (100, 4096):  # of multiples of 16, loads are wider
        rows_NF = torch.zeros(240, num_features, dtype=rows)
        for here_TK in (None, row_TK == 0):
            launch.mix(row_TK, here_TK, a_TK, rows_NF, rows)
            launch.products(rows_NF[:4], row_TK, here_TK, rows_NF, dtype)
            launch.pick(rows_NF.T, row_TK, here_TK, dtype)
            launch.add(row_TK, here_TK, a_TK, rows_NF)
    assert {kernel.metadata.name for kernel in compiled} == {
        "weigh", "sums", "score_gradient", "mix", "products", "pick", "add",
    }  # fmt: skip
    for kernel in compiled:
        assert_fits(kernel, tmp_path)
        if kernel.metadata.name == "mix" and rows == torch.bfloat16:
            assert "cvt.rn.bf16" in kernel.asm["ptx"]  # rounds, where the interpreter cuts


@pytest.mark.slow
def test_spills_would_be_seen(compiled, tmp_path):
    """The same kernel with few registers to live in."""
    score_TN = torch.zeros(4, 4096)
    best_TC, index_TC = torch.zeros(4, 16), torch.zeros(4, 16, dtype=torch.int32)
    given = (score_TN, None, best_TC, best_TC, index_TC, 4096, 16, 0, 1, 4096)
    settings = {"BLOCK": 4096, "PLACES": 16, "num_warps": 4, "maxnreg": 32}
    kernels.launch(launch.routing.route, (4, 1), *given, **settings)
    with pytest.raises(AssertionError, match="spills"):
        assert_fits(compiled[0], tmp_path)


FREE = {  # views, allocation, and questions about types
    "_unsafe_view", "as_strided", "detach", "empty", "empty_like", "expand", "new_empty", "permute",
    "promote_types", "select", "slice", "split", "split_with_sizes", "t", "transpose", "unbind",
    "unsqueeze", "view",
}  # fmt: skip


class _Operations(TorchDispatchMode):
    """Counts what torch would launch: operations that compute or copy something."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name not in FREE:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def operations(num_frozen, monkeypatch, *, served):
    """Of one training pass of one linear whose tensors have no data, so that a look would raise.

    16 of num_frozen + 8 atoms are kept.
    """
    here = {"dtype": torch.bfloat16, "device": "meta"}
    bank = Bank([(64, 48)], AtomGroup(), like=torch.empty(0, **here))
    bank.grow([(torch.empty(num_frozen, 64, **here), torch.empty(num_frozen, 48, **here))])
    placement, asked = Resident(bank.group), Routing(top_k=16, temperature=0.03, threshold=0.2)
    placement.grams(bank, (0,), 16)  # once a task
    x, keys, values = (
        torch.empty(rows, size, requires_grad=True, **here)
        for rows, size in ((32, 64), (8, 64), (8, 48))
    )
    with monkeypatch.context() as patch, _Operations() as seen:
        patch.setattr(torch.Tensor, "is_cuda", True)
        patch.setattr(kernels, "THERE", served)
        patch.setitem(shard.MIX_ALL, "meta", shard.MIX_ALL["cuda"])
        patch.setitem(shard.MULTIPLY_ALL, "meta", shard.MULTIPLY_ALL["cuda"])
        patch.setattr(
            kernels,
            "launch",
            lambda kernel, *_, **__: seen.count.update(["ours " + kernel.__name__]),
        )
        (out,) = recall_together(bank, placement, asked, [x], [keys], [values])
        out.backward(torch.empty_like(out))
    assert (x.grad.shape, keys.grad.shape, values.grad.shape) == ((32, 64), (8, 64), (8, 48))
    return seen.count


@pytest.mark.parametrize(
    ("num_frozen", "most", "ran"),
    [
        (40, 40, "choose weigh sums score_gradient pick add"),
        (232, 40, "choose weigh sums score_gradient pick add"),
        (4992, 55, "route weigh sums score_gradient mix products add"),
    ],
)
def test_a_pass_never_looks_at_the_device_and_launches_half(num_frozen, most, ran, monkeypatch):
    """K^T K, with 4992 atoms, adds a product and a mixture to the backward pass.

    A bf16 matrix times a float32 one is two launches more than a product of float32 copies.
    """
    plain = operations(num_frozen, monkeypatch, served=False)
    found = operations(num_frozen, monkeypatch, served=True)
    assert found.keys() - plain.keys() == {f"ours {name}" for name in ran.split()}
    assert found.total() <= most
    assert plain.total() >= 2 * found.total()


def test_a_look_would_be_seen():
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.empty(3, device="meta").sum() > 0)
