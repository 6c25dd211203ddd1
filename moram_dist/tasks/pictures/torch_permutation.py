"""The random order that ``torch.randperm`` gives, without torch.

MTIL's splits of three data sets are defined by it. On a CPU, torch shuffles with the 32-bit
Mersenne Twister from the lowest place up. Python has the same generator, but seeds it in another
way.
"""

from __future__ import annotations

import random

_WORDS = 624


def torch_permutation(size: int, seed: int) -> list[int]:
    """The numbers below ``size`` in the order of ``torch.randperm`` with a generator of this seed.

    Args:
        size: below 2**32 / 20, from where torch draws 64 bits.
        seed: below 2**32.
    """
    words = [seed]
    for index in range(1, _WORDS):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + index) % 2**32)
    generator = random.Random()
    generator.setstate((3, (*words, _WORDS), None))
    order = list(range(size))
    for place in range(size - 1):
        other = place + generator.getrandbits(32) % (size - place)
        order[place], order[other] = order[other], order[place]
    return order
