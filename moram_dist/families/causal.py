"""Causal language models: prompt and answer are one row, and a token sees only earlier ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.data.candidates import Candidates, encode_candidates
from moram_dist.data.encode import Encoded, encode_prompt, encode_training, texts_of
from moram_dist.data.stream import IGNORED, MicroBatch, pad_answers
from moram_dist.decode.continuous_batching import Room, can_batch_continuously
from moram_dist.decode.generate import Beginning, after_prompts, generate_stream
from moram_dist.decode.labels import Passes, behind_prompts
from moram_dist.families.family import FAMILIES
from moram_dist.families.positions import Positions, computed, said_by_config, tables
from moram_dist.families.text import TextFamily
from moram_dist.tasks.task import Decoding, Example, Task

BIDIRECTIONAL = (
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Model types whose tokens see later ones unless config.json sets ``is_decoder``. ``models.probe``
detects all others."""


@FAMILIES.register("causal")
@dataclass(frozen=True)
class Causal(TextFamily):
    """The family that ``data`` and ``decode`` serve by default."""

    kind = "causal"
    can_be_planned = True
    learns_turns = True

    @classmethod
    def accepts(cls, architecture: Any) -> bool:
        """True if no other family accepts the model."""
        others = (FAMILIES[name] for name in FAMILIES if FAMILIES[name] is not cls)
        return not any(kind.accepts(architecture) for kind in others)

    def auto_class(self) -> Any:
        """The class with a head that predicts the next token."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def model_problem(self, architecture: Any, model: Any) -> str | None:
        """Refuses model types that are known to be bidirectional."""
        if architecture.model_type not in BIDIRECTIONAL or model.config.is_decoder:
            return None
        return (
            f"is no causal language model: in {type(model).__name__} every token sees those after "
            "it; give a model that was trained to predict the next token"
        )

    def trial_inputs(
        self, architecture: Any, num_tokens: int, *, masked: bool = False
    ) -> dict[str, Any]:
        """One row of tokens."""
        ids = torch.ones(1, num_tokens, dtype=torch.long, device="meta")
        mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
        return {"input_ids": ids, **mask, "use_cache": False}

    def part(self, model: Any) -> nn.Module:
        """The decoder, without towers for images or audio, their connectors, and the head."""
        decoder: nn.Module = getattr(model, "get_decoder", lambda: model)()
        return decoder

    def reader(self, model: Any) -> nn.Module:
        """The decoder, which gets embeddings in some models."""
        decoder: nn.Module = model.get_decoder()
        return decoder

    def causal_inputs(self, ids_BT: Tensor) -> dict[str, Tensor]:
        """Rows without a prompt."""
        return {"input_ids": ids_BT}

    def positions(self, model: Any) -> Positions:
        """Positions for prompt and answer together."""
        limit = min([*(rows for _, rows in tables(model)), *computed(model)], default=None)
        has_alibi = getattr(model.config.get_text_config(), "alibi", False)
        extends = limit is None and not has_alibi
        return Positions(tokens=limit, trained=said_by_config(model) if extends else None)

    # Examples, by the rules of ``data.encode``.

    @property
    def fingerprint(self) -> None:
        """None: nothing besides tokenizer, task and example determines the encoding."""

    def texts(self, example: Example, task: Task) -> list[str]:
        """See ``data.encode.texts_of``."""
        return texts_of(example, task)

    def encode_training(self, tokenizer: Any, example: Example, task: Task) -> Encoded:
        """Prompt, answer and EOS in one row."""
        return encode_training(tokenizer, example, task)

    def encode_question(self, tokenizer: Any, prompt: str, task: Task) -> list[int]:
        """BOS and the prompt."""
        return encode_prompt(tokenizer, prompt, task)

    def encode_candidates(self, tokenizer: Any, example: Example, task: Task) -> Candidates:
        """Labels after the prompt."""
        return encode_candidates(tokenizer, example, task)

    def to_rows(self, encoded: Encoded) -> dict[str, Tensor]:
        """The tokens, and the spans that are learned besides the last."""
        rows = {"tokens": encoded.tokens, "earlier": [*itertools.chain(*encoded.earlier)]}
        return {name: torch.tensor(row, dtype=torch.int32) for name, row in rows.items()}

    def from_rows(self, id: str, rows: dict[str, Tensor], num_answer: int) -> Encoded:
        """Restore the tokens and the spans."""
        tokens, ends = (rows[name].tolist() for name in ("tokens", "earlier"))
        earlier = tuple(zip(ends[::2], ends[1::2], strict=True))
        return Encoded(id, tuple(tokens), num_answer, earlier=earlier)

    def lengths(self, encoded: Encoded) -> tuple[int, int]:
        """Tokens of prompt and answer in the row."""
        return len(encoded.tokens) - encoded.num_answer, encoded.num_answer

    def num_read(self, num_said: int) -> int:
        """All but the last, after which nothing is generated."""
        return num_said - 1

    def exceeds(self, there: Positions, prompt: int, answer: int) -> bool:
        """Whether the row of prompt and answer exceeds a table or the length in config.json."""
        limit = there.tokens or there.trained or math.inf
        return prompt + answer > limit

    def describe(self, there: Positions) -> str:
        """The number of positions."""
        return f"{there.tokens} positions"

    # Batches.

    def blank(self, like: Encoded, pad_id: int) -> Encoded:
        """A row of padding; nothing in it is learned."""
        return Encoded("", (pad_id, pad_id), num_answer=0)

    def collate(
        self, examples: Sequence[Encoded], pad_id: int, rows: Sequence[int] | None = None
    ) -> MicroBatch:
        """Rows padded on the right to the longest.

        Tokens see nothing to their right, so an attention mask is not needed. It would double the
        time of attention on long rows.
        """
        ids_BT, labels_BT = pad_answers(examples, pad_id)
        return one_row_each(ids_BT, labels_BT, tuple(rows or range(len(examples))))

    # Answers.

    def begin(self, prompts: Sequence[Sequence[int]], pad_id: int) -> Beginning:
        """The prompts' rows, padded on the left."""
        return after_prompts(prompts, pad_id)

    def can_stream(self, model: nn.Module) -> bool:
        """Whether continuous batching is possible."""
        return can_batch_continuously(model)

    def stream(
        self,
        model: nn.Module,
        tokenizer: Any,
        asked: Iterable[tuple[int, Task, Example]],
        decoding: Decoding,
        room: Room,
    ) -> Iterator[tuple[int, str]]:
        """Generate by continuous batching."""
        return generate_stream(model, tokenizer, asked, decoding, room)

    def generate(
        self,
        model: nn.Module,
        tokenizer: Any,
        examples: Sequence[Example],
        task: Task,
        decoding: Decoding,
        *,
        synced: bool = False,
    ) -> list[str]:
        """Generate by continuous batching if possible."""
        if synced or not self.can_stream(model):
            return super().generate(model, tokenizer, examples, task, decoding, synced=synced)
        asked = [(i, task, example) for i, example in enumerate(examples)]
        room = Room.for_all(len(asked))
        texts = dict(self.stream(model, tokenizer, asked, decoding, room))
        return [texts[i] for i in range(len(examples))]

    def label_passes(
        self,
        model: nn.Module,
        choices: Sequence[Candidates],
        pad_id: int,
        task: Task,
        *,
        synced: bool,
    ) -> Passes:
        """Passes over labels after their prompts."""
        longest = task.max_prompt_tokens
        return behind_prompts(model, choices, pad_id, max_prompt_tokens=longest, synced=synced)


def one_row_each(ids_BT: Tensor, labels_BT: Tensor, rows: tuple[int, ...]) -> MicroBatch:
    """The micro-batch for rows of prompt and answer, from their tokens and labels."""
    # A prompt ends at the first learned token; if nothing is learned, it is the whole row.
    learned = (labels_BT != IGNORED).int()
    ends = learned.argmax(1).where(learned.any(1), torch.tensor(learned.shape[1]))
    return MicroBatch(
        inputs={"input_ids": ids_BT},
        labels=labels_BT,
        rows=rows,
        prompts=[ids[:end] for ids, end in zip(ids_BT, ends.tolist(), strict=True)],
        lengths=(ids_BT.shape[1],),
    )
