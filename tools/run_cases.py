"""Run the collected failing inputs and report for each whether the program now handles it.

    python tools/run_cases.py --cases DIR [--only NAME...]

DIR contains ``faults/<name>/run.sh`` and ``models/<name>/`` with a README (line ``command:``).
Prints one line per case: ok, FAULT with the finding, or skipped with the reason. Exit code 1 if
there is a fault. Each case runs in its own folders, with a time limit.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LIMIT_S = 600

UNCAUGHT = r"Traceback|^(?!error)[\w.]*(Error|Exception|Warning): "
"""Matches an uncaught exception: its trace-back, or its last line."""


@dataclass(frozen=True)
class Expected:
    """The expected output of a case."""

    codes: str | None = None
    """Every ``exit code N`` of the output, joined by spaces; None: it prints none."""

    has: tuple[str, ...] = ()
    """Regular expressions that must be found."""

    lacks: tuple[str, ...] = ()
    """Regular expressions that must not be found, in addition to ``UNCAUGHT``."""

    needs: str | None = None
    """A program that it needs to run."""


REFUSED = Expected("2", (r"^error",))
TRAINED = Expected("0")

FAULTS = {
    "bad_uri_leaves_a_folder": Expected("2", ("cannot access 'r'",)),
    "base_file_broken": Expected("2 2", (r"model\.safetensors",)),
    "base_missing_tensors": Expected("2", (r"layers\.1\.",)),
    "ds_config_library_errors": Expected("2 2 2 2 2 2"),
    "ds_config_unknown_key": Expected("2", ("zero_optimisation",)),
    "epochs_that_round_to_no_step": Expected("0", (r"\"step\": 0, .*train/loss",)),
    "eval_out_cannot_be_written": Expected("0", (r"(?s)error.*error",)),
    "eval_report_files": Expected(None, (r"(?s)(error: .*){4}",)),
    "flags_tracebacks": Expected("2 2 2 2 2"),
    "folders_never_synced": Expected(None, (r"fsync\(\d+<.*/r>",), needs="strace"),
    "full_disk_at_the_start": Expected("4"),
    "math_hundred": Expected(None, (r"^\}$",)),
    "memory_manifest_types": Expected(None, (r"(?s)(error: .*){5}",)),
    "metrics_line_cut_in_a_character": TRAINED,
    "mlflow_next_start_sends_nothing": Expected("0 0", (r"^ml\.db$",)),
    "output_dir_symlinks": Expected(None, ("^precious$",)),
    "password_is_kept": Expected("0", lacks=("s3cr3t",)),
    "path_that_is_no_utf8": Expected("0|2"),
    "prompt_beyond_positions": Expected("2", ("positions",)),
    "resume_other_base_beyond_first_megabyte": REFUSED,
    "resume_other_base_in_first_task": REFUSED,
    "resume_other_data": Expected("2", ("task a",)),
    "resume_task_renamed": REFUSED,
    "resume_unknown_setting": Expected("2", ("optimizer",)),
    "steps_beyond_a_million": Expected(None, (r"1000002.*\] 1000002",)),
    "stop_watch_beyond_1024_descriptors": Expected(None, lacks=("select",)),
    "submit_newline_runs_as_shell": Expected(None, ("cannot access 'PWNED'",)),
    "target_modules_typo_in_list": Expected("2", ("vproj",)),
    "tracking_json_empty": TRAINED,
    "yaml_values": Expected("2 2 2 2", (r"(?s)(error.*){6}",)),
}

MODELS = {
    "adapted_linear_bias_jamba": Expected("0|2", (r"x_proj|dt_proj|out_proj",)),
    "adapted_linear_bias_mamba2": Expected("0|2", (r"out_proj",)),
    "attention_partial_opt": Expected("0", (r"out_proj",)),
    "attention_partial_phi3": Expected("0", (r"qkv_proj",)),
    "bert_as_causal": Expected("2", ("causal",)),
    "collide": TRAINED,
    "conv1d_gpt2": Expected("0|2", ("c_attn|Conv1D",)),
    "eos_in_answer": Expected("0", ("</s>|end token|end-of-sequence",)),
    "generation_min_new": Expected("0", (r"topic\s+100\.00",)),
    "generation_static_cache": TRAINED,
    "pad_id_out_of_range": Expected("0|2"),
    "positions_eval_opt": Expected("2", ("positions",)),
    "positions_train_opt": Expected("2", ("positions",)),
    "quantised_gptq": Expected("2", ("quantis",)),
    "sdpa_default_bloom": TRAINED,
    "sdpa_default_gemma2": TRAINED,
    "sdpa_default_mamba": Expected("0|2", lacks=("scaled_dot_product",)),
    "sqlite_path_question_mark": Expected("0|2"),
    "stdout_ascii": TRAINED,
    "tokenizer_lfs": Expected("2", ("lfs",)),
    "vision_tower_adapted": Expected("0", lacks=(r"adapted:.*vision_tower",)),
    "weights_lfs_pointer": Expected("2", ("lfs",)),
    "weights_missing_shard": Expected("2", ("model-00002-of-00002",)),
    "zero_steps": Expected("0", ("takes one step",)),
}
"""The cases of the folder models/ whose README has one command that runs unchanged."""


def run_fault(folder: Path, where: Path) -> str:
    """Standard output and error of a case's script, in ``where``."""
    environment = os.environ | {"REPO": str(ROOT), "TMPDIR": str(where)}
    return _run(["bash", str(folder / "run.sh")], environment)


