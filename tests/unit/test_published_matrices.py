"""Transfer, Average and Last of published MTIL matrices are those that are printed with them."""

from __future__ import annotations

import json

import pytest

from eval.continual import sequence_metrics


def test_thirteen_of_thirteen(shared):
    matrices = json.loads((shared / "data" / "vision" / "published_matrices.json").read_text())
    assert len(matrices) == 13
    for each in matrices:
        found = sequence_metrics(each["scores"])
        for name in ("transfer", "average", "last"):
            assert found[name] == pytest.approx(each[name], abs=0.05), each["method"]
