"""Runs a phase in a thread of its own while the driver's main thread shows it and watches over it."""

import re
import threading
import time
from collections.abc import Callable, Mapping

import ray
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.exceptions import GetTimeoutError, RayActorError

from moaa_ray.errors import StageError, ours_within
from moaa_ray.generation.coordinator import Snapshot
from moaa_ray.generation.line import Line, run_line
from moaa_ray.generation.node_events import end_hung_worker
from moaa_ray.generation.progress import diagnosis
from moaa_ray.generation.session import log_folder
from moaa_ray.generation.stalls import Watchdog

_POLL_S = 0.5
_CHECK_OWNER_S = 10.0
_STOP_LIMIT_S = 15.0
_SLOW_START = 10
"""Where all resources were free at first nobody else holds them: so many times longer may processes take to start."""
_LEAST_SILENCE_S = 30.0
"""A worker that reports every second may be late by so much on a busy machine."""


class LineStalledError(Exception):
    """Nothing moves in a line any more; the message says how long, and which pool waits on what."""


class _Consumer(threading.Thread):
    """Pulls committed blocks through the plan; keeps what it raised."""

    def __init__(self, line: Line, coordinator):
        super().__init__(name="moaa-line", daemon=True)
        self._line = line
        self._coordinator = coordinator
        self.num_rows = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for num_rows in run_line(self._line, self._coordinator):
                self.num_rows += num_rows
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error

    def stop(self) -> None:
        """End a plan that still goes on: a thread that uses Ray while it is shut down crashes the process.

        Of an executor without a first result nothing else is known than that it is a thread.
        """
        if not self.is_alive():
            return
        for thread in threading.enumerate():
            if isinstance(thread, StreamingExecutor):
                stopper = threading.Thread(target=thread.shutdown, kwargs={"force": True}, daemon=True)
                stopper.start()
                stopper.join(_STOP_LIMIT_S)
        self.join(_STOP_LIMIT_S)


def run_watched(
    line: Line,
    coordinator,
    *,
    show: Callable[[Snapshot], None],
    check_owner: Callable[[], None],
    record: Callable[[Snapshot], None],
    note: Callable[[str], None],
) -> int:
    """Run a phase to its end; returns the rows committed.

    show is told all the time how things stand. check_owner raises FencedError when another driver has taken the run
    over; it is called now and then, and so is record, with how things stand. note hears of workers that hung.
    Raises StageError when a pool gets no resources within start_timeout_s, naming it, or when the plan breaks, and
    LineStalledError when nothing moves any more (see stalls.py); the plan has ended then.
    """
    consumer = _Consumer(line, coordinator)
    try:
        _watch(consumer, line, coordinator, show=show, check_owner=check_owner, record=record, note=note)
    finally:
        consumer.stop()
    if consumer.error is not None:
        check_owner()  # a driver that slept while another took over finds its Ray in ruins, but this is why
        last = _snapshot(coordinator)
        if last is not None and last.stop_reason:
            raise StageError(last.stop_reason) from consumer.error
        raise _as_ours(consumer.error) from consumer.error
    return consumer.num_rows


def _watch(
    consumer: _Consumer,
    line: Line,
    coordinator,
    *,
    show: Callable[[Snapshot], None],
    check_owner: Callable[[], None],
    record: Callable[[Snapshot], None],
    note: Callable[[str], None],
) -> None:
    """Start the consumer and show what it does until it has ended."""
    limit_s = line.start_timeout_s * (_SLOW_START if _is_room(line, ray.available_resources()) else 1)
    watchdog = Watchdog(
        restart_after_s=line.restart_after_s,
        request_timeout_s=max(pool.work.request_timeout_s for pool in line.pools),
        hang_after_s=max(_LEAST_SILENCE_S, line.hang_after_s),
    )
    began = checked_at = time.monotonic()
    consumer.start()
    is_placed = False
    while consumer.is_alive():
        consumer.join(_POLL_S)
        is_due = time.monotonic() - checked_at > _CHECK_OWNER_S
        if is_due:
            checked_at = time.monotonic()
            check_owner()
        snapshot = _snapshot(coordinator)
        found = watchdog.see(snapshot, time.monotonic(), is_placed=is_placed)
        for pulse in found.hung:
            if end_hung_worker(pulse):
                note(f"worker {pulse.pid} was not heard of for {watchdog.hang_after_s:.0f} s, and is replaced")
        if found.stalled_s and _is_room(line, ray.cluster_resources()):  # what waits for a node is no fault
            told = "the coordinator does not answer" if snapshot is None else diagnosis(snapshot)
            raise LineStalledError(f"nothing has moved for {found.stalled_s:.0f} s: {told}")
        if snapshot is None:
            continue
        if is_due:
            record(snapshot)
        show(snapshot)
        is_placed = is_placed or not _waiting(line, snapshot)
        if not is_placed and time.monotonic() - began > limit_s:
            raise StageError(_who_waits(line, snapshot, limit_s))


def _as_ours(error: BaseException) -> BaseException:
    """What a worker or the plan raised, as an error of ours: our own kinds travel inside Ray's."""
    if (ours := ours_within(error)) is not None:
        return ours
    return StageError(
        f"the plan broke ({type(error).__name__}): {_root_cause(str(error))}\nwhat is committed is kept; run the "
        f"same command again to go on. Logs of Ray and the engines: {log_folder()}"
    )


def _root_cause(told: str) -> str:
    """What is said by the first exception of a traceback, which the following ones were raised from."""
    first = re.split(r"\n\n(?:The above exception was|During handling of)", told, maxsplit=1)[0]
    said = re.split(r'^  File ".*(?:\n    .*)*', first, flags=re.MULTILINE)[-1]
    return " ".join(said.split())[:600]


def _snapshot(coordinator) -> Snapshot | None:
    try:
        return ray.get(coordinator.snapshot.remote(), timeout=10)
    except (GetTimeoutError, RayActorError):
        return None


def _waiting(line: Line, snapshot: Snapshot) -> list[str]:
    """Pools with fewer placed workers than they need, and what these take."""
    return [
        f"{pool.work.name}: {known.num_workers} of {pool.min_replicas} x (CPU {pool.num_cpus:g}, GPU {pool.num_gpus})"
        for pool, known in zip(line.pools, snapshot.pools, strict=True)
        if known.num_workers < pool.min_replicas
    ]


def _is_room(line: Line, free: Mapping[str, float]) -> bool:
    """Whether the least workers of all pools fit into these resources."""
    num_cpus = sum(pool.min_replicas * pool.num_cpus for pool in line.pools)
    num_gpus = sum(pool.min_replicas * pool.num_gpus for pool in line.pools)
    return num_cpus <= free.get("CPU", 0.0) and num_gpus <= free.get("GPU", 0.0)


def _who_waits(line: Line, snapshot: Snapshot, limit_s: float) -> str:
    free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
    total = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
    return (
        f"pools that could not get their resources within {limit_s:.0f} s: "
        f"{'; '.join(_waiting(line, snapshot))}; the cluster has {total}, free {free}. "
        "Wait for other jobs to end, give fewer replicas, or raise ray.start_timeout_s"
    )
