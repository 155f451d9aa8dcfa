"""Ray under training: Ray Data tokenises and packs, Ray Train places the workers and replaces lost ones.

The only file here that imports Ray. What the workers do is in loop.py and preparing.py.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.data
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context, get_preemption_info
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from moaa_ray.data.store import open_store
from moaa_ray.errors import MoaaError, StageError
from moaa_ray.training.job import Job
from moaa_ray.training.loop import train
from moaa_ray.training.memory import out_of_memory
from moaa_ray.training.preparing import ChunkResult, ChunkTask, prepare_chunk
from moaa_ray.training.strategies.base import World

_POLL_S = 1.0
_COLLECTIVE_LIMIT_S = 1800
_ASK_EVERY_S = 2.0
_LOW_MEMORY, _GONE = "the node running low on memory", "killed by the OOM killer"
"""What Ray says of workers that its memory monitor killed; and of processes that are just gone, as a likely cause."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes of a training stage."""

    num: int
    use_gpu: bool
    num_cpus: float
    """CPU slots of each."""
    max_restarts: int
    node_labels: Mapping[str, str] = field(default_factory=dict)
    """Of every node that one of them may stand on."""


def prepare(tasks: Sequence[ChunkTask]) -> list[ChunkResult]:
    """Tokenise and pack all chunks as one Ray Data job; each writes its files of units, whatever becomes of others.

    Raises what a chunk raised of our own errors.
    """
    numbers = ray.data.from_items([{"at": at} for at in range(len(tasks))], override_num_blocks=len(tasks))
    done = numbers.map(lambda row: {"at": row["at"], **_prepared(tasks[row["at"]])})
    rows: dict[int, dict[str, Any]] = {}
    try:
        for row in done.iter_rows():
            rows[row["at"]] = row
            if row["error"]:
                break
    except Exception as error:  # Ray wraps what a task raised in kinds of its own
        raise StageError(f"tokenising broke: ...{' '.join(str(error).split())[-600:]}") from error
    for row in rows.values():
        if row["error"]:
            raise _ours(row["error"])
    return [ChunkResult.from_json(rows[at]["result"]) for at in range(len(tasks))]


def _prepared(task: ChunkTask) -> dict[str, str]:
    """The result of a chunk, or its error, which Ray Data would bring back as text among its own."""
    try:
        return {"result": prepare_chunk(task).to_json(), "error": ""}
    except MoaaError as error:
        return {"result": "", "error": _record(error)}


def run_training(job: Job, workers: Workers, *, attempt: str, watch: Callable[[], None]) -> None:
    """Train on Ray Train's workers to the end; `watch` is called about every second meanwhile.

    attempt names this start of the driver. Raises what a worker raised of our own errors, and StageError when workers
    were lost more often than max_restarts allows.
    """
    backend = "cpu:gloo,cuda:nccl" if workers.use_gpu else "gloo"
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "attempt": attempt},
        torch_config=TorchConfig(backend=backend, timeout_s=_COLLECTIVE_LIMIT_S),
        scaling_config=ScalingConfig(
            num_workers=workers.num,
            use_gpu=workers.use_gpu,
            resources_per_worker=_resources(workers),
            label_selector=dict(workers.node_labels) or None,
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=f"{job.run_uri}/work/{job.stage}/ray",
            failure_config=FailureConfig(max_failures=workers.max_restarts),
        ),
    )
    fitting = _Fitting(trainer)
    fitting.start()
    while fitting.is_alive():
        fitting.join(_POLL_S)
        watch()
    told = _told(job, attempt)
    if told is not None:
        raise told
    if fitting.error is not None:
        raise lost_workers(job, workers, fitting.error) from fitting.error


def lost_workers(job: Job, workers: Workers, error: BaseException) -> StageError:
    """What ended training, from what Ray Train raised at last: where it is a lack of memory, with the way out."""
    said = " ".join(str(error).split())
    lost = f"workers were lost and {workers.max_restarts} restarts did not help"
    if _LOW_MEMORY in said:
        told = said.partition(_LOW_MEMORY)[2].partition("OOM kill reason")[0].strip(" .")
        return out_of_memory(job, f"{lost}: Ray killed some, as a node ran low on memory ({told[:200]})")
    if _GONE in said:
        return out_of_memory(
            job,
            f"{lost}: a process of theirs was killed or crashed. The kernel kills where a node's memory is full, and "
            "dmesg on that node then says so",
        )
    return StageError(f"{job.stage}: {lost}: ...{said[-600:]}; the same command goes on from the last checkpoint")


def _resources(workers: Workers) -> dict[str, float]:
    return {"CPU": workers.num_cpus} | ({"GPU": 1} if workers.use_gpu else {})


class _Fitting(threading.Thread):
    """trainer.fit() in a thread, so that the driver can show what happens; keeps what it raised."""

    def __init__(self, trainer: TorchTrainer):
        super().__init__(name="moaa-train", daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.error = self._trainer.fit().error
        except Exception as error:  # Ray Train's own kinds; the main thread raises it as ours
            self.error = error


def _work(config: dict[str, Any]) -> None:
    """One worker. An error of ours is written down, and no later restart of this attempt tries again."""
    job, attempt = config["job"], config["attempt"]
    if _told(job, attempt) is not None:
        return
    try:
        train(job, _world())
    except MoaaError as error:
        open_store(job.run_uri).put_if_absent(_error_path(job, attempt), _record(error).encode())
        raise


def _world() -> World:
    context = get_context()
    device = torch.device(get_device())
    per_node = torch.zeros(context.get_world_size())
    per_node[context.get_world_rank()] = context.get_local_world_size()
    dist.all_reduce(per_node)
    is_even = bool((per_node == per_node[0]).all())
    return World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        device=device,
        workers_per_node=int(per_node[0]) if is_even else context.get_world_size(),
        is_leaving=_Notices(context.get_world_rank()),
    )


class _Notices:
    """Says once of every node that hosts a worker that it will be taken away: Ray drains it, a spot node for one.

    Ray Train itself waits for the deadline, starts the workers again elsewhere, and counts that as no failure. It must
    be asked by all workers together, and each time costs calls to an actor: the first worker's clock says when.
    """

    def __init__(self, rank: int):
        self._rank = rank
        self._asked_at = time.monotonic()
        self._known: set[str] = set()

    def __call__(self) -> bool:
        is_due = torch.tensor(self._rank == 0 and time.monotonic() - self._asked_at > _ASK_EVERY_S)
        dist.broadcast(is_due, 0)
        if not is_due:
            return False
        self._asked_at = time.monotonic()
        info = get_preemption_info()
        leaving = set(info.preempted_node_ids if info is not None else ())
        is_new = not leaving <= self._known
        self._known |= leaving
        return is_new


def _error_path(job: Job, attempt: str) -> str:
    return f"work/{job.stage}/errors/{attempt}.json"


def _told(job: Job, attempt: str) -> MoaaError | None:
    """The error that a worker of this attempt wrote down."""
    store, path = open_store(job.run_uri), _error_path(job, attempt)
    if not store.exists(path):
        return None
    return _ours(store.read(path))


def _record(error: MoaaError) -> str:
    return json.dumps({"kind": type(error).__name__, "text": str(error)})


def _ours(record: str | bytes) -> MoaaError:
    """The error in a text of _record."""
    known = json.loads(record)
    kinds = {kind.__name__: kind for kind in MoaaError.__subclasses__()}
    return kinds.get(known["kind"], StageError)(known["text"])
