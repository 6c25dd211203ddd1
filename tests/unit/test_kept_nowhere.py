"""A password in each place that may hold one, and no file or line of a run that does."""

from __future__ import annotations

import logging
import sys

import yaml

from eval.report.write import write_report
from launch import described
from launch.settings import resolve
from launch.summary import summary
from moram_dist import config_io
from moram_dist.config import RecordConfig, RunConfig
from moram_dist.tracking.mlflow import MlflowTracker
from moram_dist.train.run_dir import RunDir
from tests.helpers.configs import config_of
from tests.helpers.made_up_runs import make_run

SECRET = "s3cr3t-W0rd"
ADDRESS = f"http://alice:{SECRET}@127.0.0.1:9/?token={SECRET}"
KEPT = "http://127.0.0.1:9/?token=***"


def test_a_password_is_kept_nowhere(tmp_path, monkeypatch, caplog, capsys):
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("https_proxy", f"http://u:{SECRET}@proxy")
    monkeypatch.setattr(sys, "argv", ["train.py", "--tracking_uri", ADDRESS, f"--x={ADDRESS}"])
    run_dir = make_run(tmp_path / "run", {(0, 0): [1.0]}, tasks=["topic"])
    (run_dir / "run.yaml").unlink()
    config, benchmark = resolve(
        RunConfig(method=config_of(), record=RecordConfig(output_dir=run_dir, tracking_uri=ADDRESS))
    )
    ds_config = {"comet": {"enabled": False, "api_key": SECRET}}
    with caplog.at_level(logging.DEBUG, logger="moram_dist"):
        RunDir(run_dir).describe(config, benchmark, ds_config, 1)
        tracker = MlflowTracker(config.record.tracking_uri)
        tracker.open(described.description(config, benchmark, run_dir))
        report = write_report(run_dir)
        tracker.close("failed")
    shown = summary(run_dir, report, config)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.yaml", "environment.json", "run.jsonl", "index.html", "ds_config.json"} <= {
        path.name for path in files
    }
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    said = capsys.readouterr()
    assert SECRET not in caplog.text + said.out + said.err + shown
    assert "does not accept data" in caplog.text
    for name in ("run.yaml", "environment.json", "ds_config.json", "tracking/run.jsonl"):
        assert (run_dir / name).stat().st_mode & 0o777 == 0o600

    kept = yaml.safe_load((run_dir / "run.yaml").read_text())
    assert kept["record"]["tracking_uri"] == KEPT
    again = config_io.build({}, run_dir / "run.yaml")
    assert not config_io.differences(config, again), "a second start is the same run"


def test_what_an_older_version_kept_is_taken_out_at_the_next_start(tmp_path):
    run_dir = tmp_path / "run"
    config, benchmark = resolve(
        RunConfig(method=config_of(), record=RecordConfig(output_dir=run_dir))
    )
    RunDir(run_dir).describe(config, benchmark, {}, 1)
    record = run_dir / "run.yaml"
    old = yaml.safe_load(record.read_text())
    old["record"]["tracking_uri"] = ADDRESS
    record.write_text(yaml.safe_dump(old))
    RunDir(run_dir).describe(config, benchmark, {}, 1)
    assert SECRET not in record.read_text()
    old["record"]["tracking_uri"] = KEPT
    assert yaml.safe_load(record.read_text()) == old
