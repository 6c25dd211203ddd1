"""A second start on a run directory: what may differ, what may not, and how that is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from launch.settings import deepspeed_config, resolve
from moram_dist import config_io
from moram_dist.atoms.manifest import Manifest
from moram_dist.methods.restore import load_memory
from moram_dist.models import language_model
from moram_dist.models.identity import older_fingerprints
from moram_dist.models.tokenizer_identity import has_files_of
from moram_dist.registry import InputError
from moram_dist.train.inputs import gather, read_inputs
from moram_dist.train.run_dir import RunDir
from tests.helpers.tiny import tiny_model
from tests.unit.test_identity import change_last_byte, set_rope

LISTING = """
- {{name: a, train: a/train.jsonl, test: a/test.jsonl, labels: [pet, tool]{a}}}
- {{name: b, train: b/train.jsonl, test: b/test.jsonl}}
"""


class Start:
    """The command on one run directory, up to its first step."""

    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "data"
        self.model = shutil.copytree(language_model.DEMO_BASE, folder / "base")
        self.ds_path = folder / "ds.json"
        self.ds_path.write_text('{"zero_optimization": {"stage": 3}}')
        for name in ("a", "b"):
            for split, count in (("train", 8), ("test", 4)):
                self.write(name, split, [f"{name} {split} {i}?" for i in range(count)])
        self.list()

    def write(self, task, split, prompts):
        path = self.data / task / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        answers = [("pet", "tool")[i % 2] for i in range(len(prompts))]
        lines = [
            json.dumps({"prompt": prompt, "answer": answer})
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        path.write_text("\n".join(lines))

    def list(self, text=LISTING, a=""):
        (self.data / "tasks.yaml").write_text(text.format(a=a))

    def prompts(self, task, split):
        lines = (self.data / task / f"{split}.jsonl").read_text().splitlines()
        return [json.loads(line)["prompt"] for line in lines]

    def __call__(self, **flags):
        """What was said. Raises InputError where the run is not the same."""
        said: list[str] = []
        flags = {
            "benchmark": "jsonl",
            "data_dir": self.data,
            "model": self.model,
            "output_dir": self.folder / "run",
            "dtype": "fp32",
        } | flags
        config, benchmark = resolve(config_io.build(flags))
        ds_config = deepspeed_config(config, self.ds_path, world_size=1)
        run_dir = RunDir(config.run_dir)
        run_dir.check(config)
        tokenizer = language_model.load_tokenizer(config.model)
        inputs = gather(config, benchmark, ds_config, tokenizer, said.append)
        run_dir.check_inputs(inputs, config.model)
        run_dir.describe(config, benchmark, ds_config, world_size=1)
        run_dir.record_inputs(inputs, said.append)
        return said

    def refused(self, **flags):
        """The message; nothing in the run directory may change."""
        before = {path: path.read_bytes() for path in (self.folder / "run").rglob("*.*")}
        with pytest.raises(InputError) as error:
            self(**flags)
        assert {path: path.read_bytes() for path in (self.folder / "run").rglob("*.*")} == before
        assert "\n" not in str(error.value)
        return str(error.value)

    def learned(self, *names, base):
        """Publish a memory of these tasks."""
        memory = RunDir(self.folder / "run").memory
        manifest = Manifest(method="moram", settings={}, base=base, modules=["q"])
        for name in names:
            manifest = memory.publish(manifest, name, {})

    def older(self):
        """As though it had been begun before there was such a record."""
        (self.folder / "run" / "inputs.json").unlink()


@pytest.fixture
def start(tmp_path):
    start = Start(tmp_path)
    assert start() == []
    return start


def test_the_same_is_accepted_wherever_it_is(start):
    assert start() == []
    start.data = start.data.rename(start.folder / "moved")
    start.model = start.model.rename(start.folder / "other name")
    (start.data / "a" / "train.jsonl").rename(start.data / "a" / "t.jsonl")
    start.list(LISTING.replace("a/train", "a/t"))
    (start.model / "README.md").write_text("other")
    assert start() == []
    stage = {"zero_optimization": {"stage": 2}}
    start.ds_path.write_text(json.dumps(stage))
    assert start(attention="eager", log_every=3, micro_batch_size=1, seed=0) == []
    assert start(dtype="auto") == []


def task_a(start):
    start.write("a", "test", [*start.prompts("a", "test")[:-1], "another?"])


def more(start):
    start.write("a", "train", [*start.prompts("a", "train"), "one more?"])


def turned(start):
    prompts = start.prompts("b", "train")
    start.write("b", "train", [*prompts[2:], *prompts[:2]])


def answers(start):
    path = start.data / "b" / "test.jsonl"
    path.write_text(path.read_text().replace("tool", "hammer"))


def swapped(start):
    start.list("\n".join(reversed(LISTING.strip().splitlines())))


def renamed(start):
    start.list(LISTING.replace("name: a", "name: z"))


def added(start):
    start.list(LISTING + "- {{name: c, train: b/train.jsonl, test: b/test.jsonl}}\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (task_a, "(task a, test split: 4 examples then, 4 now, other content or order)"),
        (more, "(task a, train split: 8 examples then, 9 now)"),
        (turned, "(task b, train split: 8 examples then, 8 now, other content or order)"),
        (answers, "(task b, test split: 4 examples then, 4 now, other content or order)"),
        (swapped, "(tasks were a, b; now b, a)"),
        (renamed, "(tasks were a, b; now z, b)"),
        (added, "(tasks were a, b; now a, b, c)"),
        (
            lambda start: start.list(LISTING.replace("[pet, tool]", "[tool, pet]")),
            '(task a: labels was ["pet", "tool"], now ["tool", "pet"])',
        ),
        (
            lambda start: start.list(a=", metric: exact_match"),
            '(task a: metric was "exact_match_normalised", now "exact_match")',
        ),
        (lambda start: start.list(a=", epochs: 2"), "(task a: epochs was 1, now 2)"),
        (lambda s: s.list(a=", max_answer_tokens: 8"), "(task a: max_answer_tokens was 512, now 8"),
        (lambda s: s.list(a=', separator: "\\n"'), r'(task a: separator was " ", now "\n")'),
        (lambda s: change_last_byte(s.model / "model.safetensors"), "(base: model.safetensors is "),
        (lambda s: set_rope(s.model / "config.json"), "(base: config.json is another file)"),
        (
            lambda s: s.ds_path.write_text('{"communication_data_type": "fp16"}'),
            '(--ds_config: communication_data_type was null, now "fp16")',
        ),
    ],
)
@pytest.mark.parametrize("published", [0, 1, 2])
def test_other_content_is_named(start, published, change, said):
    """Before the first task is published, in the middle, and when all tasks are done."""
    record = json.loads((start.folder / "run" / "inputs.json").read_text())
    base = {"name": "base", "fingerprint": record["base"]["fingerprint"]}
    start.learned(*"ab"[:published], base=base)
    change(start)
    assert said in start.refused()


def test_files_of_a_tokenizer_that_are_as_they_were(start):
    then = read_inputs(start.folder / "run" / "inputs.json").tokenizer
    assert has_files_of(str(start.model), then)
    path = start.model / "special_tokens_map.json"
    before = path.read_bytes() if path.exists() else None
    path.write_text("{}")
    assert not has_files_of(str(start.model), then)  # a new one counts too
    path.unlink() if before is None else path.write_bytes(before)
    assert has_files_of(str(start.model), then)
    (start.model / "tokenizer_config.json").unlink()
    assert not has_files_of(str(start.model), then)


def test_another_tokenizer_is_named(start):
    path = start.model / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"chat_template": "never used", "model_max_length": 9}))
    assert start() == []
    path.write_text(json.dumps(values | {"eos_token": "<unk>"}))
    assert "(tokenizer: tokenizer_config.json is another file)" in start.refused()


def test_another_precision_is_named(start):
    assert "(precision was float32, now bfloat16 (--dtype fp32 is as it was))" in start.refused(
        dtype="bf16"
    )


def test_many_differences_are_counted(start):
    for task in "ab":
        for split in ("train", "test"):
            start.write(task, split, ["other?"])
    start.list(a=", metric: exact_match, epochs: 3, max_answer_tokens: 3, separator: ''")
    assert start.refused().endswith("; and 2 more); choose another folder or the same input")


def test_epochs_of_tasks_do_not_count_where_the_user_gives_them(tmp_path):
    start = Start(tmp_path)
    start(epochs=2)
    start.list(a=", epochs: 7")
    assert start(epochs=2) == []


def test_settings_of_other_methods_do_not_refuse(start):
    assert start(ewc_weight=1, replay_budget=3) == []
    assert "top_k: 8 -> 4" in start.refused(top_k=4)


def test_zero_shot_depends_on_no_training(tmp_path):
    start = Start(tmp_path)
    start(method="zero_shot")
    more(start)
    assert start(method="zero_shot", learning_rate=1, epochs=3, batch_size=5, top_k=3) == []
    task_a(start)
    assert "task a, test split" in start.refused(method="zero_shot")


def test_a_memory_of_other_tasks_or_another_base_is_refused(start):
    record = json.loads((start.folder / "run" / "inputs.json").read_text())
    start.learned("z", base={"name": "x", "fingerprint": record["base"]["fingerprint"]})
    assert "holds other tasks than this run: tasks were z; now a" in start.refused()
    start.learned("a", base={"name": "x-7b", "fingerprint": "0" * 64})
    assert "memory.json was trained on x-7b, and --model" in start.refused()


def test_a_damaged_record_is_refused(start):
    path = start.folder / "run" / "inputs.json"
    values = json.loads(path.read_text())
    for wrong, said in (
        (values | {"version": 2}, "has version 2"),
        (values | {"future": 1}, "future: "),
        (values | {"precision": 32}, "precision: "),
        ([], "inputs.json"),
    ):
        path.write_text(json.dumps(wrong))
        assert said in start.refused()


# Runs of older versions, which have no inputs.json.


def test_an_older_run_goes_on_and_gets_the_record(start):
    base = language_model.check(config_io.build({"model": str(start.model)}).model)
    for fingerprint in older_fingerprints(str(start.model), base):
        start.older()
        shutil.rmtree(start.folder / "run" / "memory", ignore_errors=True)
        start.learned("a", base={"name": "base", "fingerprint": fingerprint})
        (line,) = start()
        assert "was started by an older version of this program" in line
        assert start() == []
    task_a(start)
    assert "task a, test split" in start.refused()


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (more, {}, "(task a, train split: 8 examples then, 9 now)"),
        (swapped, {}, "(tasks were a, b; now b, a)"),
        (lambda s: s.list(a=", metric: exact_match"), {}, "(task a: metric was "),
        (lambda s: None, {"dtype": "bf16"}, "(precision was float32, now bfloat16"),
        (lambda s: setattr(s, "model", "demo"), {}, "holds another configuration (model: "),
    ],
)
def test_of_an_older_run_what_it_recorded_is_compared(start, change, flags, said):
    start.older()
    change(start)
    assert said in start.refused(**flags)


def test_a_start_that_was_killed_before_the_record_is_no_older_run(start):
    start.older()
    task_a(start)
    assert start() == []


def test_a_memory_of_a_newer_version_is_refused_by_name(start):
    path = start.folder / "run" / "memory" / "memory.json"
    record = json.loads((start.folder / "run" / "inputs.json").read_text())
    start.learned("a", base={"name": "x", "fingerprint": record["base"]["fingerprint"]})
    assert start() == []  # settings that it is too old to have had their defaults
    manifest = json.loads(path.read_text())
    for settings, said in (
        ({"heads": 3}, "does not know: method.heads"),
        ({"top_k": 3}, "was learned with other settings (top_k: 3 -> 8)"),
    ):
        path.write_text(json.dumps(manifest | {"settings": settings}))
        assert said in start.refused()
    path.write_text(json.dumps(manifest | {"settings": {"ewc_weight": 3}}))
    assert start() == []


def test_a_memory_of_a_newer_version_is_not_loaded(tmp_path):
    files = RunDir(tmp_path).memory
    base = {"name": "x", "fingerprint": "0" * 64}
    manifest = Manifest(method="moram", settings={"heads": 3}, base=base, modules=[])
    files.publish(manifest, "a", {})
    with pytest.raises(InputError, match=r"memory\.json: settings: heads"):
        load_memory(tiny_model(), tmp_path)


def test_a_run_yaml_that_was_cut_short(start):
    path = start.folder / "run" / "run.yaml"
    path.write_text(path.read_text()[: path.read_text().index("\ntrain:")])
    assert "run.yaml lacks train, eval: it was cut short" in start.refused()


def test_names_of_a_base_say_what_was_asked_for(start):
    config, benchmark = resolve(config_io.build({}))
    tokenizer = language_model.load_tokenizer(config.model)
    inputs = gather(config, benchmark, {}, tokenizer, print)
    assert inputs.base.name == "demo"
    assert (
        replace(inputs.base, name="base")
        == gather(*resolve(config_io.build({"model": str(start.model)})), {}, tokenizer, print).base
    )
