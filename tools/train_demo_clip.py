"""Train the CLIP of the demo of pictures and its tokenizer from scratch, on drawn pictures.

    python tools/train_demo_clip.py [--out moram_dist/models/demo_clip] [--steps 1200]

One seeded run on one CPU core takes about five minutes.

The pictures are drawn as the demo's, from other seeds, and the base sees only some classes: six of
eight shapes, five of eight colours, three of six kinds of stripes and three of eight digits. Of
dots it learns few and many, not their number. So before training it knows some tasks in part and
others hardly, and nothing of a class that it has not seen.

Weights are a function of the seed and the tokenizer. The library that trains tokenizers numbers
tokens in an order of chance, so the tokenizer that ships is kept; one is trained only where the
folder of ``--tokenizer`` has none.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from moram_dist.data import drawing
from moram_dist.data.pictures import Pixels
from moram_dist.tasks.demo_pictures import SUBJECTS

SHIPPED = Path("moram_dist/models/demo_clip")
SEED = 0
BATCH = 128
LEARNING_RATE = 1e-3
WARMUP_STEPS = 100
VOCABULARY = 512
"""Most tokens; by then each word of the texts is one."""
POSITIONS = 16
PIXELS = Pixels(size=32, edge=32)
START, END = "<|startoftext|>", "<|endoftext|>"

SEEN = {
    "shapes": ("circle", "square", "triangle", "star", "cross", "ring"),
    "stripes": ("horizontal", "vertical", "crossed"),
    "colours": ("red", "green", "blue", "yellow", "purple"),
    "digits": ("one", "two", "three"),
    "dots": ("two", "three", "five", "six"),
}
"""The classes that are drawn, by subject."""

FEW = ("two", "three")


@dataclass(frozen=True)
class Scene:
    """A picture, a text for it, and what holds for the picture and is said by the text."""

    pixels: np.ndarray
    text: str
    holds: frozenset[str]
    said: frozenset[str]


def scene(rng: Random) -> Scene:
    """Draw a picture of the mixture that the base is trained on, and choose its text."""
    subject = rng.choices(list(SEEN), weights=(4, 2, 2, 2, 1))[0]
    label = rng.choice(SEEN[subject])
    colour = rng.choice(SEEN["colours"])
    if subject == "shapes":
        picture = drawing.shape(label, rng, colour)
        forms = {
            "a {label}": [label],
            "a drawing of a {label}": [label],
            "a {colour} {label}": [label, colour],
            "a {label} in {colour}": [label, colour],
            "something {colour}": [colour],
        }
        holds = [label, colour]
    else:
        picture = drawing.DRAW[subject](label, rng)
        many = "few" if label in FEW else "many"
        texts = {
            "stripes": ("{label} stripes", "{label} lines"),
            "colours": ("something {label}", "{label} paint", "blots of {label}"),
            "digits": ("the digit {label}", "the number {label}"),
            "dots": ("{many} dots", "a picture of {many} dots"),
        }[subject]
        # A colour is one thing in all subjects; a number is not.
        said = (
            label if subject == "colours" else f"{subject} {many if subject == 'dots' else label}"
        )
        forms = {text: [said] for text in texts}
        holds = [said]
    text, said_by_text = rng.choice(list(forms.items()))
    many = "few" if label in FEW else "many"
    dot = rng.choice(("", "."))
    return Scene(
        pixels=PIXELS.for_training(picture, np.random.default_rng(rng.randrange(2**32))),
        text=text.format(label=label, colour=colour, many=many) + dot,
        holds=frozenset(holds),
        said=frozenset(said_by_text),
    )


def train_tokenizer(rng: Random) -> CLIPTokenizer:
    """CLIP's byte pair encoding, in which the words of the base and of the demo are one token."""
    texts = [scene(rng).text for _ in range(2000)]
    for subject in SUBJECTS.values():
        texts += [subject.text.format(label) for label in subject.classes] * 50
    empty = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[])
    return empty.train_new_from_iterator(texts, VOCABULARY, show_progress=False)


def new_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Three layers for pictures and two for texts, about 0.7 M parameters."""
    tower = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "projection_dim": 64,
    }
    text = {
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    vision = {"num_hidden_layers": 3, "image_size": PIXELS.size, "patch_size": 8}
    config = CLIPConfig(
        text_config={**tower, **text}, vision_config={**tower, **vision}, projection_dim=64
    )
    return CLIPModel(config)


def contrastive_loss(logits: Tensor, scenes: list[Scene]) -> Tensor:
    """Of finding texts and pictures; each text counts for every picture that it is true of."""
    true = torch.tensor([[float(text.said <= one.holds) for text in scenes] for one in scenes])
    texts = F.cross_entropy(logits, true / true.sum(1, keepdim=True))
    pictures = F.cross_entropy(logits.T, (true / true.sum(0)).T)
    return (texts + pictures) / 2


def train_model(steps: int, tokenizer: CLIPTokenizer) -> CLIPModel:
    """AdamW with a linear warm-up and a cosine to zero."""
    torch.manual_seed(SEED)
    rng = Random(f"demo clip/{SEED}")
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP_STEPS, 1, WARMUP_STEPS)
    down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - WARMUP_STEPS)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, down], [WARMUP_STEPS])
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps")
    start, recent = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        scenes = [scene(rng) for _ in range(BATCH)]
        texts = tokenizer([one.text for one in scenes], padding=True, return_tensors="pt")
        pixels = torch.from_numpy(np.stack([one.pixels for one in scenes]))
        loss = contrastive_loss(model(**texts, pixel_values=pixels).logits_per_image, scenes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += loss.item() / 100
        if step % 100 == 0:
            print(f"step {step}  loss {recent:.4f}  {time.monotonic() - start:.0f} s", flush=True)
            recent = 0.0
    return model


def main() -> None:
    """Train both and write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--tokenizer", type=Path, default=SHIPPED)
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # so that sums, and therefore weights, do not depend on cores
    if (arguments.tokenizer / "tokenizer.json").exists():
        tokenizer = CLIPTokenizer.from_pretrained(arguments.tokenizer)
    else:
        tokenizer = train_tokenizer(Random(f"tokenizer/{SEED}"))
    model = train_model(arguments.steps, tokenizer)
    model.bfloat16().save_pretrained(arguments.out)
    tokenizer.model_max_length = POSITIONS
    tokenizer.save_pretrained(arguments.out)
    edge = {"height": PIXELS.size, "width": PIXELS.size}
    rules = {"size": {"shortest_edge": PIXELS.edge}, "crop_size": edge}
    (arguments.out / "preprocessor_config.json").write_text(json.dumps(rules, indent=2) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
