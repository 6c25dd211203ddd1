"""Score, compare and report finished runs; no GPU needed.

    moram rescore --predictions FILE.jsonl --benchmark trace --task FOMC
    moram rescore --predictions FILE.jsonl --metric choice --labels A,B,C
    moram metrics --scores RUN/scores.json [--single_task RUN] [--multitask RUN]
    moram report --run RUN
    moram audit --benchmark trace --data_dir DIR [--out FILE.md] [--strict]
    moram compare RUN... --out DIR
    moram compare --experiment NAME --tracking_uri sqlite:///RUNS/mlflow.db

In a checkout, python eval/run.py COMMAND is the same. Results go to standard output, errors to
standard error in one line. Exit code 2: bad input. Exit code 4: a file cannot be written, as on a
full disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:  # a script: its imports start at the checkout
    checkout = str(Path(__file__).resolve().parents[1])
    runpy.run_path(checkout, {"module": "eval.run"}, "__main__")
    sys.exit()

from eval.audit.findings import Audited
from eval.continual import Scores
from eval.predictions import mean_score, read_predictions
from moram_dist.command_line import Parser, run_command, spelled
from moram_dist.config import ModelConfig
from moram_dist.files import write_atomically
from moram_dist.metrics import METRICS
from moram_dist.registry import InputError, one_of, unknown
from moram_dist.tasks import BENCHMARKS, Source
from moram_dist.tasks.rules import RULES, choose_protocol
from moram_dist.terminal import make_output_last, marked, say, say_marked
from moram_dist.values import coerce


def rescore(argv: Sequence[str]) -> None:
    """Recompute the mean score of a predictions file from its texts, and print it."""
    flags = "--benchmark --task --protocol --metric --labels"
    args = _parse(rescore, argv, "--predictions", optional=flags)
    metric, labels = _rules(args)
    predictions = read_predictions(Path(args.predictions))
    mean = mean_score(predictions, metric=metric, labels=labels)
    _print_json({"metric": metric, "score": mean, "n": len(predictions)})


def metrics(argv: Sequence[str]) -> None:
    """Print every sequence metric of a run or its scores.json; null if it was not measured.

    --single_task and --multitask name runs of these methods, for metrics that refer to them.
    """
    args = _parse(metrics, argv, "--scores", optional="--single_task --multitask")
    single_task, multitask = (
        _scores(path) if path is not None else None for path in (args.single_task, args.multitask)
    )
    _print_json(_scores(args.scores).sequence_metrics(single_task, multitask))


def report(argv: Sequence[str]) -> None:
    """Write a run's report and print its path."""
    args = _parse(report, argv, "--run")
    run = Path(args.run)
    if not os.path.isdir(run):
        raise InputError(f"--run: no such folder: {run}")
    from eval.report.write import write_report  # plots are slow to import, and only needed here

    say(str(write_report(run)))


def audit(argv: Sequence[str]) -> int:
    """Print the contents of a benchmark and the problems found in it, as Markdown.

    --model names the tokenizer, --out a .md or .json file to write. For chats, --loss_turns is all
    or last, as in training. For pictures, --shots is the number of each class that a run will train
    on. With --strict, exit code 1 if the findings include an error.
    """
    args = _parse(
        audit,
        argv,
        "--benchmark",
        optional="--data_dir --order --protocol --shots --loss_turns --model --out",
        switches="--strict",
    )
    out = Path(args.out) if args.out is not None else None
    if out is not None and out.suffix not in (".md", ".json"):
        raise InputError(f"--out {out}: expected a name that ends in .md or .json")
    if out is not None and os.path.isdir(out):
        raise InputError(f"--out {out}: is a folder")
    found, parts = _audited(args)
    say_marked(parts)
    if out is not None:
        as_json = json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False)
        write_atomically(out, (as_json if out.suffix == ".json" else marked(parts)) + "\n")
    return 1 if args.strict and found.has_errors else 0


