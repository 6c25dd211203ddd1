"""How answers are obtained: generated freely or within labels, or chosen by likelihood."""

from moram_dist.decode.answers import Answered, answer_batch, is_generated
from moram_dist.decode.continuous_batching import Room, can_batch_continuously
from moram_dist.decode.generate import generate_batch, generate_stream

__all__ = [
    "Answered",
    "Room",
    "answer_batch",
    "can_batch_continuously",
    "generate_batch",
    "generate_stream",
    "is_generated",
]
