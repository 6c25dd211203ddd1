"""Measure how a memory changes the perplexity of text that belongs to none of its tasks.

    python tools/foreign_text.py --model BASE --run RUN TEXT [TEXT ...] [--tokens 64] [--most 100]

Each file is cut into pieces of equal length, each of them a prompt. One row per file shows the
perplexity of the base, that with the memory by recall, and how many pieces belong to no task.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from moram_dist.atoms.memory_files import MemoryFiles  # noqa: E402
from moram_dist.config import EvalConfig, ModelConfig  # noqa: E402
from moram_dist.methods.restore import load_memory  # noqa: E402
from moram_dist.models import language_model  # noqa: E402
from moram_dist.recognise import RECOGNISERS, prompt_features  # noqa: E402

TOGETHER = 8
"""Pieces in a forward pass."""

WAYS: dict[str, dict[str, str]] = {
    "recall all": {"recall": "all"},
    "prefix, unknown all": {"recall": "prefix", "unknown": "all"},
    "prefix, unknown base": {"recall": "prefix", "unknown": "base"},
}


def pieces(tokenizer: Any, path: Path, tokens: int, most: int) -> Tensor:
    """The beginning of the text, in rows of BOS (if there is one) and ``tokens`` tokens."""
    ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    count = min(len(ids) // tokens, most)
    rows = torch.tensor(ids[: count * tokens]).reshape(count, tokens)
    if tokenizer.bos_token_id is None:
        return rows
    return torch.cat([torch.full((count, 1), tokenizer.bos_token_id), rows], 1)


@torch.no_grad()
def perplexity(model: Any, rows_NP: Tensor) -> float:
    """The exponential of the mean loss over all tokens but the first of each row."""
    total, count = 0.0, 0
    for rows in rows_NP.split(TOGETHER):
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        targets = rows[:, 1:]
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum"
        ).item()
        count += targets.numel()
    return math.exp(total / count)


def table(base: Path, run: Path, texts: list[Path], tokens: int, most: int) -> Iterator[str]:
    """Lines of Markdown."""
    config = ModelConfig(model=str(base), dtype="fp32")
    tokenizer = language_model.load_tokenizer(config)
    rows = {path: pieces(tokenizer, path, tokens, most) for path in texts}
    found: dict[Path, list[str]] = {path: [] for path in texts}
    bare: dict[Path, float] = {}
    for way in ("base", *WAYS):
        model = _base(base)
        if way in WAYS:
            load_memory(model, run, **WAYS[way])  # type: ignore[arg-type]
        for path in texts:
            value = perplexity(model, rows[path])
            bare.setdefault(path, value)
            share = f" ({100 * (value / bare[path] - 1):+.2f} %)" if way in WAYS else ""
            found[path].append(f"{value:.2f}{share}")
    embedding = _base(base).get_input_embeddings().weight
    for path in texts:
        found[path].append(f"{_rejected(run, embedding, rows[path]):.1f} %")
    yield f"| text | pieces | base | {' | '.join(WAYS)} | like no task |"
    yield "| --- " * (4 + len(WAYS)) + "|"
    for path in texts:
        yield f"| {path.name} | {len(rows[path])} | {' | '.join(found[path])} |"


def _base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _rejected(run: Path, embedding_VD: Tensor, rows_NP: Tensor) -> float:
    files = MemoryFiles(run / "memory")
    manifest = files.manifest()
    assert manifest is not None  # it was loaded
    kind = RECOGNISERS[EvalConfig.recogniser]
    recogniser = kind([files.statistics(task) for task in manifest.tasks])
    found = recogniser.recognise(prompt_features(embedding_VD.detach(), list(rows_NP)))
    return 100 * sum(not one.known for one in found) / len(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="the base: a folder")
    parser.add_argument("--run", type=Path, required=True, help="a run directory with a memory")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT")
    parser.add_argument("--tokens", type=int, default=64, help="of a piece")
    parser.add_argument("--most", type=int, default=100, help="pieces of a file")
    args = parser.parse_args()
    print("\n".join(table(args.model, args.run, args.texts, args.tokens, args.most)))


if __name__ == "__main__":
    main()
