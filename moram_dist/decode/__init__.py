"""Get answers from a model: free or constrained generation, and the likelihood of labels.

By default the functions here serve causal models; each model family chooses the ones that it needs
(``moram_dist.families``).
"""

from moram_dist.decode.continuous_batching import Room, can_batch_continuously
from moram_dist.decode.labels import LabelScores

__all__ = ["LabelScores", "Room", "can_batch_continuously"]
