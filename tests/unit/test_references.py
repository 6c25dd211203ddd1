"""The published numbers: their schema, some of them by hand, and what marks them."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from eval.compare.references import Reference, Setting, read_references
from moram_dist.registry import InputError


def test_the_file_is_what_its_schema_says():
    references = read_references()
    assert {one.benchmark for one in references} == {
        *("trace", "superni", "long_sequence", "standard_cl", "xtail", "mtil")
    }
    rows = [json.dumps(asdict(one), sort_keys=True) for one in references]
    assert len(set(rows)) == len(rows)
    for one in references:
        assert one.values, one
        if one.metric.startswith("bwt"):
            assert min(one.values.values()) < 0 or one.method == "Replay", one
        if len(one.values) == 4:  # three orders and their mean
            *orders, mean = one.values.values()
            assert sum(orders) / 3 == pytest.approx(mean, abs=0.4), one  # L2P's is 0.3 off


def test_some_numbers():
    def find(benchmark, method, model, metric):
        return [
            one
            for one in read_references()
            if (one.benchmark, one.method, one.model, one.metric)
            == (benchmark, method, model, metric)
        ]

    (moram,) = find("trace", "MoRAM", "LLaMA-2-7B-Chat", "ap")
    assert (moram.values, moram.provenance) == ({"published": 44.54}, "read")
    (moram,) = find("trace", "MoRAM", "LLaMA-2-7B-Chat", "bwt_clipped")
    assert moram.values == {"published": -1.37}  # the source prints what is lost, ours is a change
    logs, mean, orders = find("standard_cl", "O-LoRA", "T5-large", "ap")
    assert (logs.values, logs.provenance) == ({"1": 78.37}, "computed")
    assert (mean.values, mean.provenance) == ({"mean": 75.8}, "restated")
    assert (orders.values, orders.provenance) == ({"1": 75.4, "2": 75.7, "3": 76.3}, "unverified")


ONE = {
    "benchmark": "trace",
    "protocol": "moram",
    "method": "MoRAM",
    "model": "M",
    "metric": "ap",
    "values": {"published": 44.5},
    "source": "README",
    "provenance": "read",
    "note": "",
}


def test_marks():
    one = Reference(**ONE)
    assert one.mark(Setting(base="M", protocol="moram")) == "comparable (read in the source)"
    assert one.mark(Setting(base="other", protocol="original")) == (
        "not comparable: other base model; other protocol (read in the source)"
    )
    unsaid = Reference(
        **ONE | {"model": "", "protocol": "", "note": "cut", "provenance": "unverified"}
    )
    assert unsaid.mark(Setting(base="M", protocol="moram")) == (
        "not comparable: base model not stated; protocol not stated; cut (unverified)"
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"metric": "apx"}, "record 0: unknown provenance or metric"),
        ({"provenance": "heard"}, "record 0: unknown provenance or metric"),
        ({"source": ""}, "no source"),
        ({"values": {"1": "44"}}, "record 0: values.1: input should be a valid number"),
        ({"values": {"1": 144}}, "no score: 144"),
        ({"extra": 1}, "record 0: extra: unexpected"),
    ],
)
def test_bad_files(tmp_path, change, complaint):
    path = tmp_path / "references.json"
    path.write_text(json.dumps([ONE | change]))
    with pytest.raises(InputError, match=complaint):
        read_references(path)
