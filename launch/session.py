"""A run from flags to the report: first all checks, then the ranks meet, then the work."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.general import missing_tasks
from eval.measure.general import check_general, is_measured
from eval.measure.harness import Evaluator
from eval.score_matrix import score_matrices
from eval.scoring_modes import scoring_modes
from launch import described
from launch.base import check_base, check_loaded, targets_of
from launch.settings import deepspeed_config, quiet, resolve
from launch.summary import summary
from moram_dist.adapters.targets import Targets
from moram_dist.atoms import Placer, native
from moram_dist.atoms.manifest import Manifest
from moram_dist.comm import env
from moram_dist.comm.collectives import make_atom_group
from moram_dist.comm.joining import join
from moram_dist.comm.watchdog import PeerWatchdog
from moram_dist.config import RunConfig
from moram_dist.data.picture_check import check_pictures
from moram_dist.data.round_trip import round_trip_notes
from moram_dist.data.tokens import WorkProgress
from moram_dist.families import TextFamily, family_of_model
from moram_dist.methods import METHODS, Method
from moram_dist.models import language_model
from moram_dist.models.tokenizer_identity import TokenizerIdentity, has_files_of
from moram_dist.registry import InputError
from moram_dist.tasks import Benchmark
from moram_dist.terminal import say
from moram_dist.tracking import (
    Tracker,
    open_tracker,
    read_ids,
    require_mlflow,
    write_ids,
)
from moram_dist.train.checkpoint import Checkpoint
from moram_dist.train.context import RunContext
from moram_dist.train.engine import BETAS, make_engine
from moram_dist.train.inputs import RunInputs, gather, read_inputs
from moram_dist.train.progress import Progress
from moram_dist.train.run_dir import INPUTS, RunDir
from moram_dist.train.stop import Stopped, StopSignals
from moram_dist.train.trainer import Trainer

WATCHDOG_FIRST_S = 60.0


@dataclass(frozen=True)
class Session:
    """A run whose input has been checked."""

    config: RunConfig
    benchmark: Benchmark
    ds_config: dict[str, Any]
    run_dir: RunDir
    tracker: Tracker
    watchdog: PeerWatchdog
    targets: Targets | None
    """The linears to adapt; None for a method that adapts none."""
    inputs: RunInputs | None
    """Everything that defines the result, read by the main rank; None on the others."""

    def run(self) -> None:
        """Train and evaluate whatever is missing, then write the report."""
        progress = Progress(enabled=env.is_main())
        complete = self.is_complete()
        if complete:
            if self.inputs is not None and not self.run_dir.has_inputs:
                with self.run_dir.locked():
                    self.run_dir.record_inputs(self.inputs, progress.say)
            progress.say(
                f"all {len(self.benchmark.tasks)} tasks are done: nothing is trained again"
            )
        else:
            with self.run_dir.locked() if env.is_main() else nullcontext():
                self._work(progress)
        if env.is_main():
            from eval.report.write import write_report  # draws figures: slow to import

            report = write_report(self.run_dir.path)
            if complete:
                self._catch_up(progress)
            say(summary(self.run_dir.path, report, self.config))

    def _work(self, progress: Progress) -> None:
        progress.say(f"run directory: {self.run_dir.path}")
        if self.config.model.deterministic:
            env.make_deterministic()
        join(self._limit_s, self.watchdog.still, native.load)
        self.watchdog.at("the model to load")
        self.watchdog.start()
        with StopSignals(self.config.record.stop_signals, limit_s=self._limit_s) as stop:
            self._train(progress, stop)
        self.watchdog.leave(0)
        env.leave()

    def _train(self, progress: Progress, stop: StopSignals) -> None:
        config = self.config
        base = language_model.load(config.model, self.ds_config)
        placer = self._placer()
        method = METHODS[config.method.method](
            config.method, config.train.seed, placer, num_tasks=len(self.benchmark.tasks)
        )
        method.build(base.model, self.targets.names if self.targets else None)
        if self.targets:
            for line in self.targets.lines:
                progress.say(line)
        if placer.reason:
            progress.say(f"placement of the memory: {placer.reason}")
        told = WorkProgress("fitting prompts", None, progress.say, self.watchdog.at)
        asked = method.asked(
            self.benchmark, told.calls_of(partial(base.family.question_fits, base.tokenizer))
        )
        lost: list[str] = []
        if env.is_main() and isinstance(base.family, TextFamily):
            lost = round_trip_notes(base.tokenizer, asked)
        slow = language_model.dtype_notes(language_model.resolve_dtype(config.model))
        for note in (*asked.notes, *lost, *slow):
            progress.say(f"note: {note}")
        engine = make_engine(
            base.model,
            self.ds_config,
            weight_decay=config.train.weight_decay,
            betas=(BETAS[0], config.train.beta2),
        )
        check_loaded(base, engine, config.model.model)
        manifest = self._manifest(method)
        if env.is_main():
            self.run_dir.describe(config, asked, self.ds_config, env.world_size())
        if self.inputs is not None:
            self.run_dir.record_inputs(self.inputs, progress.say)
        saved = self._saved(manifest, progress)
        context = RunContext(
            config=config,
            benchmark=self.benchmark,
            method=method,
            engine=engine,
            base=base,
            run_dir=self.run_dir,
            tracker=self.tracker,
            progress=progress,
            watchdog=self.watchdog,
        )
        evaluate = Evaluator(context, asked)
        trainer = Trainer(context, manifest=manifest, evaluate=evaluate, stop=stop, saved=saved)
        first = trainer.data.first_step(len(manifest.tasks)) + (saved.step if saved else 0)
        tracker = self.tracker
        tracker.open(described.description(self.config, self.benchmark, self.run_dir.path), first)
        status = "failed"
        try:
            trainer.run()
            if env.is_main():
                from eval.report.write import write_report

                write_report(self.run_dir.path)
                for folder, paths in described.files(self.run_dir.path).items():
                    tracker.attach(paths, folder)
            status = "finished"
        except Stopped:
            status = "stopped"
            raise
        finally:
            tracker.close(status)  # type: ignore[arg-type]

    def _catch_up(self, progress: Progress) -> None:
        """Send what earlier starts of a complete run could not send to the tracking store."""
        try:
            with self.run_dir.locked():
                self.tracker.catch_up(
                    described.description(self.config, self.benchmark, self.run_dir.path),
                    described.files(self.run_dir.path),
                    progress.say,
                )
        except InputError as error:  # another start holds the lock
            progress.say(f"nothing is sent to MLflow: {error}")

    @property
    def _limit_s(self) -> float:
        """Of a collective. The watchdog reports first: a backend's message is unreadable."""
        return self.config.parallel.wait_limit + WATCHDOG_FIRST_S

    def _placer(self) -> Placer:
        parallel = self.config.parallel
        return Placer(
            make_atom_group(parallel.atom_group, limit_s=self._limit_s),
            parallel.placement,
            room=parallel.resident_fraction * env.memory_bytes(),
            num_tasks=len(self.benchmark.tasks),
            device=env.device().type,  # DeepSpeed moves the model there later
        )

    def is_complete(self) -> bool:
        """Whether all tasks are learned and every score that is asked for is there."""
        last = len(self.benchmark.tasks) - 1
        if self.run_dir.finished_tasks() <= last:
            return False
        config = self.config.eval
        record = self.config.record
        if any(
            missing_tasks(self.run_dir.path, row, record.general_tasks)
            for row in range(-1, last + 1)
            if is_measured(row, last, record.general_rows)
        ):
            return False
        matrices = score_matrices(self.run_dir.path, self.benchmark, scoring_modes(config))
        return not any(
            matrix.missing(row, config.eval_rows)
            for matrix in matrices.values()
            for row in range(-1, last + 1)
        )

    def _manifest(self, method: Method) -> Manifest:
        base = env.from_main(self.inputs.base.saved if self.inputs is not None else None)
        saved = self.run_dir.memory.manifest()
        if saved is None:
            return Manifest(
                method=self.config.method.method,
                settings=dataclasses.asdict(self.config.method),
                base=base,
                modules=list(method.layers),
            )
        other = {*saved.modules} ^ {*method.layers}
        if other:
            raise InputError(
                f"{self.run_dir.memory.path} and --target_modules do not name the same linears: "
                f"only one of them has {min(other)}"
            )
        return saved

    def _saved(self, manifest: Manifest, progress: Progress) -> Checkpoint | None:
        """The state from which the next task resumes; restores a lost file of MLflow ids."""
        saved = None
        if env.is_main():
            learned = [task.sha256 for task in manifest.tasks]
            saved = self.run_dir.progress.newest(
                task=len(learned), learned=learned, say=progress.say
            )
            if saved and saved.tracking and read_ids(self.run_dir.path) is None:
                write_ids(self.run_dir.path, saved.tracking)
        return env.from_main(saved)


