"""A CLIP that is small enough to train in a test, and tasks of drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from moram_dist.data.pictures import Pixels
from moram_dist.data.preprocessor import FILE
from moram_dist.families.pictures import PictureReader
from moram_dist.tasks.task import Example, Task

SIZE = 16
LONGEST = 12
START, END = 62, 63  # transformers takes an end token of 2 for the largest id
WIDTH = 32
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 24,
    "initializer_range": 0.1,
}


def tiny_clip(seed: int = 0) -> CLIPModel:
    """Two towers of two layers, random weights in fp32. In eval mode."""
    config = CLIPConfig(
        text_config={
            **TOWER,
            "vocab_size": 64,
            "max_position_embeddings": LONGEST,
            "bos_token_id": START,
            "eos_token_id": END,
            "pad_token_id": END,
        },
        vision_config={**TOWER, "image_size": SIZE, "patch_size": 8},
        projection_dim=24,
        initializer_factor=4.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(config).eval()


class Letters:
    """A tokenizer with a token for each letter."""

    pad_token_id = eos_token_id = END
    bos_token_id = START
    backend_tokenizer = SimpleNamespace(to_str=lambda: "letters")

    def __call__(self, text: str, **kwargs: Any) -> dict[str, list[int]]:
        """Start, letters and end, cut before the end."""
        ids = [(ord(letter) - ord("a")) % 60 for letter in text.lower()]
        return {"input_ids": [START, *ids[: kwargs["max_length"] - 2], END]}


def reader() -> PictureReader:
    """The tiny CLIP's encoder of pictures and texts."""
    return PictureReader(Letters(), Pixels(size=SIZE, edge=SIZE), most=LONGEST)


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


def draw_task(folder: Path, name: str = "colours", count: int = 8, **rules: Any) -> Task:
    """Write ``count`` noisy pictures of each colour and split; a task's stripe tells it apart."""
    rng = np.random.default_rng([len(name), *name.encode()])
    (folder / name).mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[Example]] = {"train": [], "test": []}
    for split, examples in splits.items():
        for i in range(count):
            for label, colour in COLOURS.items():
                pixels = rng.integers(0, 60, (20, 24, 3)) + np.array(colour) * 3 // 4
                pixels[:, :8] = 255 * (len(name) % 2)
                file = f"{split}_{label}_{i}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / file)
                examples.append(Example(f"{split}-{len(examples)}", file, (label,)))
    defaults: dict[str, Any] = {
        "metric": "exact_match",
        "labels": tuple(COLOURS),
        "texts": tuple((f"{name[:3]} {label}",) for label in COLOURS),
        "text_to_image": 1 / 3,
        "steps": 12,
        "max_answer_tokens": 1,
    }
    return Task(
        name=name,
        train=tuple(splits["train"]),
        test=tuple(splits["test"]),
        pictures=folder / name,
        **{**defaults, **rules},
    )


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write the tiny CLIP as a base: weights, a tokenizer of letters, rules for pictures."""
    letters = [chr(ord("a") + i) for i in range(26)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"w{i}" for i in range(START - len(words))]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tiny_clip(seed).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    (folder / FILE).write_text(
        json.dumps({"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}})
    )
    return folder