def _audited(args: argparse.Namespace) -> tuple[Audited, list[tuple[str, bool]]]:
    """The audit of a benchmark, and its text in parts, of which some are marked."""
    # These import torch, which most other commands do not need.
    from eval.audit.benchmark import audit_benchmark
    from eval.audit.learned import parts_of_page
    from eval.audit.picture_table import picture_markdown
    from eval.audit.pictures import audit_pictures
    from eval.audit.table import markdown
    from moram_dist.data.chat import has_chats, no_chats, write_chats
    from moram_dist.families import TextFamily, family_of
    from moram_dist.models.language_model import check, load_tokenizer

    source = Source(
        data_dir=Path(args.data_dir) if args.data_dir is not None else None,
        order=args.order,
        protocol=args.protocol,
        shots=coerce("shots", args.shots, int | None),
    )
    read, model = BENCHMARKS[args.benchmark], ModelConfig()
    if args.model is not None:
        model = ModelConfig(model=args.model)
    tokenizer = load_tokenizer(model)
    family = family_of(check(model))
    benchmark = read(source)
    if any(task.pictures is not None for task in benchmark.tasks):
        if not all(isinstance(task.pictures, Path) for task in benchmark.tasks):
            raise InputError(f"--benchmark {args.benchmark}: has no files of pictures to audit")
        if args.model is not None and not family.reads_pictures:
            raise InputError(f"--model {model.model}: reads no pictures; leave --model out")
        whole = read(dataclasses.replace(source, every_picture=True))
        encoder = tokenizer if family.reads_pictures else None
        pictures = audit_pictures(benchmark, whole, encoder, say=_progress)
        return pictures, [(picture_markdown(pictures), False)]
    if not isinstance(family, TextFamily):
        raise InputError(f"--model {model.model}: reads no texts, and the benchmark is of texts")
    if args.loss_turns is not None and not has_chats(benchmark):
        raise no_chats(benchmark)
    turns = args.loss_turns or "all"
    one_of("loss_turns", turns, ("all", "last"))
    texts = audit_benchmark(
        write_chats(benchmark, tokenizer, turns, several=family.learns_turns),
        tokenizer,
        family,
        data_dir=source.data_dir,
        say=_progress,
    )
    return texts, [(markdown(texts).rstrip() + "\n", False), *parts_of_page(texts.learned)]


def _progress(line: str) -> None:
    say(line, error=True)


def compare(argv: Sequence[str]) -> None:
    """Compare methods over orders and seeds: print the tables, and write them to --out.

    Each recall of a run has its own row; --recall selects some, joined by commas.
    """
    args = _parse(
        compare,
        argv,
        optional="--experiment --tracking_uri --answers --recall --out --resamples",
        words="RUN",
    )
    if args.out is not None and os.path.exists(args.out) and not os.path.isdir(args.out):
        raise InputError(f"--out {args.out}: is no folder")
    from eval.compare.command import compare_runs, write_comparison  # numpy is only needed here

    text, comparison = compare_runs(
        [Path(word) for word in args.RUN],
        experiment=args.experiment,
        tracking_uri=args.tracking_uri,
        answers=args.answers,
        recall=args.recall,
        resamples=args.resamples,
    )
    if args.out is not None:
        write_comparison(Path(args.out), text, comparison)
    say(text, end="")


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "rescore": rescore,
    "metrics": metrics,
    "report": report,
    "audit": audit,
    "compare": compare,
}


def main(argv: Sequence[str]) -> int:
    """Run one command. Returns the exit code."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        say(__doc__.strip())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    return COMMANDS[argv[0]](argv[1:]) or 0


def _parse(
    command: Callable[[Sequence[str]], int | None],
    argv: Sequence[str],
    required: str = "",
    *,
    optional: str = "",
    switches: str = "",
    words: str = "",
) -> argparse.Namespace:
    """Parse flags that take one value each, switches, and positional arguments named ``words``.

    Raises InputError for an unknown flag.
    """
    parser = Parser(f"moram {command.__name__}", command.__doc__)
    for flag in (*required.split(), *optional.split()):
        parser.add_argument(flag, required=flag in required.split())
    for flag in switches.split():
        parser.add_argument(flag, action="store_true")
    if words:
        parser.add_argument(words, nargs="*")
    flags = [*required.split(), *optional.split(), *switches.split()]
    for word in argv:
        name = spelled(word).split("=")[0]
        if name.startswith("--") and name not in [*flags, "--help"]:
            raise unknown("flag", name, flags)
    return parser.parse_intermixed_args(argv)


def _rules(args: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """Metric and labels: those of a published task, or those given as flags."""
    if args.metric is not None:
        if (args.benchmark, args.task, args.protocol) != (None, None, None):
            raise InputError("give --metric, or --benchmark with --task, not both")
        if args.metric not in set(METRICS):
            raise unknown("metric", args.metric, METRICS)
        return args.metric, tuple(args.labels.split(",")) if args.labels else ()
    if args.benchmark is None or args.task is None:
        raise InputError("rescore needs --benchmark with --task, or --metric")
    if args.labels is not None:
        raise InputError("--labels goes with --metric; a benchmark's task has its own")
    if args.benchmark not in set(RULES):
        if args.benchmark in set(BENCHMARKS):
            raise InputError(f"benchmark {args.benchmark!r} has no fixed rules; give --metric")
        raise unknown("benchmark", args.benchmark, RULES)
    rules = choose_protocol(args.benchmark, args.protocol)[1].tasks
    if args.task not in rules:
        raise unknown(f"task of {args.benchmark}", args.task, rules)
    return rules[args.task].metric, rules[args.task].labels


def _scores(path: str) -> Scores:
    """Load the scores of a file, or of a run's folder."""
    run = Path(path)
    return Scores.load(run / "scores.json" if os.path.isdir(run) else run)


def _print_json(content: object) -> None:
    say(json.dumps(content, indent=2))


if __name__ == "__main__":
    make_output_last()
    sys.exit(main(sys.argv[1:]))
