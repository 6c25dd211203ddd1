"""Ways to an answer: generation, free or within labels, and the likelihood of labels.

Functions here do what a causal model needs unless they are told otherwise; which of them a model
needs is its family's business (``moram_dist.families``).
"""

from moram_dist.decode.continuous_batching import Room, can_batch_continuously
from moram_dist.decode.labels import LabelScores

__all__ = ["LabelScores", "Room", "can_batch_continuously"]
