"""One LoRA per task, and a closed-form router that selects the one that answers a prompt."""

from __future__ import annotations

from moram_dist.methods.method import METHODS
from moram_dist.methods.single_task import SingleTask


@METHODS.register("any_ssr")
class AnySsr(SingleTask):
    """``single_task`` as a continual learner: the ridge recogniser selects the adapter.

    Learned adapters never change, so all forgetting comes from errors of the recogniser. Its sums
    are updated task by task and give the same result as all tasks at once.

    In the paper the router reads a random expansion of the hidden states after the base's first
    layers, and only later layers have LoRA. Here it reads one of the prompt's mean input embedding,
    like every recogniser, and all target linears have LoRA.

    Source: Any-SSR, Tong et al. 2025, arXiv:2503.13575.
    """

    eval_rows = None
    recall = "prefix"
    recogniser = "ridge"
