"""The same arithmetic and the same command on a GPU."""

import json

import pytest
import torch

from moram_dist.adapters.dropout import TokenDropout, TokenKeys
from moram_dist.atoms import recall
from tests.integration.launching import launcher, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("num_atoms", [1, 8, 240])
def test_recall_is_that_of_the_cpu(num_atoms):
    generator = torch.Generator().manual_seed(num_atoms)
    shapes = ((64, 96), (num_atoms, 96), (num_atoms, 48))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    found = []
    for device in ("cpu", "cuda"):
        here = [tensor.to(device).requires_grad_() for tensor in inputs]
        out = recall(*here, top_k=8, temperature=0.03, threshold=0.1)
        out.square().sum().backward()
        found.append([out.detach().cpu(), *(tensor.grad.cpu() for tensor in here)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_dropout_is_that_of_the_cpu():
    kept = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        keys = TokenKeys()
        keys.set([11, 2**32 - 1, 7], [33], device)
        dropout = TokenDropout(0.3, keys, name="layer", size=131).to(device)
        kept.append(dropout(torch.ones(3, 33, 131, device=device)).cpu())
    assert torch.equal(*kept)


@pytest.mark.integration
def test_the_demo_runs_in_bf16_on_one_gpu(tmp_path):
    words = launcher("--order", "topic,mood", "--limit_train", "32", "--limit_eval", "8")
    words[words.index("2")] = "1"  # ranks
    words += ["--tracking", "none", "--output_dir", tmp_path / "run"]
    done = run(*words, cwd=tmp_path)
    assert done.code == 0, done.err
    saved = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert [None not in row[: i + 1] for i, row in enumerate(saved["scores"])] == [True, True]
    assert json.loads((tmp_path / "run" / "ds_config.json").read_text())["bf16"]["enabled"]
