"""What of a forward pass is a prompt, under either name that transformers has for its cache."""

from __future__ import annotations

import pytest
import torch

from moram_dist.adapters.prompts import new_rows


class Cache:
    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_pass_that_continues_has_no_prompt(name):
    ids = torch.tensor([[3, 4], [0, 5]])
    assert new_rows((), {"input_ids": ids, name: Cache(7)}) is None
    for begins in (Cache(0), None):
        rows = new_rows((), {"input_ids": ids, name: begins})
        assert [row.tolist() for row in rows] == [[3, 4], [0, 5]]


def test_padding_is_no_part_of_a_prompt():
    ids = torch.tensor([[3, 4], [0, 5]])
    rows = new_rows((ids,), {"attention_mask": torch.tensor([[1, 1], [0, 1]])})
    assert [row.tolist() for row in rows] == [[3, 4], [5]]
