"""The loss of a micro-batch, for models that can leave out logits and for those that cannot."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moram_dist.data.encode import Encoded
from moram_dist.data.stream import IGNORED
from moram_dist.families.causal import Causal
from moram_dist.families.text import output_head
from moram_dist.methods.method import ForwardOutput
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
    seen = forward(Causal().collate(examples, pad_id=0))
    num_places = max(1, sum(example.num_answer for example in examples))
    assert seen.logits_BPV.shape == (1, num_places, model.config.vocab_size)
    assert (output_head(forward.model) is None) == (wrap is AllLogits)
    expected = 0.0
    for example in examples:
        logits = model(input_ids=torch.tensor([example.tokens])).logits[0]
        start = len(example.tokens) - example.num_answer
        targets = torch.tensor(example.tokens[start:], dtype=torch.long)
        expected += F.cross_entropy(logits[start - 1 : -1], targets, reduction="sum").item()
    found = answer_loss(seen).item()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("together", [1, 30, 2**24])
def test_the_loss_and_its_gradient_a_few_rows_at_a_time(together, monkeypatch):
    monkeypatch.setattr("moram_dist.losses.ROWS_TIMES_WORDS", together)
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(1, 7, 11, generator=generator, dtype=torch.float64)
    targets = torch.tensor([[3, IGNORED, 0, 10, IGNORED, 5, 5]])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = F.cross_entropy(theirs[0], targets[0], ignore_index=IGNORED, reduction="sum")
    found = answer_loss(ForwardOutput(ours, targets, 1.0, again=lambda: ours))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    half = answer_loss(ForwardOutput(logits.bfloat16(), targets, 1.0, again=lambda: ours))
    assert half.dtype == torch.float32
    assert answer_loss(ForwardOutput(logits, targets, 1.0, again=lambda: ours)) == found
