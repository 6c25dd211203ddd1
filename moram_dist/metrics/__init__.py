"""Per-example metrics by name. Pure Python, no torch."""

from moram_dist.metrics import choice, exact, math_answer, overlap, sari
from moram_dist.metrics.metric import METRICS, Answer, score

__all__ = ["METRICS", "Answer", "choice", "exact", "math_answer", "overlap", "sari", "score"]
