"""Operations in C++ for atoms on a CPU, where calling many small operations costs most.

The sources are built once by torch's extension mechanism, and loaded in later processes. A machine
without a compiler or ninja computes in plain torch (``atoms.reference``), to which tests compare
each operation.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch._appdirs import user_cache_dir

from moram_dist.atoms import reference
from moram_dist.atoms.reference import pick
from moram_dist.comm import extension
from moram_dist.registry import MachineError
from moram_dist.terminal import say

__all__ = [
    "add",
    "answers",
    "load",
    "mix",
    "norms",
    "pick",
    "products",
    "recall",
    "recall_gradients",
    "route",
    "score",
    "score_gradient",
    "serve",
    "sums",
    "weigh",
]

SOURCES = [
    Path(__file__).with_name(name)
    for name in ("operations.cpp", "recalls.cpp", "rows.h", "scores.h")
]

FLAGS = [
    "-O3",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-Wno-psabi",
]
"""Not for this machine's processor alone: several machines may share the folder. No product is
fused with a sum, so that versions for all processors give the same bits."""

DTYPES = (torch.float32, torch.float64)


def serve(tensor: Tensor) -> bool:
    """Whether the operations can process a tensor."""
    return tensor.is_cpu and tensor.dtype in DTYPES and load()


@functools.cache
def load() -> bool:
    """Load the operations, and build them first if necessary; whether they are there."""
    text = b"".join(source.read_bytes() for source in SOURCES)
    text += "".join([*FLAGS, torch.__version__, platform.machine()]).encode()
    name = f"moram_{hashlib.sha256(text).hexdigest()[:16]}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or user_cache_dir("torch_extensions")
    place = Path(root) / name
    try:
        torch.ops.load_library(place / f"{name}.so")
        return True
    except OSError:  # not there, or half a file of a build that was killed
        pass
    if not (find_spec("ninja") and shutil.which(os.environ.get("CXX", "c++"))):
        return False
    from torch.utils import cpp_extension

    extension.guard(lambda: None)
    try:
        place.mkdir(parents=True, exist_ok=True)
        cpp_extension.load(
            name,
            [str(source) for source in SOURCES if source.suffix == ".cpp"],
            extra_cflags=FLAGS,
            extra_ldflags=["-fopenmp"],
            build_directory=str(place),
            is_python_module=False,
        )
    except (MachineError, OSError) as error:
        say(f"recall runs in plain torch, slower for few tokens: {error}", error=True)
        return False
    return True


def score(x_TD: Tensor, keys_ND: Tensor, out_TN: Tensor) -> None:
    """Each token times each key, into ``out_TN``, whose rows are contiguous.

    Few tokens in float32 (``torch.ops.moram.few_tokens()``) need no general product.
    """
    torch.ops.moram.score(x_TD, keys_ND, out_TN)


def route(
    score_TN: Tensor,
    num_kept: int,
    *,
    shard: int = 0,
    num_shards: int = 1,
    num_atoms: int,
    listed_TN: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """``reference.route``; a NaN counts as the lowest score."""
    if listed_TN is not None:
        return reference.route(score_TN, num_kept, num_atoms=num_atoms, listed_TN=listed_TN)
    return torch.ops.moram.route(score_TN, num_kept, shard, num_shards, num_atoms)


def norms(squares_T1: Tensor) -> Tensor:
    """``reference.norms``, rounded correctly: torch's square root on a CPU is not always."""
    return torch.ops.moram.norms(squares_T1)


