"""Presets: which settings a name stands for, what wins over them, and who has one."""

from __future__ import annotations

import pytest

from launch.flags import read_flags, train_flags
from moram_dist import config_io
from moram_dist.config import RunConfig
from moram_dist.methods import METHODS
from moram_dist.presets import RECOMMENDED, preset_settings
from moram_dist.registry import InputError

ELSEWHERE = "--benchmark trace"


def config(words: str) -> RunConfig:
    return read_flags((), train_flags(words.split()))[0]


def changed(run: RunConfig) -> dict:
    """Fields that differ from the defaults, but for where the tasks come from."""
    of_method = config_io.build({"method": run.method.method})
    default = config_io.flat(of_method) | {"method.method": "moram"}
    return {
        name.split(".")[1]: value
        for name, value in config_io.flat(run).items()
        if value != default[name] and not name.startswith(("data.", "record."))
    }


def test_recommended_settings_end_as_plain_ones():
    assert changed(config(f"{ELSEWHERE} --preset recommended")) == RECOMMENDED["moram"]


def test_published_settings_are_the_defaults_and_those_of_every_benchmark_but_the_demo():
    assert changed(config("--preset published")) == {}
    assert changed(config(ELSEWHERE)) == {}
    assert config("") == config("--preset recommended")
    assert changed(config("--benchmark demo")) == RECOMMENDED["moram"]


def test_a_flag_and_a_recipe_win(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: {temperature: 0.5}\n")
    run = config(f"--preset recommended --recipe {recipe} --target_modules q_proj")
    assert (run.method.temperature, run.method.target_modules) == (0.5, "q_proj")
    assert run.train.learning_rate == RECOMMENDED["moram"]["learning_rate"]


def test_the_recipe_says_which_method_and_benchmark(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("benchmark: trace\nmethod: inc_lora\n")
    assert "recall" not in changed(config(f"--recipe {recipe}"))
    run = config(f"--recipe {recipe} --preset recommended")
    assert run.eval.recall == RECOMMENDED["inc_lora"]["recall"]
    assert "temperature" not in config_io.to_dict(run)["method"]


def test_a_run_that_was_written_down_stays_what_it_was(tmp_path):
    run = config("--preset published --output_dir x")
    (tmp_path / "run.yaml").write_text(str(config_io.to_dict(run)))
    assert config(f"--recipe {tmp_path / 'run.yaml'}") == run


def test_nothing_is_recommended_for_other_methods():
    assert changed(config("--method ewc")) == {"method": "ewc"}
    with pytest.raises(InputError, match="says nothing of --method ewc; it is there for moram, "):
        config("--method ewc --preset recommended")
    with pytest.raises(InputError, match="unknown --preset 'best'; known: published, recommended"):
        config("--preset best")


def test_methods_that_grow_and_may_choose_recall_by_prefix():
    free = {
        name
        for name in METHODS
        if METHODS[name].keeps_prefixes and not (METHODS[name].recall or METHODS[name].eval_rows)
    }
    assert set(RECOMMENDED) == free
    for method, settings in RECOMMENDED.items():
        assert config_io.build({"method": method}, under=settings).eval.recalls == ("prefix", "all")


def test_the_benchmark_decides_where_no_preset_is_given():
    assert preset_settings(None, method="moram", benchmark="demo") == RECOMMENDED["moram"]
    assert preset_settings(None, method="moram", benchmark="superni") == {}
