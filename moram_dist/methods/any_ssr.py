"""A LoRA of its own for each task, and a closed-form router that chooses one by the prompt."""

from __future__ import annotations

from moram_dist.methods.method import METHODS
from moram_dist.methods.single_task import SingleTask


@METHODS.register("any_ssr")
class AnySsr(SingleTask):
    """``single_task`` whose adapter is chosen for each prompt by the ``ridge`` recogniser.

    The source's router reads hidden states of frozen lower layers, and its LoRAs are in the upper
    ones; here it reads the mean input embedding, and all target modules are adapted.

    Source: Any-SSR (analytic subspace routing), ICCV 2025. Solved recursively there, and from sums
    here, which is the same.
    """

    eval_rows = None
