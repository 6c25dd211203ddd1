"""Per-example metrics by name. Pure Python, no torch."""

from moram_dist.metrics.metric import METRICS, Answer, score

__all__ = ["METRICS", "Answer", "score"]
