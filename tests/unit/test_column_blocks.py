"""Transfer, Average and Last by task: by hand, and on the matrices that ZSCL published."""

from __future__ import annotations

import json
from statistics import mean

import pytest

from eval.column_blocks import BLOCKS, column_blocks
from eval.continual import sequence_metrics

SCORES = [[60.0, 10.0, 30.0], [50.0, 70.0, 40.0], [40.0, 61.0, 80.0]]


def test_by_hand():
    transfer, average, last = column_blocks(SCORES)
    assert [block.title for block in (transfer, average, last)] == ["Transfer", "Average", "Last"]
    assert (transfer.columns, transfer.mean) == ((None, 10.0, 35.0), 22.5)
    assert (average.columns, average.mean) == ((50.0, 47.0, 50.0), 49.0)
    assert last.columns == (40.0, 61.0, 80.0) and last.mean == pytest.approx(181 / 3)


def test_a_block_is_the_mean_of_its_columns_and_the_metric_of_its_name():
    expected = sequence_metrics(SCORES)
    for block in column_blocks(SCORES):
        known = [value for value in block.columns if value is not None]
        assert block.mean == expected[block.metric] == pytest.approx(mean(known))


@pytest.mark.parametrize(
    "scores",
    [
        [],
        [[60.0]],  # nothing can be transferred to a single task
        [[60.0, None], [50.0, 70.0]],  # unseen tasks were not measured
        [[60.0, 10.0]],  # the second row is missing
        [[60.0, 10.0], [50.0]],
    ],
)
def test_only_a_whole_matrix_has_blocks(scores):
    assert column_blocks(scores) == ()


def test_a_score_of_zero_counts():
    transfer, *_ = column_blocks([[50.0, 0.0, 0.0], [50.0, 50.0, 20.0], [50.0, 50.0, 50.0]])
    assert transfer.columns == (None, 0.0, 10.0)


def test_published_matrices(shared):
    path = shared / "data" / "vision" / "published_matrices.json"
    published = json.loads(path.read_text())
    assert len(published) == 13
    for one in published:
        blocks = column_blocks(one["scores"])
        assert [block.metric for block in blocks] == [*BLOCKS]
        for block in blocks:
            known = [value for value in block.columns if value is not None]
            assert block.mean == pytest.approx(one[block.metric], abs=0.05), one["method"]
            assert block.mean == pytest.approx(mean(known))
