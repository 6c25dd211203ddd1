"""A LoRA a task, and a closed-form router that says which of them answers a prompt."""

from __future__ import annotations

from moram_dist.methods.method import METHODS
from moram_dist.methods.single_task import SingleTask


@METHODS.register("any_ssr")
class AnySsr(SingleTask):
    """``single_task`` as a continual learner: the ridge recogniser chooses the adapter.

    Nothing of a learned task changes, so what is forgotten is what the recogniser mistakes. Its
    sums are updated task by task and give the same answer as all tasks at once.

    In the source the router sees a random expansion of the hidden states after the base's first
    layers, and LoRA is in the layers after those. Here it sees one of the prompt's mean input
    embedding, as every recogniser does, and LoRA is in all target linears.

    Source: Any-SSR, Tong et al. 2025, arXiv:2503.13575.
    """

    eval_rows = None
    recall = "prefix"
    recogniser = "ridge"
