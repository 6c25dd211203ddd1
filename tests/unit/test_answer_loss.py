"""The loss of a micro-batch, for models that can leave out logits and for those that cannot."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moram_dist.data.encode import Encoded
from moram_dist.data.stream import collate
from moram_dist.train.forward import Forward, answer_loss
from tests.helpers.tiny import tiny_model

EXAMPLES = [Encoded("a", (1, 5, 6, 7, 2), 2), Encoded("b", (1, 9, 8, 2), 1)]


class AllLogits(nn.Module):
    """A model whose forward always gives every logit."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, use_cache):
        return self.model(input_ids=input_ids, use_cache=use_cache)


@pytest.mark.parametrize("wrap", [lambda model: model, AllLogits])
@pytest.mark.parametrize("examples", [EXAMPLES, EXAMPLES[:1], [Encoded("", (0, 0), 0)]])
def test_answer_loss(wrap, examples):
    model = tiny_model().eval()
    forward = Forward(wrap(model), wrap(model))
    assert forward.keeps_logits == (wrap is not AllLogits)
    expected = 0.0
    for example in examples:
        logits = model(input_ids=torch.tensor([example.tokens])).logits[0]
        start = len(example.tokens) - example.num_answer
        targets = torch.tensor(example.tokens[start:], dtype=torch.long)
        expected += F.cross_entropy(logits[start - 1 : -1], targets, reduction="sum").item()
    found = answer_loss(forward(collate(examples, pad_id=0))).item()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