def weigh(
    score_TK: Tensor, norm_T1: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.weigh``."""
    return torch.ops.moram.weigh(score_TK, norm_T1, temperature, threshold)


def sums(score_TK: Tensor, relevance_TK: Tensor, spoken_TK: Tensor, u_TK: Tensor) -> Tensor:
    """``reference.sums``."""
    return torch.ops.moram.sums(score_TK, relevance_TK, spoken_TK, u_TK)


def score_gradient(
    score_TK: Tensor,
    norm_T1: Tensor,
    relevance_TK: Tensor,
    weight_TK: Tensor,
    spoken_TK: Tensor,
    u_TK: Tensor,
    totals_T2: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """``reference.score_gradient``."""
    given = (score_TK, norm_T1, relevance_TK, weight_TK, spoken_TK, u_TK, totals_T2)
    return torch.ops.moram.score_gradient(*given, temperature)


def add(row_TK: Tensor, here_TK: Tensor | None, number_TK: Tensor, to_TN: Tensor) -> None:
    """``reference.add``, to a contiguous tensor."""
    torch.ops.moram.add(row_TK, here_TK, number_TK.to(to_TN.dtype), to_TN)


def mix(
    row_TK: Tensor,
    here_TK: Tensor | None,
    strength_TK: Tensor,
    rows_NF: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """``reference.mix``."""
    return torch.ops.moram.mix(row_TK, here_TK, strength_TK.to(dtype), rows_NF.to(dtype))


def products(
    tokens_TF: Tensor,
    row_TK: Tensor,
    here_TK: Tensor | None,
    rows_NF: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """``reference.products``, of tokens and rows of one dtype."""
    return torch.ops.moram.products(tokens_TF, row_TK, here_TK, rows_NF).to(dtype)


def answers(
    x: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    num_atoms: int,
    *,
    top_k: int,
    temperature: float,
    threshold: float,
    mix_all: int,
) -> list[Tensor]:
    """A whole recall without gradients, for linears that share an input: (..., E) for each.

    The bits are those of the operations of a general recall.

    Args:
        x: the input, (..., D).
        keys: of each linear, (rows, D).
        values: of each linear, (rows, E).
        num_atoms: N, >= 1; the first rows are atoms, the others padding.
        top_k: for this and the next two see ``routing.mixture``.
        temperature: of the softmax.
        threshold: atoms with a relevance below this are silenced.
        mix_all: ``shard.MIX_ALL`` for a CPU.
    """
    return torch.ops.moram.answers(
        x, keys, values, num_atoms, top_k, temperature, threshold, mix_all
    )


def recall(
    inputs: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    top_k: int,
    temperature: float,
    threshold: float,
    mix_all: int,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """A whole recall that gradients may follow, with the bits of a general one.

    Args:
        inputs: of each linear, (T, D).
        keys: of each linear, (N, D), N >= 1.
        values: of each linear, (N, E).
        top_k: see ``answers``, also for the next three.
        temperature: of the softmax.
        threshold: atoms with a relevance below this are silenced.
        mix_all: ``shard.MIX_ALL`` for a CPU.

    Returns:
        Outputs (T, E) of each linear; of all linears' tokens the scores (B, N), the atoms that
        answer (B, K) in int32, and the norms of scores (B, 1).
    """
    return torch.ops.moram.recall(inputs, keys, values, top_k, temperature, threshold, mix_all)


def recall_gradients(
    inputs: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    grads: Sequence[Tensor],
    score_BN: Tensor,
    index_BK: Tensor,
    norm_B1: Tensor,
    *,
    first: int,
    temperature: float,
    threshold: float,
    multiply_all: int,
    wants_inputs: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of ``recall``, with the bits of a general backward pass.

    Args:
        inputs: as in ``recall``, like the next two.
        keys: of frozen atoms and, from row ``first`` on, of active ones.
        values: like the keys.
        grads: of each linear's output, (T, E).
        score_BN: from ``recall``, like the next two.
        index_BK: atoms that answer.
        norm_B1: norms of scores.
        first: N - R.
        temperature: as in ``recall``, like the threshold.
        threshold: atoms with a relevance below this were silenced.
        multiply_all: ``shard.MULTIPLY_ALL`` for a CPU.
        wants_inputs: whether to compute gradients of inputs; the first list is empty if not.

    Returns:
        Of each linear the gradient of the input, of the R active keys, and of their values.
    """
    return torch.ops.moram.recall_gradients(
        inputs,
        keys,
        values,
        grads,
        score_BN,
        index_BK,
        norm_B1,
        first,
        temperature,
        threshold,
        multiply_all,
        wants_inputs,
    )
