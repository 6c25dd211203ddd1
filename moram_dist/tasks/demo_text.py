"""The vocabulary and the sentences of the built-in demo.

A sentence fills six slots, such as "The nurse gladly moved the tiny hammer near the harbour at
dawn." The words of each slot form four groups, and a group's name is the label that a question
about the slot asks for: a hammer is a ``tool``. The demo's tasks ask about five of the slots; its
base model was trained on the same sentences, but on other questions
(``tools/train_demo_base.py``).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SLOTS: dict[str, dict[str, tuple[str, ...]]] = {
    "topic": {
        "food": ("apple", "bread", "cheese", "carrot", "cake", "soup"),
        "animal": ("horse", "rabbit", "puppy", "kitten", "goose", "turtle"),
        "tool": ("hammer", "drill", "shovel", "wrench", "pliers", "ladder"),
        "cloth": ("jacket", "scarf", "glove", "shirt", "sock", "hat"),
    },
    "mood": {
        "glad": ("gladly", "happily", "merrily", "joyfully", "proudly", "brightly"),
        "sad": ("sadly", "glumly", "tearfully", "gloomily", "wearily", "woefully"),
        "angry": ("angrily", "crossly", "bitterly", "fiercely", "madly", "rudely"),
        "calm": ("calmly", "quietly", "gently", "softly", "slowly", "mildly"),
    },
    "place": {
        "home": ("kitchen", "bedroom", "attic", "cellar", "hallway", "garage"),
        "town": ("market", "station", "library", "bank", "museum", "school"),
        "wild": ("forest", "meadow", "desert", "valley", "cave", "swamp"),
        "coast": ("harbour", "beach", "island", "pier", "reef", "cliff"),
    },
    "time": {
        "morning": ("dawn", "sunrise", "breakfast", "daybreak", "six", "seven"),
        "noon": ("midday", "lunch", "twelve", "luncheon", "eleven", "siesta"),
        "evening": ("dusk", "sunset", "supper", "twilight", "eight", "nine"),
        "night": ("midnight", "bedtime", "moonrise", "starlight", "curfew", "slumber"),
    },
    "job": {
        "health": ("nurse", "doctor", "surgeon", "dentist", "medic", "vet"),
        "study": ("teacher", "pupil", "tutor", "professor", "student", "scholar"),
        "music": ("singer", "drummer", "pianist", "fiddler", "composer", "piper"),
        "farm": ("farmer", "shepherd", "gardener", "miller", "picker", "milkmaid"),
    },
    "look": {
        "small": ("tiny", "little", "short", "mini", "slim", "narrow"),
        "large": ("big", "huge", "giant", "vast", "tall", "grand"),
        "old": ("ancient", "aged", "antique", "worn", "rusty", "dusty"),
        "new": ("fresh", "modern", "shiny", "clean", "recent", "unused"),
    },
}
"""Slot -> label -> its words. A word is in one group of one slot only."""

VERBS = ("moved", "found", "drew", "bought", "sold", "kept", "took", "left", "saw", "hid")

TEMPLATES = (
    "The {job} {mood} {verb} the {look} {topic} near the {place} at {time}.",
    "At {time} the {job} {mood} {verb} the {look} {topic} near the {place}.",
    "Near the {place} the {job} {mood} {verb} the {look} {topic} at {time}.",
)


@dataclass(frozen=True)
class Sentence:
    """A sentence with the word and the label behind each of its slots."""

    text: str
    words: dict[str, str]
    labels: dict[str, str]


def make_sentence(rng: random.Random, **wanted: str) -> Sentence:
    """Draw a sentence; ``wanted`` fixes the label of a slot, as in ``topic="tool"``."""
    labels = {slot: wanted.get(slot) or rng.choice(list(groups)) for slot, groups in SLOTS.items()}
    words = {slot: rng.choice(SLOTS[slot][label]) for slot, label in labels.items()}
    text = rng.choice(TEMPLATES).format(verb=rng.choice(VERBS), **words)
    return Sentence(text=text, words=words, labels=labels)


def question(instruction: str, text: str, cue: str) -> str:
    """The layout of all questions: the instruction, the sentence, and a cue before the answer."""
    return f"{instruction}\nText: {text}\n{cue}:"
