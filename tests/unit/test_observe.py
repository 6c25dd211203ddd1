"""Whose atoms answer: sums worked by hand, the file of a row, and nothing else changed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from eval.measure import observe
from eval.measure.harness import Evaluator
from eval.measure.observe import ALL_LINEARS, Observer, Table, Tally, newest_cosine, result
from eval.routing import LinearRouting, TaskRouting, read_routing, routing_path, to_json
from moram_dist.adapters.routed import Weights, routed_linears, watching
from moram_dist.atoms import MemoryLinear, MemorySettings, Placer, Routing, give_memory
from moram_dist.config import EvalConfig, ModelConfig, RecordConfig, RunConfig
from moram_dist.data import tokens as token_files
from moram_dist.families import family_of_model
from moram_dist.methods import METHODS
from moram_dist.models import language_model
from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.configs import config_of
from tests.helpers.context import make_context
from tests.helpers.tiny_clip import draw_task, reader, tiny_clip
from tests.helpers.tiny_t5 import tiny_t5
from tests.unit.test_lora_baselines import LN3, begin, built, no_look

BENCHMARK = BENCHMARKS["demo"](Source(order="topic,mood", limit_train=4, limit_eval=3))
CPU = torch.device("cpu")


def two_tasks(*, threshold: float) -> MemoryLinear:
    """A linear of two inputs; the first task has the key (1, 0), the second (0, 1)."""
    layer = MemoryLinear(nn.Linear(2, 3), dropout=nn.Dropout(0))
    routing = Routing(top_k=2, temperature=1.0, threshold=threshold)
    settings = MemorySettings(routing=routing, num_active=1, scale=1.0)
    (memory,) = give_memory({"q_proj": layer}, settings, Placer()).values()
    for key in ([1.0, 0.0], [0.0, 1.0]):
        memory.grow([(torch.tensor([key]), torch.ones(1, 3))])
    return layer.eval()


def tallied(layer, tokens):
    tally = Tally(layer.task_ends, Table(2, 2, CPU))
    with torch.no_grad(), watching({"q_proj": layer}, lambda name, found: tally.add(1, found)):
        layer(torch.tensor(tokens))
    layer(torch.tensor(tokens))  # nobody watches any more
    return result("q_proj", [tally], [newest_cosine(layer)])


def test_a_memory_of_two_tasks_by_hand():
    """Relevance: (0.6, 0.8); (1, 0); two of -0.71; none. So the last two tokens get no answer."""
    found = tallied(two_tasks(threshold=0.2), [[3.0, 4.0], [1.0, 0.0], [-1.0, -1.0], [0.0, 0.0]])
    a, b = (1 / (1 + math.exp(d)) for d in (0.2, -1.0))  # of the first task, in tokens 1 and 2
    assert found.weight == ((0.0, 0.0), (pytest.approx(a + b, abs=1e-4), round(1 - a, 4)))
    assert found.tokens == (0, 4) and found.unanswered == (0, 2)
    halves = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (a, b, 0.5)]
    assert found.effective == (0.0, pytest.approx(sum(map(math.exp, halves)), abs=1e-4))
    assert found.atoms == (1, 1) and found.unchosen == (0, 0) and found.cosine == 0.0
    alone = tallied(two_tasks(threshold=0.2), [[2.0, 0.0]])
    assert alone.unchosen == (0, 1)  # its weight is silenced
    assert tallied(two_tasks(threshold=0.0), [[2.0, 0.0]]).unchosen == (0, 0)


def test_many_tokens_and_few_are_counted_alike():
    """Few are answered by one operation, unless somebody watches."""
    layer = two_tasks(threshold=0.2)
    tokens = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).tolist()
    whole, parts = (Tally(layer.task_ends, Table(1, 2, CPU)) for _ in range(2))
    for tally, pieces in ((whole, [tokens]), (parts, [tokens[:70], tokens[70:71], tokens[71:]])):
        with torch.no_grad(), watching({"q": layer}, lambda name, w, t=tally: t.add(0, w)):
            for piece in pieces:
                layer(torch.tensor(piece))
    assert result("q", [whole], [None]) == result("q", [parts], [None])


def test_a_token_that_is_not_a_number_is_unanswered():
    nan = torch.tensor([[math.nan]])
    tally = Tally([0, 1], Table(1, 1, CPU))
    tally.add(0, Weights(torch.tensor([[7]]), nan, nan))
    found = result("q", [tally], [None])
    assert (found.weight, found.unanswered, found.unchosen) == (((0.0,),), (1,), (1,))


def test_the_largest_cosine_is_between_new_and_older_keys():
    layer = two_tasks(threshold=0.2)
    layer.asked.memory.grow([(torch.tensor([[3.0, 4.0], [-5.0, 0.0]]), torch.ones(2, 3))])
    assert newest_cosine(layer) == pytest.approx(0.8)


def test_experts_by_hand():
    method, model = built("moe_lora")
    for i in range(2):
        begin(method, model, i, A=[[1.0]], B=[[1.0]])
        method.end_task(i, no_look)
    with torch.no_grad():
        model.layer.router.copy_(torch.tensor([[0.0], [LN3], [9.0]]))
    (name,) = linears = routed_linears(model)
    tally = Tally(linears[name].task_ends, Table(1, 2, CPU))
    with torch.no_grad(), watching(linears, lambda name, weights: tally.add(0, weights)):
        model(torch.ones(4, 1))
    found = result(name, [tally], [None])
    assert found.weight == ((1.0, 3.0),) and found.atoms == (1, 1)
    assert found.effective[0] == pytest.approx(4 * 4 / 3**0.75, abs=1e-3)


def test_methods_say_whether_they_route():
    for name in METHODS:
        method, model = METHODS[name](config_of(name), seed=0), tiny_t5()
        if name not in ("any_ssr", "gain_lora", "rail"):  # no method of these has experts
            method.build(model)
            assert bool(routed_linears(model)) == method.routes, name


ONE = LinearRouting(
    name="q",
    tokens=(10, 20),
    weight=((5.0, 2.5), (4.0, 12.0)),
    unanswered=(1, 0),
    effective=(20.0, 60.0),
    atoms=(8, 8),
    unchosen=(0, 3),
    cosine=0.25,
)
OTHER = replace(ONE, name="k", weight=((10.0, 0.0), (0.0, 20.0)), cosine=None, unchosen=(1, 0))
FOUND = TaskRouting(tasks=("topic", "mood"), examples=(3, 3), linears=(ONE, OTHER))


def test_shares_and_means_by_hand():
    assert FOUND.shares == [[75.0, 12.5, 12.5], [10.0, 80.0, 10.0]]
    assert FOUND.own == [75.0, 80.0] and FOUND.unanswered == [10.0, 0.0]
    assert FOUND.effective == [2.0, 3.0] and FOUND.atoms == [16, 16]
    assert FOUND.metrics() == {
        "routing/own": 77.5,
        "routing/unanswered": 5.0,
        "routing/effective_atoms": 2.5,
        "routing/unchosen_atoms": 4.0,
        "routing/largest_key_cosine": 0.25,
    }
    assert FOUND.to_csv().splitlines()[1:3] == [",topic,75.0,12.5,12.5", ",mood,10.0,80.0,10.0"]
    assert FOUND.to_csv().splitlines()[-1] == "k,mood,0.0,100.0,0.0"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tasks": ["mood", "topic"]}, "not the first 2"),
        ({"linears": []}, "lacks numbers"),
        ({"linears": [asdict(replace(ONE, tokens=(10, 0)))]}, "lacks numbers"),
        ({"linears": [asdict(replace(ONE, weight=((5.0,), (4.0,))))]}, "lacks numbers"),
        ({"linears": [{"name": "q"}]}, "linears.0.tokens: field required"),
        ({"examples": "3"}, "examples: "),
    ],
)
def test_a_broken_file_is_refused(tmp_path, change, says):
    path = routing_path(tmp_path, 1)
    assert read_routing(tmp_path, FOUND.tasks, 1) is None
    path.parent.mkdir()
    path.write_text(to_json(FOUND))
    assert read_routing(tmp_path, [*FOUND.tasks, "place"], 1) == FOUND
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=rf"after_001.json: .*{says}"):
        read_routing(tmp_path, FOUND.tasks, 1)


@pytest.fixture(scope="module")
def learned():
    """The demo's base with a memory of two tasks that is drawn."""
    base = language_model.load(ModelConfig(), {"zero_optimization": {"stage": 0}})
    method = METHODS["moram"](config_of(atoms_per_task=4, dropout=0), seed=0, num_tasks=2)
    method.build(base.model)
    draw(method)
    return base, method


