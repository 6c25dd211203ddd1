"""What the benchmark counts, by hand; that its checks can fail.

Shape letters: T tokens, N atoms, D inputs and outputs, R active atoms, K atoms kept per token.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from bench import decode, exact, layer, matrix, mini_run, report, stack, step, variants
from bench.contest import LINEAR, OURS, PEFT_ACTIVE, PEFT_ALL, PUBLISHED, Settings
from bench.measure import Work, interleaved, look
from bench.variants import Case
from moram_dist.atoms import native
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers import oracle

pytestmark = pytest.mark.slow

FAST = Settings(compiler=False, seconds=0.0, least_repeats=1)
T, D, R, K = 12, 32, 4, 3
SMALL = Case(num_tokens=T, width=D, num_atoms=20, num_active=R, top_k=K)
"""Fewer atoms than inputs, and more than are multiplied with all (5 K)."""

LARGE = replace(SMALL, num_atoms=48)
"""More frozen atoms than inputs: K^T K serves."""


def oracle_answers(inputs):
    x_TD = inputs.x_TD.detach().double().requires_grad_()
    keys, values = (part.detach().double().requires_grad_() for part in inputs.active)
    all_keys = torch.cat([inputs.frozen[0].double(), keys])
    all_values = torch.cat([inputs.frozen[1].double(), values])
    case = inputs.case
    y_TD = oracle.recall(x_TD, all_keys, all_values, top_k=case.top_k, temperature=case.temperature)
    gradients = torch.autograd.grad(y_TD, (x_TD, keys, values), inputs.upstream_TD.double())
    return dict(zip(("y", "x", "active keys", "active values"), (y_TD, *gradients), strict=True))


@pytest.mark.parametrize("case", [SMALL, replace(SMALL, num_atoms=R), replace(SMALL, top_k=20)])
def test_the_reference_and_the_published_formulation_are_the_formula(case):
    inputs = variants.draw(case)
    expected = oracle_answers(inputs)
    found = exact.memory(inputs)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-9)
    seen = look(variants.published_eager(inputs), inputs.upstream_TD, top_k=K)
    assert exact.compare(seen.answers, expected).passed


def test_a_token_leads_clearly_or_is_drawn_again(monkeypatch):
    monkeypatch.setattr(variants, "CLEAR", 0.05)
    inputs = variants.draw(replace(SMALL, num_tokens=50))
    score_TN = (inputs.x_TD @ torch.cat([inputs.frozen[0], inputs.active[0]]).T).double()
    best_TK = (score_TN / score_TN.norm(dim=-1, keepdim=True)).topk(K + 1).values
    assert (best_TK[:, -2] - best_TK[:, -1] > 0.049).all()


def by_way(rows):
    return {row.way: row for row in rows}


def update_and_layer(case):
    rows = layer.one_case(variants.draw(case), FAST)
    return (
        by_way(row for row in rows if row.case["what"] == "update"),
        by_way(row for row in rows if row.case["what"] == "layer"),
    )


def flops(case):
    """Two for each number of each product."""
    N = case.num_atoms
    sparse = 4 * T * K * D + 4 * T * R * D  # values and their gradient; active keys and values
    if N - R > D:  # of K^T K and of chosen atoms, in place of all
        ours = 2 * T * N * D + 2 * T * D * D + 2 * T * K * D + 2 * T * R * D + sparse
    else:
        ours = 4 * T * N * D + sparse
    return {
        PUBLISHED: 12 * T * N * D,
        PEFT_ALL: 12 * T * N * D,
        PEFT_ACTIVE: 8 * T * N * D + 4 * T * R * D,
        OURS: ours,
    }


def saved_bytes(case, width=D, tokens=T):
    """Of one update, in float32, without the input, parameters and frozen atoms."""
    N, r, k = case.num_atoms, case.num_active, case.top_k
    index = 1 if N <= 256 else 2
    scores = r + k if N - r > width else N  # per token, of ours: the chosen ones' or all
    return {
        # scores, weights, their product; both concatenations; int64 indices; the norm, clamped too
        PUBLISHED: 4 * (3 * tokens * N + 2 * N * width) + 8 * tokens * k + 8 * tokens,
        PEFT_ALL: 4 * tokens * N,
        PEFT_ACTIVE: 4 * tokens * r,
        OURS: tokens * (4 * scores + index * k + 4),
    }


NATIVE = native.load()
OPERATIONS = {  # of a forward and backward pass; of ours in C++, or without a compiler in torch
    SMALL: {PUBLISHED: 39, PEFT_ALL: 10, PEFT_ACTIVE: 18, OURS: 8 if NATIVE else 71},
    LARGE: {PUBLISHED: 39, PEFT_ALL: 10, PEFT_ACTIVE: 18, OURS: 37 if NATIVE else 81},
}


@pytest.mark.parametrize("case", [SMALL, LARGE])
def test_counts_of_an_update(case):
    update, whole = update_and_layer(case)
    assert all(row.passed and row.least for row in (*update.values(), *whole.values()))
    assert {way: row.flops for way, row in update.items()} == flops(case)
    assert {way: row.saved_bytes for way, row in update.items()} == saved_bytes(case)
    assert {way: row.dispatched for way, row in update.items()} == OPERATIONS[case]
    assert update[OURS].kept_bytes == (4 * D * D if case is LARGE else 0)
    for way, row in whole.items():  # two products of the linear; its output and gradient are added
        memory = update[way].flops if way != LINEAR else 0
        assert row.flops == memory + 4 * T * D * D
        assert row.saved_bytes == (update[way].saved_bytes if way != LINEAR else 0)


def test_a_lora_of_very_many_rows_is_left_out(monkeypatch):
    monkeypatch.setattr(layer, "LARGEST_LORA", 40)
    monkeypatch.setattr(layer, "MANY", LARGE)
    (rows,) = layer.many(FAST)
    assert {row.way for row in rows} == {PUBLISHED, OURS, LINEAR}
    assert {row.level for row in rows} == {"many"} and all(row.passed for row in rows)


@pytest.mark.parametrize(
    ("width", "num_atoms", "least"), [(1024, 4096, 300), (1024, 256, 4), (2048, 256, 4)]
)
def test_what_the_counts_mean_at_real_sizes(width, num_atoms, least):
    saved = saved_bytes(Case(num_tokens=2048, width=width, num_atoms=num_atoms), width, 2048)
    assert saved[PUBLISHED] >= least * saved[OURS]


def test_a_wrong_answer_is_not_timed(monkeypatch):
    inputs = variants.draw(SMALL)
    warmer = replace(inputs, case=replace(SMALL, temperature=0.031))
    monkeypatch.setattr(variants, "ours", lambda _: variants.published_eager(warmer))
    rows = [row for row in layer.one_case(inputs, FAST) if row.case["what"] == "update"]
    found = by_way(rows)
    assert not found[OURS].passed and found[OURS].least is None
    assert found[PUBLISHED].passed and found[PUBLISHED].least
    assert "| ours | not timed |" in report.level_table(rows)


def test_a_product_in_another_dtype_is_counted():
    """As on CUDA, where bf16 is multiplied into float32; ``meta`` stands for it."""
    with torch.device("meta"), Work() as work:
        sums, a, b = torch.zeros(3, 5), torch.zeros(3, 4).bfloat16(), torch.zeros(4, 5).bfloat16()
        torch.addmm(sums, a, b, out_dtype=torch.float32)
    assert work.flops == 2 * 3 * 4 * 5


def test_what_a_check_sees():
    expected = {"y": torch.tensor([1.0, -4.0]).double(), "chosen": torch.tensor([[0, 2]])}
    right = {"y": torch.tensor([1.0, -4.0])}
    assert exact.compare(right, expected, torch.tensor([[2, 0]], dtype=torch.int32)).passed
    assert not exact.compare(right, expected, torch.tensor([[0, 1]])).passed
    assert not exact.compare({"y": torch.tensor([1.0, -4.0001])}, expected).passed
    assert not exact.compare({"y": torch.tensor([1.0, torch.nan])}, expected).passed
    off = exact.compare({"y": torch.tensor([1.0, -4.5])}, expected)
    assert off.worst == 0.125 and off.sets_equal is None


def test_the_atoms_that_a_pass_chose_are_seen():
    inputs = variants.draw(SMALL)
    expected = exact.memory(inputs)["chosen"]
    for make in (variants.ours, variants.published_eager):
        chosen_TK = look(make(inputs), inputs.upstream_TD, top_k=K).chosen_TK
        assert torch.equal(chosen_TK.long().sort().values, expected)
    assert look(variants.peft_all(inputs), inputs.upstream_TD, top_k=K).chosen_TK is None


def test_peft_trains_the_rows_that_it_should():
    inputs = variants.draw(SMALL)
    for make, rows in ((variants.peft_all, 20), (variants.peft_active_layer, R)):
        way = make(inputs)
        shapes = [tuple(tensor.shape) for tensor in way.wanted.values()]
        assert shapes == [(T, D), (rows, D), (D, rows)]
        assert all(tensor.requires_grad for tensor in way.wanted.values())
        trained = [t for t in way.held if t.requires_grad]
        assert sum(t.numel() for t in trained) == 2 * rows * D


def test_ways_take_turns_in_orders_drawn_anew():
    seen = []
    times = interleaved(
        {name: lambda name=name: seen.append(name) for name in "abc"},
        seconds=0,
        least_repeats=4,
    )
    assert {each.repeats for each in times.values()} == {4}
    assert all(0 <= each.least <= each.median for each in times.values())
    turns = [name for name, before in zip(seen, [None, *seen], strict=False) if name != before]
    assert len(turns) > 5 and turns[:3] == ["a", "b", "c"]
    assert {*turns[3:]} == {"a", "b", "c"} and turns != ["a", "b", "c"] * 5


def test_a_stack_of_decoder_blocks():
    rows = by_way(stack.one_case(64, 8, 2, FAST))
    assert all(row.passed for row in rows.values()), rows
    tokens, width, N, r = 16, 64, stack.ATOMS, stack.ACTIVE
    linears, k = 4 * stack.BLOCKS, stack.METHOD.top_k
    added = {way: row.flops - rows[LINEAR].flops for way, row in rows.items()}
    assert added[PUBLISHED] == added[PEFT_ALL] == linears * 12 * tokens * N * width
    assert added[PEFT_ACTIVE] == linears * (8 * N + 4 * r) * tokens * width
    # More frozen atoms (224) than inputs, as in flops(LARGE).
    ours = 2 * N + 2 * width + 6 * k + 6 * r
    assert added[OURS] == linears * ours * tokens * width
    assert rows[OURS].kept_bytes == linears * 4 * width * width


def test_packed_texts_do_not_see_each_other():
    x_1TD = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0))
    other_1TD = x_1TD.clone()
    other_1TD[:, :8] += 1
    model = stack.decoder(64)
    one, two = (stack.forward_of(model, x, 8)() for x in (x_1TD, other_1TD))
    torch.testing.assert_close(one[:, 8:], two[:, 8:])
    assert not torch.allclose(one[:, :8], two[:, :8])
    alone = stack.forward_of(model, x_1TD[:, 8:], 8)()
    torch.testing.assert_close(one[:, 8:], alone, rtol=1e-4, atol=1e-5)


def test_decoding():
    rows = by_way(decode.one_case(replace(SMALL, num_tokens=1), FAST))
    assert all(row.passed and row.least for row in rows.values())
    base = 2 * D * D
    assert {way: row.flops - base for way, row in rows.items()} == {
        LINEAR: 0,
        PUBLISHED: 4 * 20 * D,
        PEFT_ACTIVE: 4 * 20 * D,
        OURS: 2 * 20 * D + 2 * K * D,
    }
    assert {way: row.dispatched for way, row in rows.items()} == {
        LINEAR: 1,
        PUBLISHED: 15,
        PEFT_ACTIVE: 9,
        OURS: 3 if NATIVE else 18,
    }


def test_a_step_of_generation():
    N, k, width, linears = step.ATOMS, step.METHOD.top_k, 64, 4 * stack.BLOCKS
    rows = by_way(step.one_case(2, width, FAST))
    assert all(row.passed and row.least for row in rows.values()), rows
    added = {way: row.flops - rows[LINEAR].flops for way, row in rows.items()}
    assert added == {
        LINEAR: 0,
        PUBLISHED: 2 * linears * 4 * N * width,
        PEFT_ACTIVE: 2 * linears * 4 * N * width,
        OURS: 2 * linears * (2 * N + 2 * k) * width,
    }


def test_each_call_answers_the_same_step():
    words_BP = torch.arange(6).view(2, 3)
    base = step.language_model(64)
    way = step.step(base, words_BP, lambda model: None)
    torch.testing.assert_close(way.forward(), base(input_ids=words_BP).logits[:, -1])
    assert torch.equal(way.forward(), way.forward())


def test_a_score_matrix():
    benchmark = BENCHMARKS["demo"](Source(order="topic,mood", limit_train=1, limit_eval=2))
    rows = matrix.one_matrix(benchmark)
    assert len(rows) == 5
    assert all(row.passed and row.also == {"same answers": "6 of 6"} for row in rows)


def test_bytes_of_a_run():
    """Two tasks of 8 atoms, half of them the other rank's; 12 linears of 128; twice; 4 bytes."""
    assert mini_run.gathered_bytes() == 2 * 8 * 12 * 256 * 4 == 196_608
    rate = {"train/tokens_per_second": 1.0}
    logged = [
        {**rate, "atoms/atoms_bytes": 100.0, "atoms/atoms_calls": 2.0},
        {"train/loss": 1.0},
        {**rate, "atoms/atoms_bytes": 150.0, "atoms/atoms_calls": 4.0, "atoms/sums_bytes": 7.0},
        {"tasks_learned": 3},
    ]
    assert mini_run.step_difference(logged, "_bytes") == 57
    assert mini_run.step_difference(logged, "_calls") == 2


