"""How answers are obtained: generated freely or within labels, or chosen by likelihood."""

from moram_dist.decode.answers import Answered, answer_batch, is_generated
from moram_dist.decode.generate import generate_batch, generate_stream
from moram_dist.decode.turns import Room, can_take_turns

__all__ = [
    "Answered",
    "Room",
    "answer_batch",
    "can_take_turns",
    "generate_batch",
    "generate_stream",
    "is_generated",
]
