"""TensorBoard, Weights & Biases and MLflow: of each a class that hears of steps.

Where a service is and how to log in to it stands in the environment, as its own library reads it (WANDB_API_KEY,
MLFLOW_TRACKING_URI, ...); nothing of that is written or sent from here.
"""

import json
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from moaa_ray.data.store import Store
from moaa_ray.errors import ConfigError
from moaa_ray.settings.training import TrackerName

_PACKAGES: Mapping[TrackerName, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
_NO_METRICS = ("step", "num_steps", "time")
_MLFLOW_BATCH = 1000
"""Metrics that MLflow takes in one request."""

_LOGIN_S = 30
"""Without a key Weights & Biases would wait for one to be typed in."""

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What is tracked: one stage of a run."""

    store: Store
    run: str
    """The recipe's name: the project or experiment."""
    stage: str
    config: Mapping[str, Any]
    """Settings that are shown beside the curves."""


class Tracker(Protocol):
    """One library that is told of steps."""

    next_step: int
    """It has heard of those before."""

    def add(self, lines: Sequence[Line]) -> None:
        """Tell it of further steps."""
        ...

    def close(self, *, is_done: bool) -> None:
        """No more steps come now; is_done: the stage is at its end, not broken."""
        ...


def check_trackers(stage: str, names: Sequence[TrackerName]) -> None:
    """Raise ConfigError for a tracker whose library is not installed here."""
    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"{stage}.track = {name}: the package {_PACKAGES[name]} is not installed; pip install it where the "
                f"driver runs, or take {name} out of the list"
            )


class TensorBoard:
    """Event files under metrics/tensorboard/<stage>, written anew at every start, so that no step is there twice."""

    def __init__(self, tracked: Tracked):
        from tensorboardX import SummaryWriter

        self.next_step = 0
        self._store = tracked.store
        self._path = f"metrics/tensorboard/{tracked.stage}"
        self._store.delete_folder(self._path)
        self._scratch = tempfile.TemporaryDirectory() if "://" in self._store.uri else None
        self._folder = self._scratch.name if self._scratch else f"{self._store.uri}/{self._path}"
        self._writer = SummaryWriter(self._folder)

    def add(self, lines: Sequence[Line]) -> None:
        """See Tracker."""
        for line in lines:
            for key, value in _metrics(line):
                self._writer.add_scalar(key, value, line["step"], walltime=line["time"])
        self._writer.flush()
        self._upload()

    def close(self, *, is_done: bool) -> None:
        """See Tracker."""
        self._writer.close()
        self._upload()  # what a thread of the writer had not written at the last flush
        if self._scratch:
            self._scratch.cleanup()

    def _upload(self) -> None:
        if self._scratch:
            for file in Path(self._folder).iterdir():
                self._store.put(f"{self._path}/{file.name}", file.read_bytes())


class _Ledger:
    """What a service has been told of, in work/<stage>: its run's id and the next step."""

    def __init__(self, tracked: Tracked, name: TrackerName):
        self._store = tracked.store
        self._path = f"work/{tracked.stage}/{name}.json"
        known = json.loads(self._store.read(self._path)) if self._store.exists(self._path) else {}
        self.run_id: str = known.get("run_id", "")
        self.next_step: int = known.get("next_step", 0)

    def write(self, run_id: str, next_step: int) -> None:
        """Before the service is told: after a kill in between a few points are missing, and none is there twice."""
        self._store.put(self._path, json.dumps({"run_id": run_id, "next_step": next_step}).encode())


class Wandb:
    """A run of Weights & Biases; offline (WANDB_MODE=offline) it lies under metrics/wandb, or ./wandb for a URI."""

    def __init__(self, tracked: Tracked):
        import wandb

        self._ledger = _Ledger(tracked, "wandb")
        self._id = self._ledger.run_id or uuid.uuid4().hex[:12]
        # Nothing of this machine, its command lines, its code or its terminal, where secrets may stand.
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True,
            login_timeout=_LOGIN_S,
        )  # fmt: skip
        self._run = wandb.init(
            project=tracked.run,
            name=f"{tracked.run} {tracked.stage}",
            id=self._id,
            resume="allow",
            dir=None if "://" in tracked.store.uri else f"{tracked.store.uri}/metrics",
            config=dict(tracked.config),
            settings=settings,
        )
        self.next_step = max(self._ledger.next_step, self._run.step)

    def add(self, lines: Sequence[Line]) -> None:
        """See Tracker."""
        self._ledger.write(self._id, lines[-1]["step"] + 1)
        for line in lines:
            self._run.log(dict(_metrics(line)), step=line["step"])

    def close(self, *, is_done: bool) -> None:
        """See Tracker."""
        self._run.finish(exit_code=0 if is_done else 1)


class Mlflow:
    """A run of MLflow, in the experiment of the recipe's name."""

    def __init__(self, tracked: Tracked):
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]  # wants older packages than Ray's

        self._ledger = _Ledger(tracked, "mlflow")
        self._client = MlflowClient()
        self._id = self._ledger.run_id
        self.next_step = self._ledger.next_step
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(tracked.run)
        experiment = known.experiment_id if known else self._client.create_experiment(tracked.run)
        self._id = self._client.create_run(experiment, run_name=f"{tracked.run} {tracked.stage}").info.run_id
        self._ledger.write(self._id, 0)
        for key, value in tracked.config.items():
            self._client.log_param(self._id, key, value)

    def add(self, lines: Sequence[Line]) -> None:
        """See Tracker."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]  # as above

        self._ledger.write(self._id, lines[-1]["step"] + 1)
        told = [
            Metric(key, value, int(line["time"] * 1000), line["step"])
            for line in lines
            for key, value in _metrics(line)
        ]
        for start in range(0, len(told), _MLFLOW_BATCH):
            self._client.log_batch(self._id, metrics=told[start : start + _MLFLOW_BATCH])

    def close(self, *, is_done: bool) -> None:
        """See Tracker."""
        self._client.set_terminated(self._id, status="FINISHED" if is_done else "FAILED")


KINDS: Mapping[TrackerName, Callable[[Tracked], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def _metrics(line: Line) -> Iterator[tuple[str, float]]:
    return ((key, value) for key, value in line.items() if key not in _NO_METRICS)