def draw(method):
    for i in range(2):
        generator = torch.Generator().manual_seed(i)
        shapes = method.shapes(i, method.layers).items()
        method.load_task(i, {n: 0.2 * torch.randn(s, generator=generator) for n, s in shapes})


def context_of(learned, folder, observe="routing"):
    base, method = learned
    return make_context(
        config=RunConfig(
            method=config_of(),
            eval=EvalConfig(answers="generate,labels"),
            record=RecordConfig(observe=observe),
        ),
        benchmark=BENCHMARK,
        method=method,
        engine=SimpleNamespace(module=base.model, eval=base.model.eval),
        base=base,
        folder=folder,
    )


def files(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_observing_changes_no_bit_and_survives_a_stop(learned, tmp_path):
    seen, unseen = tmp_path / "seen", tmp_path / "unseen"
    Evaluator(context_of(learned, seen), BENCHMARK)(1)
    Evaluator(context_of(learned, unseen, "none"), BENCHMARK)(1)
    found, without = files(seen), files(unseen)
    assert {"scores.json", "scores.labels.json"} <= {*without}
    row = found.pop("observe/after_001.json")
    assert found == without

    routing = read_routing(seen, ["topic", "mood"], 1)
    assert routing.examples == (3, 3) and len(routing.linears) == len(learned[1].layers)
    assert all(0 < sum(shares) <= 100 + 1e-6 for shares in routing.shares)
    assert routing.atoms == [4 * len(learned[1].layers)] * 2

    # A stop before the first score: the row is there, and is not made again.
    (seen / "scores.json").unlink()
    (seen / "scores.labels.json").unlink()
    routing_path(seen, 1).write_bytes(row + b"\n")
    Evaluator(context_of(learned, seen), BENCHMARK)(1)
    assert routing_path(seen, 1).read_bytes() == row + b"\n"
    # A stop before the row: it is made, with the same bits.
    (seen / "scores.json").unlink()
    routing_path(seen, 1).unlink()
    Evaluator(context_of(learned, seen), BENCHMARK)(1)
    assert routing_path(seen, 1).read_bytes() == row


def test_a_sample_is_bounded_and_spread(learned, tmp_path, monkeypatch):
    many = BENCHMARKS["demo"](Source(order="topic,mood", limit_train=4, limit_eval=48))
    observer = Observer(context_of(learned, tmp_path), many)
    test = many.tasks[0].test
    assert observer._sample(0) == list(test[::3])
    monkeypatch.setattr("eval.measure.observe.TOKENS", 100)
    short = Observer(context_of(learned, tmp_path), many)._sample(1)
    assert short == list(many.tasks[1].test[::3][: len(short)]) and 1 <= len(short) < 6
    monkeypatch.setattr("eval.measure.observe.TOKENS", 1)
    assert len(Observer(context_of(learned, tmp_path), many)._sample(1)) == 1


def test_a_row_before_training_and_a_method_without_atoms_are_not_observed(learned, tmp_path):
    observer = Observer(context_of(learned, tmp_path), BENCHMARK)
    model = learned[0].model
    assert observer.is_wanted(0, model) and not observer.is_wanted(-1, model)
    assert not observer.is_wanted(0, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("num_tasks", "rows"),
    [
        (1, [0]),
        (16, list(range(16))),
        (17, list(range(0, 17, 2))),
        (1000, list(range(54, 1000, 63))),
    ],
)
def test_at_most_16_rows_of_a_long_sequence_are_observed(learned, tmp_path, num_tasks, rows):
    long = replace(BENCHMARK, tasks=tuple([BENCHMARK.tasks[0]] * num_tasks))
    observer, model = Observer(context_of(learned, tmp_path), long), learned[0].model
    assert [row for row in range(num_tasks) if observer.is_wanted(row, model)] == rows


def test_long_observing_reports_its_progress(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "QUIET_S", -1)
    observer = Observer(context_of(learned, tmp_path), BENCHMARK)
    said, places = [], []
    observer.say, observer.watchdog = said.append, SimpleNamespace(at=places.append)
    rows = range(len(BENCHMARK.tasks))
    observer(rows[-1], learned[0].model, "after the last task")
    count = sum(len(observer._sample(i)) for i in rows)
    what = "whose atoms answer after the last task"
    assert said == [f"{what}: {k}/{count}" for k in range(count)]
    assert places == [what] * count


def test_both_stacks_of_an_encoder_decoder_are_read():
    model = tiny_t5(vocab_size=1024)
    method = METHODS["moram"](config_of(atoms_per_task=4, dropout=0), seed=0, num_tasks=2)
    method.build(model)
    draw(method)
    tokens = {}
    tokenizer = language_model.load_tokenizer(ModelConfig())
    tokenizer.add_eos_token = True
    task = BENCHMARK.tasks[0]
    family = family_of_model(model)
    encoded = family.encode_training(tokenizer, task.test[0], task)
    with watching(method.layers, lambda name, w: tokens.update({name: len(w.index_TK)})):
        family.read(model.eval(), tokenizer, task.test[0], task)
    assert {*tokens} == {*method.layers}
    for name, count in tokens.items():
        row = encoded.source if family.reads_source(name) else encoded.tokens
        assert count == len(row), name


def test_both_towers_of_a_clip_are_read(tmp_path):
    model, task = tiny_clip(), draw_task(tmp_path)
    family = family_of_model(model)
    method = METHODS["moram"](config_of(atoms_per_task=4, dropout=0), seed=0, num_tasks=2)
    method.build(family.prepared(model))
    draw(method)
    tokens = {}
    with watching(method.layers, lambda name, w: tokens.update({name: len(w.index_TK)})):
        family.read(model.eval(), reader(), task.test[0], task)
    text = task.texts[task.labels.index(task.test[0].references[0])][0]
    assert {*tokens} == {*method.layers}
    for name, count in tokens.items():
        of_text = len(reader().encode_text(text))
        assert count == (family.picture_tokens if family.reads_source(name) else of_text), name


def test_linears_of_a_long_sequence_share_a_table(learned, tmp_path, monkeypatch):
    """What all linears have together is the same, and the file does not grow with them."""
    Evaluator(context_of(learned, tmp_path / "each"), BENCHMARK)(1)
    monkeypatch.setattr(observe, "TABLES", 4 * len(learned[1].layers) - 1)
    Evaluator(context_of(learned, tmp_path / "shared"), BENCHMARK)(1)
    each, shared = (
        read_routing(tmp_path / name, ["topic", "mood"], 1) for name in ("each", "shared")
    )
    assert [one.name for one in shared.linears] == [ALL_LINEARS] and len(each.linears) > 1
    for row, other in zip(shared.shares, each.shares, strict=True):
        assert row == pytest.approx(other, abs=0.01)  # a table has four decimals
    assert shared.metrics() == pytest.approx(each.metrics(), abs=0.01)
    assert (shared.atoms, shared.unchosen) == (each.atoms, each.unchosen)
