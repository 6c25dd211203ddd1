"""--loss_turns through a run's settings: its default, what is recorded, older runs, refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from launch.settings import resolve
from moram_dist import config_io
from moram_dist.data.encode import encode_training
from moram_dist.models.language_model import DEMO_BASE, load_tokenizer
from moram_dist.registry import InputError
from moram_dist.train.run_dir import RunDir
from tests.helpers.chats import CHATML
from tests.helpers.tiny_t5 import save_tiny_t5

CHAT = [("user", "A cat?"), ("assistant", "pet"), ("user", "A saw?"), ("assistant", "tool")]


class Run:
    """A run on chats, up to the point where work would start."""

    def __init__(self, folder):
        self.folder = folder
        self.model = shutil.copytree(DEMO_BASE, folder / "base")
        (self.model / "chat_template.jinja").write_text(CHATML)
        record = {"messages": [{"role": role, "content": text} for role, text in CHAT]}
        (folder / "data" / "t").mkdir(parents=True)
        for split in ("train", "test"):
            (folder / "data" / "t" / f"{split}.jsonl").write_text(json.dumps(record))

    def resolved(self, **flags):
        flags = {"model": str(self.model), "data_dir": str(self.folder / "data"), **flags}
        flags = {"benchmark": "jsonl", "output_dir": str(self.folder / "run"), **flags}
        return resolve(config_io.build(flags))

    def learned(self, **flags):
        config, benchmark = self.resolved(**flags)
        tokenizer = load_tokenizer(config.model)
        found = encode_training(tokenizer, benchmark.tasks[0].train[0], benchmark.tasks[0])
        return [tokenizer.decode(found.tokens[a:b]).strip() for a, b in found.learned]

    def start(self, *, older=False, **flags):
        config, _ = self.resolved(**flags)
        saved = config_io.to_dict(config)
        if older:
            del saved["data"]["loss_turns"]
        (self.folder / "run").mkdir()
        (self.folder / "run" / "run.yaml").write_text(yaml.safe_dump(saved))

    def check(self, **flags):
        config, _ = self.resolved(**flags)
        RunDir(self.folder / "run").check(config)
        return config.data.loss_turns


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


ALL = ["pet<|im_end|>", "tool<|im_end|></s>"]
LAST = ["tool</s>"]


def test_all_turns_are_the_default(run):
    assert run.learned() == run.learned(loss_turns="all") == ALL
    assert run.learned(loss_turns="last") == LAST
    assert run.resolved()[0].data.loss_turns == "all"


def test_a_run_keeps_its_turns(run):
    run.start()
    assert run.check() == run.check(loss_turns="all") == "all"
    with pytest.raises(InputError, match=r"another configuration \(loss_turns: all -> last\)"):
        run.check(loss_turns="last")


def test_an_older_run_goes_on_with_the_last_turn(run):
    run.start(older=True)
    assert run.check() is run.check(loss_turns="last") is None
    assert run.learned() == run.learned(loss_turns="last") == LAST
    with pytest.raises(InputError, match=r"another configuration \(loss_turns: None -> all\)"):
        run.check(loss_turns="all")


def test_a_file_that_is_no_run_decides_nothing(run):
    (run.folder / "run").mkdir()
    (run.folder / "run" / "run.yaml").write_text("- 1")
    assert run.resolved()[0].data.loss_turns == "all"


def test_tasks_without_chats_have_no_turns(run, tmp_path):
    with pytest.raises(InputError, match="no task of demo has chats"):
        resolve(config_io.build({"loss_turns": "all"}))
    with pytest.raises(InputError, match="unknown --loss_turns 'first'; known: all, last"):
        run.resolved(loss_turns="first")
    assert resolve(config_io.build({}))[0].data.loss_turns is None


def test_a_t5_learns_one_answer(run, tmp_path):
    base = save_tiny_t5(tmp_path / "t5")
    (base / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(InputError, match=r"task t, train-0: .*; take --loss_turns last$"):
        run.resolved(model=str(base))
    _, benchmark = run.resolved(model=str(base), loss_turns="last")
    assert benchmark.tasks[0].train[0].references == ("tool",)
