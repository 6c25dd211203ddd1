"""Encoder-decoder models such as T5: an encoder reads the prompt, a decoder gives the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.atoms import reads_source
from moram_dist.data.candidates import NO_LIMIT, Candidates
from moram_dist.data.encode import Encoded, Span, cut_prompt, plain
from moram_dist.data.stream import MicroBatch, pad_answers, pad_right
from moram_dist.data.tokens import InBatches
from moram_dist.decode.generate import Beginning
from moram_dist.decode.labels import Passes, tails_of
from moram_dist.families.family import FAMILIES, Tower
from moram_dist.families.positions import Positions, computed, tables
from moram_dist.families.text import TextFamily
from moram_dist.tasks.task import Decoding, Example, Task

OF_ENCODER = re.compile(r"(^|\.)encoder\.")
"""Matches full names of modules in the encoder."""


@dataclass(frozen=True)
class EncodedPair(Encoded):
    """One training example; ``tokens`` are the decoder's: its start token and the answer."""

    source: tuple[int, ...]
    """The encoder's tokens."""

    @property
    def num_tokens(self) -> int:
        """Tokens that encoder and decoder read."""
        return len(self.tokens) + len(self.source)


@FAMILIES.register("encoder_decoder")
@dataclass(frozen=True)
class EncoderDecoder(TextFamily):
    """Models with two stacks of layers, which read one text each per example."""

    decoder_start: int | None
    """The decoder's first token. None, if the configuration does not give it, is a
    ``config_problem``."""

    kind = "text-to-text"

    @classmethod
    def accepts(cls, architecture: Any) -> bool:
        """Whether the configuration sets ``is_encoder_decoder``."""
        return bool(getattr(architecture, "is_encoder_decoder", False))

    @classmethod
    def of(cls, architecture: Any) -> EncoderDecoder:
        """The family with the configuration's decoder start token."""
        return cls(getattr(architecture, "decoder_start_token_id", None))

    def auto_class(self) -> Any:
        """The class with both stacks and a head."""
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    def config_problem(self, architecture: Any) -> str | None:
        """The configuration must give the decoder's start token."""
        if self.decoder_start is not None:
            return None
        return (
            "its config.json lacks decoder_start_token_id, from which its decoder starts; T5's is 0"
        )

    def tokenizer_problem(self, tokenizer: Any) -> str | None:
        """The tokenizer must match ``encode_pair``: add EOS at the end and no other token."""
        if tokenizer("")["input_ids"] == [tokenizer.eos_token_id]:
            return None
        return (
            "its tokenizer does not end a text with its end-of-sequence token and add no other; of "
            "encoder-decoder models only those that do, such as T5, are supported"
        )

    # Structure.

    def trial_inputs(
        self, architecture: Any, num_tokens: int, *, masked: bool = False
    ) -> dict[str, Any]:
        """One text for each stack."""
        ids = torch.ones(1, num_tokens, dtype=torch.long, device="meta")
        mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
        return {"input_ids": ids, **mask, "decoder_input_ids": ids, "use_cache": False}

    def towers(self, model: Any) -> list[Tower]:
        """Both stacks: each reads its own tokens, and generation calls the encoder separately."""
        return [Tower(model.get_encoder(), True), Tower(model.get_decoder(), False)]

    def reads_source(self, name: str) -> bool:
        """Whether a linear is in the encoder, or in the decoder and reads the encoder's output."""
        return reads_source(name)

    def reader(self, model: Any) -> nn.Module:
        """The encoder."""
        encoder: nn.Module = model.get_encoder()
        return encoder

    def causal_inputs(self, ids_BT: Tensor) -> dict[str, Tensor]:
        """Inputs with the first row as the prompt of all rows."""
        start_B1 = torch.full_like(ids_BT[:, :1], self._start)
        return {
            "input_ids": ids_BT[:1].expand_as(ids_BT),
            "decoder_input_ids": torch.cat([start_B1, ids_BT], 1),
        }

    def positions(self, model: Any) -> Positions:
        """Positions of each stack separately."""
        source: list[int] = []
        tokens = [*computed(model)]
        for name, rows in tables(model):
            (source if OF_ENCODER.search(name) else tokens).append(rows)
        return Positions(source=min(source, default=None), tokens=min(tokens, default=None))

    # Examples.

    @property
    def fingerprint(self) -> int | None:
        """The decoder's start token."""
        return self.decoder_start

    def texts(self, example: Example, task: Task) -> list[str]:
        """Prompt and answer, without a separator."""
        return [example.prompt, example.references[0]]

    def encode_training(self, tokenizer: Any, example: Example, task: Task) -> EncodedPair:
        """See ``encode_pair``."""
        return encode_pair(tokenizer, example, task, self._start)

    def encode_question(self, tokenizer: Any, prompt: str, task: Task) -> list[int]:
        """See ``encode_source``."""
        return encode_source(tokenizer, prompt, task)

    def encode_candidates(self, tokenizer: Any, example: Example, task: Task) -> Candidates:
        """Labels are scored whole, even if longer than generated answers may be."""
        uncut = replace(task, max_answer_tokens=NO_LIMIT)
        asked = [Example(example.id, example.prompt, (label,)) for label in task.labels]
        batch = InBatches(tokenizer, [text for one in asked for text in self.texts(one, uncut)])
        pairs = [encode_pair(batch, one, uncut, self._start) for one in asked]
        return Candidates(pairs[0].source, tuple(pair.tokens[1:] for pair in pairs))

    def to_rows(self, encoded: EncodedPair) -> dict[str, Tensor]:
        """Tokens of both texts."""
        rows = {"tokens": encoded.tokens, "sources": encoded.source}
        return {name: torch.tensor(row, dtype=torch.int32) for name, row in rows.items()}

    def from_rows(self, id: str, rows: dict[str, Tensor], num_answer: int) -> EncodedPair:
        """Restore both texts."""
        tokens, source = (tuple(rows[name].tolist()) for name in ("tokens", "sources"))
        return EncodedPair(id, tokens, num_answer, source)

    def rows_read(self, encoded: EncodedPair) -> list[tuple[Sequence[int], Sequence[Span]]]:
        """The encoder's tokens, then the decoder's."""
        return [(encoded.source, ()), (encoded.tokens, encoded.learned)]

    def lengths(self, encoded: EncodedPair) -> tuple[int, int]:
        """Tokens of the encoder's text and of the decoder's."""
        return len(encoded.source), len(encoded.tokens)

    def num_read(self, num_said: int) -> int:
        """All but the last, plus the decoder's start token."""
        return num_said

    def exceeds(self, there: Positions, prompt: int, answer: int) -> bool:
        """Whether either text exceeds its stack's positions."""
        of_both = ((prompt, there.source), (answer, there.tokens))
        return any(limit and count > limit for count, limit in of_both)

    def describe(self, there: Positions) -> str:
        """The positions of both stacks."""
        return f"{there.source} positions for the one and {there.tokens} for the other"

    # Batches.

    def blank(self, like: EncodedPair, pad_id: int) -> EncodedPair:
        """Two texts of padding."""
        return EncodedPair("", (pad_id, pad_id), num_answer=0, source=(pad_id, pad_id))

    def collate(
        self, examples: Sequence[EncodedPair], pad_id: int, rows: Sequence[int] | None = None
    ) -> MicroBatch:
        """Both texts padded on the right to the longest, with a mask for the encoder."""
        ids_BT, labels_BT = pad_answers(examples, pad_id)
        source_BS, mask_BS = pad_right([example.source for example in examples], pad_id)
        return MicroBatch(
            inputs={
                "input_ids": source_BS,
                "attention_mask": mask_BS,
                "decoder_input_ids": ids_BT,
            },
            labels=labels_BT,
            rows=tuple(rows or range(len(examples))),
            prompts=[ids[mask] for ids, mask in zip(source_BS, mask_BS.bool(), strict=True)],
            lengths=(ids_BT.shape[1], source_BS.shape[1]),
        )

    # Answers.

    def begin(self, prompts: Sequence[Sequence[int]], pad_id: int) -> Beginning:
        """The encoder's rows padded on the right; the decoder's begin with its start token."""
        input_ids, attention_mask = pad_right(prompts, pad_id)
        return Beginning(
            input_ids,
            attention_mask,
            num_before=1,
            settings={"decoder_start_token_id": self._start},
        )

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
        """The decoder generates only the answer, so ``task.answer_after`` is not used."""
        task = replace(task, answer_after="")
        return super().generate(model, tokenizer, examples, task, decoding, synced=synced)

    def label_passes(
        self,
        model: nn.Module,
        choices: Sequence[Candidates],
        pad_id: int,
        task: Task,
        *,
        synced: bool,
    ) -> Passes:
        """One pass of the encoder, and one pass of the decoder per label."""
        return self._after_encoder(model, choices, pad_id)

    def _after_encoder(
        self, model: Any, choices: Sequence[Candidates], pad_id: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(iter(model.parameters())).device
        ids_BP, mask_BP = (t.to(device) for t in pad_right([one.prefix for one in choices], pad_id))
        encoded = model.get_encoder()(input_ids=ids_BP, attention_mask=mask_BP)
        for label in range(len(choices[0].tails)):
            inputs, targets = tails_of(choices, label, pad_id)
            start_B1 = torch.full((len(choices), 1), self._start)
            logits = model(
                encoder_outputs=encoded,
                attention_mask=mask_BP,
                decoder_input_ids=torch.cat([start_B1, inputs], 1).to(device),
                use_cache=False,
            ).logits
            yield logits, targets.to(device)

    @property
    def _start(self) -> int:
        assert self.decoder_start is not None  # otherwise config_problem refuses the base
        return self.decoder_start


def encode_source(tokenizer: Any, prompt: str, task: Task) -> list[int]:
    """The encoder's tokens: prompt and EOS, at most ``task.max_prompt_tokens``.

    If the tail of a long prompt is cut, the remaining tokens are decoded and tokenised again, as in
    the published collators of SAPT and O-LoRA (Tk-Instruct's). This may give other tokens.
    """
    limit = task.max_prompt_tokens
    tokens = plain(tokenizer, prompt)
    if len(tokens) >= limit and task.truncate_prompt == "right" and not task.cue:
        text = tokenizer.decode(
            tokens[:limit], skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        tokens = plain(tokenizer, text)
    room = replace(task, max_prompt_tokens=limit - 1, num_bos=0, shared_limit=False)
    return [*cut_prompt(tokenizer, tokens, prompt, room), tokenizer.eos_token_id]


def encode_pair(tokenizer: Any, example: Example, task: Task, decoder_start: int) -> EncodedPair:
    """Encode the prompt as the source, and the answer with EOS as the text to learn.

    Args:
        tokenizer: one that ends a text with EOS and adds no other token, such as T5's.
        example: its first reference is learned.
        task: gives the longest prompt and answer, EOS included. Its separator is not used.
        decoder_start: the decoder's first token.
    """
    answer = plain(tokenizer, example.references[0])[: task.max_answer_tokens - 1]
    return EncodedPair(
        example.id,
        (decoder_start, *answer, tokenizer.eos_token_id),
        num_answer=len(answer) + 1,
        source=tuple(encode_source(tokenizer, example.prompt, task)),
    )
