"""Pass the text of an answer on while it is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

UNFINISHED = "\ufffd"
"""Ends the text while the bytes of a character are not all generated."""


class TextStream(BaseStreamer):
    """A streamer of one row for ``generate``: the pieces that it passes on add up to the answer.

    transformers' ``TextStreamer`` decodes each line alone, in which SentencePiece drops a space.
    """

    def __init__(self, tokenizer: Any, then: Callable[[str], None]) -> None:
        """``then`` gets each piece of text."""
        self.tokenizer = tokenizer
        self.then = then
        self.text = ""
        """What was passed on."""
        self._ids: list[int] = []
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """Take the prompt at the first call, one new token at each later one."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids += value.flatten().tolist()
        self._pass_on(is_last=False)

    def end(self) -> None:
        """Pass on what is left."""
        self._pass_on(is_last=True)

    def _pass_on(self, *, is_last: bool) -> None:
        whole = self.tokenizer.decode(
            self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        grows = whole.startswith(self.text) and len(whole) > len(self.text)
        if grows and (is_last or not whole.endswith(UNFINISHED)):
            piece, self.text = whole[len(self.text) :], whole
            self.then(piece)
