"""Texts for pictures' classes: OpenAI's published prompts for CLIP, several per data set.

Source: the list of prompts in the repository of Radford et al. 2021, arXiv:2103.00020. ``{}`` is
the place of the class name. Training uses the first text of a data set.
"""

from __future__ import annotations

PHOTO = "a photo of a {}."

_SHOWN = (
    "a photo of A {}.",
    "a painting of A {}.",
    "A plastic {}.",
    "a sculpture of A {}.",
    "a sketch of A {}.",
    "a tattoo of A {}.",
    "A toy {}.",
    "a rendition of A {}.",
    "A embroidered {}.",
    "A cartoon {}.",
    "A {} in a video game.",
    "A plushie {}.",
    "A origami {}.",
    "art of A {}.",
    "graffiti of A {}.",
    "a drawing of A {}.",
    "a doodle of A {}.",
)
_TAKEN = (
    "a photo of A {}.",
    "a blurry photo of A {}.",
    "a black and white photo of A {}.",
    "a low contrast photo of A {}.",
    "a high contrast photo of A {}.",
    "a bad photo of A {}.",
    "a good photo of A {}.",
    "a photo of A small {}.",
    "a photo of A big {}.",
)


def _both(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The texts with ``a`` in place of ``A``, then those with ``the``."""
    return tuple(text.replace("A", article) for article in ("a", "the") for text in texts)


ENSEMBLES: dict[str, tuple[str, ...]] = {
    "Aircraft": _both(("a photo of A {}, a type of aircraft.",)),
    "Caltech101": _both(_SHOWN),
    "CIFAR100": _both(_TAKEN),
    "DTD": tuple(
        f"a photo of {article} {{}} {what}."
        for article in ("a", "the")
        for what in ("texture", "pattern", "thing", "object")
    ),
    "EuroSAT": tuple(
        f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the ")
    ),
    "Flowers": ("a photo of a {}, a type of flower.",),
    "Food": ("a photo of a {}, a type of food.",),  # the list has no article; MTIL's code does
    "MNIST": ('a photo of the number: "{}".',),
    "OxfordPet": ("a photo of a {}, a type of pet.",),
    "StanfordCars": (
        "a photo of a {}, a type of car.",  # MTIL's code; the other eight are in the list
        PHOTO,
        "a photo of the {}.",
        "a photo of my {}.",
        "i love my {}!",
        "a photo of my dirty {}.",
        "a photo of my clean {}.",
        "a photo of my new {}.",
        "a photo of my old {}.",
    ),
    "SUN397": _both(("a photo of A {}.",)),
}
"""By MTIL's tasks."""

_CALTECH = """
    off-center face, centered face, leopard, motorbike, accordion, airplane, anchor, ant, barrel,
    bass, beaver, binocular, bonsai, brain, brontosaurus, buddha, butterfly, camera, cannon,
    side of a car, ceiling fan, cellphone, chair, chandelier, body of a cougar cat,
    face of a cougar cat, crab, crayfish, crocodile, head of a  crocodile, cup, dalmatian,
    dollar bill, dolphin, dragonfly, electric guitar, elephant, emu, euphonium, ewer, ferry,
    flamingo, head of a flamingo, garfield, gerenuk, gramophone, grand piano, hawksbill, headphone,
    hedgehog, helicopter, ibis, inline skate, joshua tree, kangaroo, ketch, lamp, laptop, llama,
    lobster, lotus, mandolin, mayfly, menorah, metronome, minaret, nautilus, octopus, okapi, pagoda,
    panda, pigeon, pizza, platypus, pyramid, revolver, rhino, rooster, saxophone, schooner,
    scissors, scorpion, sea horse, snoopy (cartoon beagle), soccer ball, stapler, starfish,
    stegosaurus, stop sign, strawberry, sunflower, tick, trilobite, umbrella, watch, water lilly,
    wheelchair, wild cat, windsor chair, wrench, yin and yang symbol
"""
CALTECH_NAMES = tuple(name.strip() for name in _CALTECH.split(","))
"""OpenAI's names for the folders of Caltech101, sorted, without the background's."""

EUROSAT_NAMES = (
    "annual crop land",
    "forest",
    "brushland or shrubland",
    "highway or road",
    "industrial buildings or commercial buildings",
    "pasture land",
    "permanent crop land",
    "residential buildings or homes or apartments",
    "river",
    "lake or sea",
)
"""OpenAI's names for the folders of EuroSAT, sorted."""
