"""How answers are obtained: generated freely or within labels, or chosen by likelihood."""

from moram_dist.decode.answers import Answered, answer_batch
from moram_dist.decode.generate import generate_batch

__all__ = ["Answered", "answer_batch", "generate_batch"]
