"""Trackers hear of every step once, and nothing that they do stops a run."""

import json
import re
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError
from moaa_ray.training_stage import tracker_kinds, trackers
from moaa_ray.training_stage.tracker_kinds import Tracked, check_trackers
from moaa_ray.training_stage.trackers import Trackers


def lines(first: int, stop: int) -> list[dict]:
    known = {"num_steps": 100, "tokens": 3000, "seconds": 2.0}
    return [{"step": i, "time": 1.7e9 + i, "loss": 2.0 - i / 16, **known} for i in range(first, stop)]


def tracked(uri) -> Tracked:
    return Tracked(store=open_store(str(uri)), run="demo", stage="sft", config={"learning_rate": 1e-5, "lora": None})


def tell(uri, names, *looks: list[dict]) -> list[str]:
    """One start of the driver, which reads the metrics file as often as there are looks; what people are told."""
    notes: list[str] = []
    with Trackers(names, tracked(uri), notes.append) as told:
        for look in looks:
            told.tell(look)
    return notes


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point that TensorBoard reads, by name."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_every_step_once_also_after_restarts(tmp_path):
    assert tell(tmp_path, ["tensorboard"], lines(0, 3), lines(0, 8)) == []
    # The driver was killed: training goes on from step 5; then a worker dies, and steps 7 and 8 are taken again.
    assert tell(tmp_path, ["tensorboard"], lines(0, 5), lines(0, 9), lines(0, 7), lines(0, 10)) == []
    found = scalars(tmp_path / "metrics" / "tensorboard" / "sft")
    assert found["loss"] == [(i, 2.0 - i / 16) for i in range(10)]
    assert found.keys() == {"loss", "tokens", "seconds"}


def test_event_files_of_a_run_in_an_object_store_lie_there_too(tmp_path):
    uri = "memory://test-trackers/run"
    tell(uri, ["tensorboard"], lines(0, 3), lines(0, 8))
    tell(uri, ["tensorboard"], lines(0, 9))
    store = open_store(uri)
    (path,) = store.list("metrics/tensorboard/sft")
    (tmp_path / path.rsplit("/", 1)[-1]).write_bytes(store.read(path))
    assert [step for step, _ in scalars(tmp_path)["loss"]] == list(range(9))


class Fails:
    """A tracker whose service is away."""

    def __init__(self, tracked: Tracked):
        self.next_step = 0

    def add(self, lines) -> None:
        raise ConnectionError("no route\nto host")

    def close(self, *, is_done: bool) -> None:
        raise AssertionError("was left out")


def test_a_tracker_that_fails_is_told_of_once_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "KINDS", {**trackers.KINDS, "wandb": Fails, "mlflow": lambda tracked: 1 / 0})
    notes = tell(tmp_path, ["mlflow", "wandb", "tensorboard"], lines(0, 2), lines(0, 4))
    assert sorted(notes) == [
        "sft: mlflow is left out from here on: ZeroDivisionError: division by zero; metrics/sft.jsonl has every step",
        "sft: wandb is left out from here on: ConnectionError: no route to host; metrics/sft.jsonl has every step",
    ]
    assert len(scalars(tmp_path / "metrics" / "tensorboard" / "sft")["loss"]) == 4


class Hangs(Fails):
    """A tracker whose library waits for a service for ever."""

    def add(self, lines) -> None:
        threading.Event().wait()


@pytest.mark.parametrize("num_looks", [1, 3])
def test_a_tracker_that_hangs_holds_nobody_up(tmp_path, monkeypatch, num_looks):
    monkeypatch.setattr(trackers, "KINDS", {**trackers.KINDS, "wandb": Hangs})
    monkeypatch.setattr(trackers, "_PATIENCE_S", 0.3)
    notes: list[str] = []
    with Trackers(["wandb", "tensorboard"], tracked(tmp_path), notes.append) as told:
        for look in range(num_looks):
            told.tell(lines(0, 2 * look + 2))
            time.sleep(0.4)
        assert len(notes) == (num_looks > 1)
    (note,) = notes
    assert re.fullmatch(r"sft: wandb is left out from here on: no answer for \d+ s; metrics/sft.jsonl has .*", note)
    assert len(scalars(tmp_path / "metrics" / "tensorboard" / "sft")["loss"]) == 2 * num_looks


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(tracker_kinds, "find_spec", lambda name: None if name == "mlflow" else name)
    check_trackers("dpo", ["tensorboard", "wandb"])
    with pytest.raises(ConfigError) as caught:
        check_trackers("dpo", ["tensorboard", "mlflow"])
    assert str(caught.value) == (
        "dpo.track = mlflow: the package mlflow is not installed; pip install it where the driver runs, or take mlflow "
        "out of the list"
    )


@pytest.mark.slow
def test_wandb_goes_on_with_its_run_and_writes_no_secret_and_no_command_line(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    secret = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setattr(sys, "argv", ["moaa", "models.a.api_key=very-secret"])
    assert tell(tmp_path, ["wandb"], lines(0, 3), lines(0, 8)) == []
    assert tell(tmp_path, ["wandb"], lines(0, 5), lines(0, 10)) == []
    files = sorted((tmp_path / "metrics" / "wandb").glob("offline-run-*/run-*.wandb"))
    (run_id,) = {file.stem.removeprefix("run-") for file in files}
    assert json.loads((tmp_path / "work" / "sft" / "wandb.json").read_text()) == {"run_id": run_id, "next_step": 10}
    points = [point for file in files for point in wandb_points(file)]
    assert points == [(i, 2.0 - i / 16) for i in range(10)]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file
            assert b"very-secret" not in file.read_bytes(), file


def wandb_points(file: Path) -> list[tuple[int, float]]:
    """The history of a small .wandb file; wandb's own process may still be writing it when finish() is back."""
    until = time.monotonic() + 30
    while [kind for kind, _ in wandb_records(file)][-1:] != ["exit"]:
        assert time.monotonic() < until, f"{file} has no end"
        time.sleep(0.1)
    histories = [record.history.item for kind, record in wandb_records(file) if kind == "history"]
    rows = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in history} for history in histories]
    return [(row["_step"], row["loss"]) for row in rows]


def wandb_records(file: Path) -> list[tuple[str, Any]]:
    """7 bytes, then of each record a checksum (4 bytes), its length (2), its kind (1) and itself."""
    from wandb.proto import wandb_internal_pb2

    data, at, records = file.read_bytes(), 7, []
    while at + 7 <= len(data):
        (length,) = struct.unpack_from("<4xHx", data, at)
        if at + 7 + length > len(data):
            break
        record = wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + length])
        records.append((record.WhichOneof("record_type"), record))
        at += 7 + length
    return records


@pytest.mark.slow
def test_mlflow_goes_on_with_its_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlflow")
    assert tell(tmp_path, ["mlflow"], lines(0, 3), lines(0, 8)) == []
    assert tell(tmp_path, ["mlflow"], lines(0, 5), lines(0, 10)) == []
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("demo")
    (run,) = client.search_runs([experiment.experiment_id])
    points = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(points) == [(i, 2.0 - i / 16) for i in range(10)]
    assert (run.info.status, run.data.params["learning_rate"]) == ("FINISHED", "1e-05")