def run_model(folder: Path, where: Path) -> str:
    """Output of the command in a case's README, with its run directories in ``where``."""
    text = (folder / "README").read_text(encoding="utf-8")
    found = re.search(r"^command:\s*(.*)$", text, re.MULTILINE)
    if found is None:
        return "no command"
    command = found[1].partition("   #")[0]
    command = command.replace("../shared/cases", shlex.quote(str(folder.parents[1])))
    command = command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    command = command.replace("runs/", f"{shlex.quote(str(where))}/")
    return _run(["bash", "-c", f"{command}; echo exit code $?"], dict(os.environ))


def _run(command: list[str], environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            timeout=LIMIT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT_S} s"
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def judge(expected: Expected, output: str) -> str | None:
    """The fault of an output; None if it is as expected."""
    codes = " ".join(re.findall(r"exit code (\d+)", output.replace("(killed: exit code", "")))
    if expected.codes is not None and codes not in expected.codes.split("|"):
        return f"exit codes {codes or 'none'}, expected {expected.codes}"
    for pattern in expected.has:
        if not re.search(pattern, output, re.MULTILINE):
            return f"nothing like {pattern!r}"
    for pattern in (UNCAUGHT, *expected.lacks):
        if found := re.search(pattern, output, re.MULTILINE):
            return f"holds {found[0]!r}"
    return None


def main() -> int:
    """Run the cases. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=None)
    args = parser.parse_args()
    kinds: list[tuple[str, dict[str, Expected], Callable[[Path, Path], str]]] = [
        ("faults", FAULTS, run_fault),
        ("models", MODELS, run_model),
    ]
    counts = {"ok": 0, "FAULT": 0, "skipped": 0}
    for kind, table, run in kinds:
        for folder in sorted((args.cases.resolve() / kind).iterdir()):
            if folder.name.startswith("_") or (args.only and folder.name not in args.only):
                continue
            expected = table.get(folder.name)
            reason = ""
            if expected is None:
                state, reason = "skipped", "has a test of its own, not a command"
            elif expected.needs and not shutil.which(expected.needs):
                state, reason = "skipped", f"needs {expected.needs}"
            else:
                with tempfile.TemporaryDirectory() as where:
                    output = run(folder, Path(where))
                reason = judge(expected, output) or ""
                state = "FAULT" if reason else "ok"
                if reason:
                    reason += "\n    " + "\n    ".join(output.strip().splitlines()[-8:])
            counts[state] += 1
            print(f"{state:8} {kind}/{folder.name}  {reason}".rstrip(), flush=True)
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["FAULT"] else 0


if __name__ == "__main__":
    sys.exit(main())