@pytest.mark.parametrize(("received", "code"), [(196_608, 0), (196_604, 0), (0, 3)])
def test_a_run_through_a_launcher(received, code, monkeypatch, tmp_path):
    """A launcher that trains nothing and logs two steps."""
    launcher = tmp_path / "deepspeed"
    launcher.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
words = sys.argv[1:]
assert words[words.index("--placement") + 1] == "gathered"
out = pathlib.Path(words[words.index("--output_dir") + 1])
out.mkdir()
rate = {{"train/tokens_per_second": 9.7, "train/peak_memory_mb": 5.2}}
for total in (100, 100 + {received}):
    line = rate | {{"atoms/atoms_bytes": total, "atoms/atoms_calls": total // 100}}
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\\n")
print("said")
sys.exit({code})
"""
    )
    launcher.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    if code:
        with pytest.raises(RuntimeError, match=r"ours, gathered: exit code 3\nsaid"):
            mini_run.one_run("ours, gathered")
        return
    row = mini_run.one_run("ours, gathered")
    assert row.passed == (received == mini_run.gathered_bytes())
    assert row.case == {"tasks": 3, "ranks": 2, "steps": 2} and row.least > 0
    assert row.also["received bytes a step"] == received
    assert row.also["tokens/s of wall time"] == 10
