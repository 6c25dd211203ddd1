"""A run's configuration: strict names, values by type, ranges, and what two runs differ in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from moram_dist.config import EvalConfig, RunConfig, TrainConfig
from moram_dist.config_io import SECTIONS, build, differences, fields, flat, from_saved, to_dict
from moram_dist.registry import InputError
from tests.helpers.configs import config_of


def write(path, text):
    path.write_text(text)
    return path


def test_nothing_given_is_the_default():
    assert build({}) == build({})


def test_names_are_unique_over_sections():
    kinds = [kind for section, kind in SECTIONS.items() if section != "method"]
    names = [item.name for kind in kinds for item in dataclasses.fields(kind)]
    of_methods = {name for name, (section, _) in fields().items() if section == "method"}
    assert len(names) == len(set(names)) == len(fields()) - len(of_methods)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build({}).method.top_k = 3


@pytest.mark.parametrize("name", ["top_k", "method.top_k"])
def test_bare_and_dotted_names(name):
    assert build({name: "3"}).method.top_k == 3


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("topk", "unknown flag 'topk'; did you mean 'top_k'?"),
        ("learning_rte", "did you mean 'learning_rate'?"),
        ("train.top_k", "unknown flag 'train.top_k'; did you mean 'top_k'?"),
        ("method.", "unknown flag 'method.'"),
        ("zzz", "unknown flag 'zzz';"),
    ],
)
def test_unknown_names(name, hint):
    with pytest.raises(InputError) as error:
        build({name: "1"})
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("top_k", "4", 4),
        ("top_k", 4.0, 4),
        ("seed", "1e3", 1000),
        ("alpha", "16", 16.0),
        ("learning_rate", "3e-4", 3e-4),
        ("learning_rate", "None", None),
        ("epochs", "", None),
        ("limit_train", "null", None),
        ("gradient_checkpointing", "true", True),
        ("gradient_checkpointing", "False", False),
        ("gradient_checkpointing", "0", False),
        ("gradient_checkpointing", True, True),
        ("model", "demo", "demo"),
        ("order", 3, "3"),
        ("eval_gather", True, "true"),
        ("data_dir", "a/b", Path("a/b")),
        ("splits", '{"MeetingBank": {"train": "eval"}}', {"MeetingBank": {"train": "eval"}}),
        ("splits", {"a": {"train": "b"}}, {"a": {"train": "b"}}),
    ],
)
def test_coercion(name, text, value):
    section, _ = fields()[name]
    found = getattr(getattr(build({name: text}), section), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("top_k", "2.5", "a whole number"),
        ("top_k", "many", "a whole number"),
        ("top_k", "None", "a whole number"),
        ("top_k", "inf", "a whole number"),
        ("top_k", "nan", "a whole number"),
        ("top_k", True, "a whole number"),
        ("seed", False, "a whole number"),
        *(("top_k", text, "a whole number") for text in ("1_000", "0x10", " 5 ", "５", "--4", "")),
        ("alpha", "1_0.5", "a number"),
        ("alpha", "x", "a number"),
        *((name, "nan", "a number") for name in ("alpha", "temperature", "threshold", "clip")),
        *((name, "inf", "a number") for name in ("learning_rate", "epochs", "weight_decay")),
        ("alpha", True, "a number"),
        ("alpha", [1], "a number"),
        ("gradient_checkpointing", "yes", "true or false"),
        ("splits", "[1, 2]", "a mapping"),
        ("splits", "{a: b}", "a mapping"),
        ("splits", "{", "a mapping"),
        ("model", ["a"], "str"),
    ],
)
def test_values_of_another_type(name, value, wanted):
    with pytest.raises(InputError) as error:
        build({name: value})
    assert str(error.value) == f"--{name} must be {wanted}, got {value!r}"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *((name, "0", "must be > 0") for name in ("alpha", "learning_rate", "epochs")),
        *((name, "0", "must be > 0") for name in ("batch_size", "micro_batch_size", "log_every")),
        ("micro_batch_tokens", "0", "must be > 0"),
        *((name, "-1", "must be > 0") for name in ("limit_train", "limit_eval")),
        *((name, "0", "must be > 0") for name in ("max_prompt_tokens", "max_answer_tokens")),
        ("eval_batch_size", "0", "must be > 0"),
        ("top_k", "0", "must be >= 1"),
        ("atoms_per_task", "0", "must be >= 1"),
        ("temperature", "0", "must be > 0"),
        ("threshold", "-0.1", "must be in [0, 1]"),
        ("threshold", "1.1", "must be in [0, 1]"),
        ("dropout", "1", "must be in [0, 1)"),
        ("dropout", "-0.1", "must be in [0, 1)"),
        ("warmup_ratio", "1.5", "must be in [0, 1]"),
        *((name, "-1", "must be >= 0") for name in ("seed", "weight_decay", "clip")),
        ("dtype", "fp16", "known: auto, bf16, fp32"),
        ("attention", "flash_attention", "did you mean 'flash_attention_2'?"),
        ("schedule", "cos", "did you mean 'cosine'?"),
        ("eval_rows", "none", "unknown --eval_rows 'none'"),
        ("eval_gather", "yes", "unknown --eval_gather 'yes'"),
        ("tracking", "wandb", "known: mlflow, none"),
        *((name, "1e10", "must be <= 2.14748e+09") for name in ("limit_eval", "log_every")),
        ("atoms_per_task", "1e18", "must be <= 1.04858e+06"),
        ("learning_rate", "1e300", "must be <= 1e+30"),
        ("learning_rate", "1e-300", "must be >= 1e-30"),
        ("temperature", "1e-300", "must be >= 1e-06"),
        ("wait_limit", "1e18", "must be <= 1e+06"),
        ("epochs", "1e9", "must be <= 10000"),
        ("seed", "1e19", "must be <= 9.22337e+18"),
        *(("save_every", text, "must be steps") for text in ("1e9m", "0", "nanm", "٣", "1_0", "m")),
        *((name, "a\nb", "holds '\\n'") for name in ("model", "output_dir", "order", "data_dir")),
        *((name, "a\0b", "holds '\\x00'") for name in ("model", "output_dir", "benchmark")),
        *((name, "a\udcff", "is not UTF-8") for name in ("model", "output_dir")),
        *((name, "a" * 256, "longer than a path can be") for name in ("output_dir", "data_dir")),
        ("output_dir", "a/" * 3000, "longer than a path can be"),
    ],
)
def test_values_out_of_range(name, value, said):
    with pytest.raises(InputError) as error:
        build({name: value})
    assert f"--{name}" in str(error.value) and said in str(error.value)


def test_what_is_long_is_cut():
    with pytest.raises(InputError) as error:
        build({"top_k": "x" * 1_000_000})
    assert len(str(error.value)) < 300


def test_a_run_of_an_order_of_many_tasks_has_a_name_that_a_folder_can_have():
    many = ",".join(f"task{number}" for number in range(200))
    one, other = (build({"order": order}).name for order in (many, many + "x"))
    assert len(one) == 200 and one != other and one.startswith("demo-task0+task1+")


def test_recipes_flat_and_nested_and_flags_on_top(tmp_path):
    recipe = write(tmp_path / "r.yaml", "method: {top_k: 3, alpha: 8}\nseed: 7\nepochs: 2\n")
    run = build({"alpha": "4"}, recipe)
    assert (run.method.top_k, run.method.alpha, run.train.seed, run.train.epochs) == (3, 4, 7, 2)
    assert write(tmp_path / "m.yaml", "method: sequential_lora\n")
    assert build({}, tmp_path / "m.yaml").method.method == "sequential_lora"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("topk: 3", "unknown key in {path} 'topk'; did you mean 'top_k'?"),
        ("method: {topk: 3}", "unknown key in {path} 'method.topk'"),
        ("train: {top_k: 3}", "unknown key in {path} 'train.top_k'"),
        ("- 1", "{path}: expected a mapping"),
        ("top_k: 3\ntop_k: 4", "{path}, line 2: key 'top_k' is given twice"),
        ("method: {top_k: 3}\ntop_k: 4", "{path}: 'top_k' is given twice"),
        ("top_k: 0x" + "f" * 5000, "{path}: YAML nested too deeply, with too long a number"),
        ("", "{path}: expected a mapping"),
        ("a: [", "{path}, line 1, column 5: malformed YAML"),
    ],
)
def test_bad_recipes(tmp_path, text, said):
    path = write(tmp_path / "recipe.yaml", text)
    with pytest.raises(InputError) as error:
        build({}, path)
    assert said.format(path=path) in str(error.value)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        build({}, tmp_path / "none.yaml")


def test_settings_of_other_methods_are_checked_and_left_out():
    run = build({"method": "ewc", "temperature": "0.3", "ewc_weight": "3"})
    own = {"method": "ewc", "target_modules": "attention", "atoms_per_task": 8, "alpha": 16.0}
    assert to_dict(run)["method"] == {**own, "dropout": 0.1, "ewc_weight": 3.0}
    assert run == build({"method": "ewc", "ewc_weight": 3})
    with pytest.raises(InputError, match=r"^--temperature must be > 0, got -1\.0$"):
        build({"method": "ewc", "temperature": "-1"})
    with pytest.raises(InputError, match=r"^unknown method 'ewq'; did you mean 'ewc'\?"):
        build({"method": "ewq"})


def test_a_record_may_hold_settings_of_other_methods():
    then = to_dict(build({"method": "ewc"}))
    then["method"] |= {"temperature": 0.3, "top_k": 4}  # as older versions wrote it
    assert from_saved(then, "run.yaml") == build({"method": "ewc"})


def test_a_section_checks_itself_however_it_is_made():
    with pytest.raises(InputError, match=r"^--seed must be >= 0, got -1$"):
        dataclasses.replace(build({}).train, seed=-1)
    for wrong in ({"seed": True}, {"seed": 1.0}, {"clip": False}, {"schedule": 3}):
        with pytest.raises(InputError, match=f"--{next(iter(wrong))}"):
            TrainConfig(**wrong)
    assert type(TrainConfig(clip=1).clip) is float


def test_a_run_survives_being_written_down():
    run = build({"data_dir": "x", "top_k": "3", "splits": "{a: {train: b}}", "epochs": "0.5"})
    assert build(flat(run)) == run
    assert from_saved(to_dict(run), "run.yaml") == run
    assert differences(run, run) == []


def test_differences_names_what_defines_results():
    then = build({"top_k": "3", "log_every": "5"})
    now = build({"top_k": "4", "log_every": "6", "tracking": "none", "micro_batch_size": "2"})
    assert differences(now, then) == ["top_k: 3 -> 4"]
    assert differences(now, then, {"method.top_k"}) == []


def test_a_run_from_before_a_field_or_section_was_there_had_its_default():
    then = to_dict(build({}))
    del then["method"]["alpha"], then["parallel"]
    assert from_saved(then, "run.yaml") == build({})
    now = build({"alpha": "8"})
    assert differences(now, from_saved(then, "run.yaml")) == ["alpha: 16.0 -> 8.0"]


def test_settings_of_another_version_are_named():
    then = to_dict(build({})) | {"future": {"optimizer": "lion"}, "top_k": 3}
    then["train"]["optimizer"] = "lion"
    then["train"]["top_k"] = 3  # known, but elsewhere
    with pytest.raises(InputError) as error:
        from_saved(then, "run.yaml")
    assert str(error.value).endswith(": train.optimizer, train.top_k, future, top_k")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": 3}, "run.yaml: method must be a mapping"),
        ({"method": {"top_k": "many"}}, "run.yaml: --top_k must be a whole number, got 'many'"),
        ({"method": {"top_k": 0}}, "run.yaml: --top_k must be >= 1"),
    ],
)
def test_a_damaged_record_is_named(change, said):
    with pytest.raises(InputError) as error:
        from_saved(to_dict(build({})) | change, "run.yaml")
    assert said in str(error.value)


def test_names_of_runs():
    assert build({}).name == "demo-moram-seed0"
    assert build({"order": "b,a", "seed": "2"}).name == "demo-b+a-moram-seed2"
    assert build({}).run_dir == Path("runs/demo-moram-seed0")
    assert build({"output_dir": "x"}).run_dir == Path("x")


@pytest.mark.parametrize(("method", "differs"), [("any_ssr", False), ("moram", True)])
def test_who_answered_unknown_prompts_in_an_earlier_version(method, differs):
    """Versions that recorded ``all`` where only one task can answer: such runs can be resumed."""
    then = RunConfig(method=config_of(method=method), eval=EvalConfig(unknown="all"))
    now = dataclasses.replace(then, eval=EvalConfig(unknown="likeliest"))
    found = differences(now, then)
    assert found == (["unknown: all -> likeliest"] if differs else [])