def prepare(config: RunConfig, ds_path: Path, *, trains: bool = True) -> Session:
    """Check all input without starting any work.

    Args:
        config: from the flags.
        ds_path: DeepSpeed's file.
        trains: whether the session may train. For a run that looks complete, False leaves out the
            checks that need DeepSpeed or the model's code, which take seconds to import.

    Raises:
        InputError: one line that names the flag, file, field or task.
    """
    quiet()
    env.check_launcher()
    config, benchmark = resolve(config)
    ds_config = deepspeed_config(config, ds_path, env.world_size(), check=trains)
    targets = None
    if trains:
        model = language_model.skeleton(config.model)
        targets = targets_of(config.method, model)
        benchmark = check_base(config, benchmark, model)
        check_general(config, family_of_model(model))
    run_dir = RunDir(config.run_dir)
    known = None if trains else _known_tokenizer(run_dir, config)
    tokenizer = known or language_model.load_tokenizer(config.model)
    run_dir.check(config)
    inputs = None
    if env.is_main():
        say = Progress(enabled=True).say
        inputs = gather(config, benchmark, ds_config, tokenizer, say)
        run_dir.check_inputs(inputs, config.model)
        if not run_dir.has_inputs:  # a run that is resumed has looked at them
            trained = METHODS[config.method.method].reads_training_split
            check_pictures(benchmark, trained=trained, say=say)
    record = config.record
    if record.tracking == "mlflow":
        require_mlflow()
    tracker = open_tracker(
        record.tracking,
        record.tracking_uri,
        register=record.register_memory,
        rank=env.rank(),
        local_size=env.local_world_size(),
        world_size=env.world_size(),
    )
    watchdog = PeerWatchdog(config.parallel.wait_limit)
    return Session(config, benchmark, ds_config, run_dir, tracker, watchdog, targets, inputs)


def _known_tokenizer(run_dir: RunDir, config: RunConfig) -> TokenizerIdentity | None:
    """A run's tokenizer, if its files are unchanged: transformers takes seconds to load it.

    None also for pictures, of which a run records more than files.
    """
    if not run_dir.has_inputs:
        return None
    then = read_inputs(run_dir.path / INPUTS)
    if then.pictures or not has_files_of(language_model.source(config.model), then.tokenizer):
        return None
    return then.tokenizer
