"""Logs: whole rows of CSV, whatever happens; Weights & Biases and MLflow, without a network."""

import csv
from pathlib import Path

import pytest

from detpool.config import Configs, check_extras
from detpool.config.extras import metadata
from detpool.errors import ConfigError
from detpool.files import WriteError
from detpool.report.collect import collect
from detpool.training import runs
from detpool.training.loggers import WholeRowsCSVLogger


def test_a_full_disk_leaves_whole_rows_and_the_next_try_loses_none(tmp_path, room_for):
    logger = WholeRowsCSVLogger(tmp_path, name="csv", version="")
    logger.save()
    path = tmp_path / "csv" / "metrics.csv"
    assert not path.exists()
    for step in range(3):
        logger.log_metrics({"train/loss": step / 2}, step)
    logger.save()
    before = path.read_bytes()
    assert before == b"train/loss,step\n0.0,0\n0.5,1\n1.0,2\n"
    logger.log_metrics({"val/AP": 0.123456789}, 3)
    with pytest.raises(WriteError, match=f"^cannot write {path}: "), room_for(len(before) + 5):
        logger.save()
    assert path.read_bytes() == before
    logger.finalize("failed")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert (rows[3]["val/AP"], rows[3]["train/loss"], rows[0]["val/AP"]) == ("0.123456789", "", "")


SMALL = ["trainer.max_epochs=2", "evaluation.pictures=0"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_one_message_before_any_work(name, monkeypatch):
    configs = Configs(Path(__file__).parents[2] / "configs", "train")
    monkeypatch.setattr(metadata, "version", lambda package: "1.0")
    for choice in (name, "csv", f"[csv,{name}]"):
        check_extras(configs.compose([f"logger={choice}"]))

    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    for choice in (name, f"[csv,{name}]"):
        with pytest.raises(ConfigError) as error:
            check_extras(configs.compose([f"logger={choice}"]))
        assert str(error.value) == f"logger.{name}: {name} is not installed: pip install 'detpool[{name}]'"
    check_extras(configs.compose([f"logger={name}", f"logger.{name}=null"]))
    check_extras(configs.compose(["~logger"]))


def test_each_run_has_its_own_at_weights_and_biases(tiny_config, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="detpool[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = {}
    for name in "ab":  # in one process, as the runs of a sweep
        runs.train(tiny_config("logger=[csv,wandb]", *SMALL, name=name))
        settings[name] = dict(wandb.run.config)
        assert wandb.run.name == f"{tmp_path.name}/{name}"
        assert "val/AP" in dict(wandb.run.summary)
    wandb.finish()
    assert settings["a"]["trainer"]["max_epochs"] == 2
    assert (settings["a"]["run_dir"], settings["b"]["run_dir"]) == (str(tmp_path / "a"), str(tmp_path / "b"))
    for name in "ab":
        assert len(list((tmp_path / name / "wandb").glob("offline-run-*/*.wandb"))) == 1
    # What reports read is there as well.
    assert [run.curves["val/AP"].count() for run in collect([tmp_path]).runs] == [2, 2]


def test_mlflow_has_a_database_in_the_run_directory(tiny_config, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow.tracking", reason="detpool[mlflow] is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    metrics = runs.train(tiny_config("logger=mlflow", *SMALL))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("train").experiment_id])
    assert run.info.run_name == f"{tmp_path.name}/run"
    assert run.data.params["trainer/max_epochs"] == "2"
    assert run.data.metrics["test/AP"] == pytest.approx(metrics["AP"])
    assert len(client.get_metric_history(run.info.run_id, "val/AP")) == 2
    assert [run.curves["val/AP"].count() for run in collect([tmp_path]).runs] == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
