"""A thread beside the plan that shows the coordinator's snapshots while the driver consumes blocks."""

import threading

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from moaa_ray.generation.progress import Progress


class Watcher:
    """Feeds a Progress for the time of a with block."""

    def __init__(self, coordinator, progress: Progress, *, every_s: float):
        self._coordinator = coordinator
        self._progress = progress
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="moaa-progress", daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                snapshot = ray.get(self._coordinator.snapshot.remote(), timeout=30)
            except GetTimeoutError:
                continue
            except RayActorError:  # the phase is over
                return
            self._progress.show(snapshot)
