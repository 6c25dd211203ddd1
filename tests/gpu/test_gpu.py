"""The same arithmetic and the same command on a GPU."""

import json

import pytest
import torch

from moram_dist.adapters.dropout import TokenDropout, TokenKeys
from moram_dist.atoms import native, recall
from tests.integration.launching import launcher, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture(autouse=True)
def without_cpp(monkeypatch):
    """The CPU side in torch: a build of the operations in C++ would take the lent time."""
    monkeypatch.setattr(native, "serve", lambda tensor: False)


# Thresholds at which some of the atoms that are kept speak and some do not.
MEMORIES = [(8, 0.1), (240, 0.14), (5000, 0.045)]


@pytest.mark.parametrize(("num_atoms", "threshold"), [(1, 0.1), *MEMORIES])
def test_recall_is_that_of_the_cpu(num_atoms, threshold):
    generator = torch.Generator().manual_seed(num_atoms)
    shapes = ((64, 96), (num_atoms, 96), (num_atoms, 48))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    found = []
    for device in ("cpu", "cuda"):
        here = [tensor.to(device).requires_grad_() for tensor in inputs]
        out = recall(*here, top_k=8, temperature=0.03, threshold=threshold)
        out.square().sum().backward()
        found.append([out.detach().cpu(), *(tensor.grad.cpu() for tensor in here)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize(("num_atoms", "threshold"), MEMORIES)
def test_recall_is_near_that_in_float64(num_atoms, threshold, dtype, near):
    """Scores are whole numbers, exact in every type and often equal. No pass waits for the GPU."""
    generator = torch.Generator().manual_seed(num_atoms)
    x, keys = (
        torch.randint(-2, 3, (rows, 96), generator=generator).double() for rows in (64, num_atoms)
    )
    values = torch.randn(num_atoms, 48, generator=generator, dtype=torch.float64).to(dtype).double()
    inputs = (x, keys, values)
    expected = with_gradients([t.requires_grad_() for t in inputs], threshold)
    here = [t.detach().to("cuda", dtype).requires_grad_() for t in inputs]
    with_gradients(here, threshold)  # the first pass compiles, and may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = with_gradients(here, threshold)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for wanted, got in zip(expected, found, strict=True):
        assert wanted.norm() > 0
        assert (got.cpu().double() - wanted).norm() <= near * wanted.norm()


def with_gradients(inputs, threshold):
    out = recall(*inputs, top_k=8, temperature=0.03, threshold=threshold)
    return [out.detach(), *torch.autograd.grad(out.sum(), inputs)]


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
