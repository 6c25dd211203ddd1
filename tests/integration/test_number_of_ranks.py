"""The number of ranks changes how fast a run is, and nothing else but rounding."""

from __future__ import annotations

import json

import pytest

from tests.integration.launching import ROOT, train

pytestmark = pytest.mark.integration

FLAGS = ("--limit_train", "32", "--limit_eval", "8", "--epochs", "1", "--order", "topic,mood")
FLAGS += ("--batch_size", "8", "--micro_batch_size", "2", "--dropout", "0.1", "--log_every", "1")
FLAGS += ("--dtype", "fp32", "--ds_config", ROOT / "ds_configs" / "zero3.json")
FLAGS += ("--tracking", "none")
FLAGS += ("--preset", "published")
# All atoms answer each token: if some were chosen, rounding would choose another one now and then.
FLAGS += ("--top_k", "64")


def results(folder):
    """Losses in their order, and all predictions by file."""
    logged = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    texts = {p.relative_to(folder): p.read_text() for p in folder.glob("predictions/*/*")}
    return losses, texts


@pytest.mark.parametrize("numbers", [(2, 3), pytest.param((4,), marks=pytest.mark.nightly)])
def test_losses_and_predictions_do_not_depend_on_it(tmp_path, numbers):
    """With dropout, and with micro-batches and padding that differ for each number.

    With two ranks only deterministic operations may be used, which on a CPU changes nothing.
    """
    found = {}
    for ranks in (1, *numbers):
        where = ("--output_dir", tmp_path / str(ranks), "--deterministic", ranks == 2)
        done = train(*FLAGS, *where, ranks=ranks)
        assert done.code == 0, done.out + done.err
        found[ranks] = results(tmp_path / str(ranks))
    losses, texts = found.pop(1)
    assert (len(losses), len(texts)) == (8, 3)
    for ranks, (same_losses, same_texts) in found.items():
        assert same_losses == pytest.approx(losses, rel=2e-6), f"{ranks} ranks"
        assert same_texts == texts, f"{ranks} ranks"
