"""Score, compare and report finished runs; no GPU needed.

    python eval/run.py rescore --predictions FILE.jsonl --benchmark trace --task FOMC
    python eval/run.py rescore --predictions FILE.jsonl --metric choice --labels A,B,C
    python eval/run.py metrics --scores RUN/scores.json
    python eval/run.py report --run RUN
    python eval/run.py compare RUN... --out DIR
    python eval/run.py compare --experiment NAME --tracking_uri sqlite:///RUNS/mlflow.db

Results go to standard output. Bad input is one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from eval.continual import Scores
from eval.predictions import mean_score, read_predictions
from moram_dist.metrics import METRICS
from moram_dist.registry import InputError, unknown
from moram_dist.tasks import BENCHMARKS
from moram_dist.tasks.rules import RULES


class _Parser(argparse.ArgumentParser):
    """Reports by InputError, in one line, where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def rescore(argv: Sequence[str]) -> None:
    """Print the mean score of a predictions file, computed again from its texts."""
    args = _parse(rescore, argv, "--predictions", optional="--benchmark --task --metric --labels")
    metric, labels = _rules(args)
    predictions = read_predictions(Path(args.predictions))
    mean = mean_score(predictions, metric=metric, labels=labels)
    _print_json({"metric": metric, "score": mean, "n": len(predictions)})


def metrics(argv: Sequence[str]) -> None:
    """Print every sequence metric of a scores.json; null where it was not measured."""
    args = _parse(metrics, argv, "--scores")
    _print_json(Scores.load(Path(args.scores)).sequence_metrics())


def report(argv: Sequence[str]) -> None:
    """Write a run's report and print where it is."""
    args = _parse(report, argv, "--run")
    run = Path(args.run)
    if not run.is_dir():
        raise InputError(f"--run: no such folder: {run}")
    from eval.report import write_report  # plots are slow to import, and only needed here

    print(write_report(run))


def compare(argv: Sequence[str]) -> None:
    """Compare runs by method over orders and seeds: print the tables, write them to --out."""
    args = _parse(
        compare,
        argv,
        optional="--experiment --tracking_uri --answers --out --resamples",
        words="RUN",
    )
    from eval.compare_command import compare_runs, write_comparison  # numpy is only needed here

    text, comparison = compare_runs(
        [Path(word) for word in args.RUN],
        experiment=args.experiment,
        tracking_uri=args.tracking_uri,
        answers=args.answers,
        resamples=args.resamples,
    )
    if args.out is not None:
        write_comparison(Path(args.out), text, comparison)
    print(text, end="")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "rescore": rescore,
    "metrics": metrics,
    "report": report,
    "compare": compare,
}


def main(argv: Sequence[str]) -> int:
    """Run one command. Returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if argv else 2
    try:
        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], COMMANDS)
        COMMANDS[argv[0]](argv[1:])
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _parse(
    command: Callable[[Sequence[str]], None],
    argv: Sequence[str],
    required: str = "",
    *,
    optional: str = "",
    words: str = "",
) -> argparse.Namespace:
    """Read flags that each take one text, and any number of ``words`` where they have a name.

    Raises InputError for a flag that does not exist.
    """
    parser = _Parser(
        prog=f"eval/run.py {command.__name__}", description=command.__doc__, allow_abbrev=False
    )
    flags = [*required.split(), *optional.split()]
    for flag in flags:
        parser.add_argument(flag, required=flag in required.split())
    if words:
        parser.add_argument(words, nargs="*")
    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and name not in [*flags, "--help"]:
            raise unknown("flag", name, flags)
    return parser.parse_intermixed_args(argv)


def _rules(args: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """Metric and labels: a published task's own, or those that were given."""
    if args.metric is not None:
        if args.benchmark is not None or args.task is not None:
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
    rules = RULES[args.benchmark]
    if args.task not in rules:
        raise unknown(f"task of {args.benchmark}", args.task, rules)
    return rules[args.task].metric, rules[args.task].labels


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
