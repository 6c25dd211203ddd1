"""A LoRA as atoms of MoRAM, and back.

A memory answers with its ``top_k`` best atoms, weighted by a softmax; a LoRA is the sum of all its
terms. With R atoms that all weigh the same 1 / R, values R times as large give the LoRA. So:

- ``top_k`` is R, and the temperature so high that weights are equal to 2e-6; no threshold.
- Atoms come in pairs (k, v) and (-k, -v), which add the same. A score k x is positive for one of
  them, so the R best of 2 R atoms are one of each pair, and the sum is exact. Otherwise a LoRA
  would compete by the signs of its singular vectors, which are arbitrary.
- B A = U S V is factored as (U S^1/2 C^T) (C S^1/2 V), where the R columns of C are orthonormal
  cosines. Without C, one atom has most of a LoRA, and the best atoms of several LoRAs are the first
  of each. With it all R atoms have a like share, so the LoRA whose inputs a token is most like
  answers it, with most of its atoms. The number of atoms does not depend on the rank.
- Keys have a mean square length of 1, so that no LoRA answers because it is large.

docs/using.md compares these choices. Shape letters: R pairs of atoms, D inputs, E outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from moram_dist.adapters.lora import Terms
from moram_dist.methods.moram import Moram, MoramConfig
from moram_dist.methods.restore import config_of, linears_of
from moram_dist.use.lora import Lora
from moram_dist.use.source import MemorySource

SAME_WEIGHTS = 1e6
"""A temperature: relevance is at most 1, so weights differ by 2e-6 of themselves."""


def settings_for(rank: int, linears: str) -> MoramConfig:
    """Settings of a memory of LoRAs of at most this rank, on ``linears`` (``target_modules``)."""
    return MoramConfig(
        method="moram",
        target_modules=linears,
        atoms_per_task=2 * rank,
        alpha=2.0 * rank,  # frozen values are used as they are
        dropout=0.0,
        top_k=rank,
        temperature=SAME_WEIGHTS,
        threshold=0.0,
    )


def atoms_of(terms: Terms, size: int) -> Terms:
    """Keys (2 R, D) and values (2 R, E) that answer like ``x A^T B``.

    Args:
        terms: A and B of one linear.
        size: R, at least the rank.
    """
    A, B = (term.double() for term in terms)
    inputs, small_A = torch.linalg.qr(A.T)  # so that the decomposed matrix is as small as the rank
    outputs, small_B = torch.linalg.qr(B.T)
    left, strengths, right = torch.linalg.svd(small_B @ small_A.T, full_matrices=False)
    mix = cosines(size)[:, : len(strengths)] * strengths.sqrt()
    length = math.sqrt(size / strengths.sum()) if strengths.any() else 1.0
    keys = (mix @ (inputs @ right.T).T * length).float()
    values = (mix @ (outputs @ left).T * (size / length)).float()
    return torch.cat([keys, -keys]), torch.cat([values, -values])


def terms_of(atoms: Terms) -> Terms:
    """A and B (R, .) of the LoRA that ``atoms_of`` was given, but R instead of its rank."""
    keys, values = atoms
    size = len(keys) // 2
    return keys[:size], values[:size] / size


def imported_lora(source: MemorySource, upto: int, model: nn.Module) -> Lora:
    """The LoRA that the newest of the first ``upto`` tasks was made from.

    Not what the memory does with it, if there are other tasks. Linears that it left alone are left
    out.

    Raises:
        InputError: a file is damaged.
    """
    config = config_of(source.manifest, source.path)
    method = Moram(config, seed=0)
    stored = source.manifest.tasks[upto - 1]
    linears = linears_of(model, source.manifest, source.path)
    source.files.check(stored, method.shapes(upto - 1, linears))
    tensors = source.files.read(stored)
    atoms = {name: (tensors[f"{name}.keys"], tensors[f"{name}.values"]) for name in linears}
    terms = {name: terms_of(pair) for name, pair in atoms.items() if pair[1].any()}
    return Lora(terms=terms, alpha=float(method.config.top_k))


def cosines(size: int) -> Tensor:
    """An orthogonal matrix whose first column is constant: the discrete cosine transform."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * torch.outer(place + 0.5, place)) * math.sqrt(2 / size)
    matrix[:, 0] /= math.sqrt(2)
    return matrix
