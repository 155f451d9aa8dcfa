"""Hands training's metrics, the lines of metrics/<stage>.jsonl, to TensorBoard, Weights & Biases and MLflow.

The driver reads them, not the loop. Of a step each tracker hears once, also after a restart; one that fails or hangs is
left out from then on, and training goes on.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

from moaa_ray.settings.training import TrackerName
from moaa_ray.training_stage.tracker_kinds import KINDS, Line, Tracked, Tracker

_PATIENCE_S = 120.0
"""A tracker is left out after as long with one call, and all have as long for what is left at the end."""


class _Courier(threading.Thread):
    """Tells one tracker, beside the driver: a library or a service that hangs holds nobody up."""

    def __init__(self, make: Callable[[], Tracker]):
        super().__init__(name="moaa-tracker", daemon=True)
        self._make = make
        self.news: SimpleQueue[Sequence[Line] | bool] = SimpleQueue()  # steps; at last whether all of them were taken
        self.problem = ""
        self.busy_since: float | None = time.monotonic()

    def run(self) -> None:
        try:
            tracker = self._make()
            while not isinstance(lines := self._next(), bool):
                new = [line for line in lines if line["step"] >= tracker.next_step]
                if new:
                    tracker.next_step = new[-1]["step"] + 1
                    tracker.add(new)
            tracker.close(is_done=lines)
        except Exception as error:  # whatever a library or its network raises, training is worth more
            self.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def _next(self) -> Sequence[Line] | bool:
        self.busy_since = None
        news = self.news.get()
        self.busy_since = time.monotonic()
        return news


class Trackers:
    """The trackers of a stage, from the start to the end of the `with` block."""

    def __init__(self, names: Sequence[TrackerName], tracked: Tracked, note: Callable[[str], None]):
        """note tells people of a tracker that failed, or that has said nothing for two minutes."""
        self._stage = tracked.stage
        self._note = note
        self._told = 0
        self._couriers = {name: _Courier(partial(KINDS[name], tracked)) for name in names}

    def __enter__(self) -> "Trackers":
        for courier in self._couriers.values():
            courier.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for courier in self._couriers.values():
            courier.news.put(kind is None)
        until = time.monotonic() + _PATIENCE_S
        for courier in self._couriers.values():
            courier.join(max(0.0, until - time.monotonic()))
        self._leave_out(0.0)

    def tell(self, lines: Sequence[Line]) -> None:
        """Hand every tracker the steps among these lines that it has not heard of; nothing is waited for."""
        self._leave_out(_PATIENCE_S)
        new = [line for line in lines if line["step"] >= self._told]
        if new:
            self._told = new[-1]["step"] + 1
            for courier in self._couriers.values():
                courier.news.put(new)

    def _leave_out(self, patience_s: float) -> None:
        """Part with those that failed, and with those that are busy with one thing for that long."""
        for name, courier in list(self._couriers.items()):
            since = courier.busy_since
            busy_s = 0.0 if since is None else time.monotonic() - since
            is_hung = courier.is_alive() and busy_s > patience_s
            if courier.problem or is_hung:
                del self._couriers[name]
                self._note(
                    f"{self._stage}: {name} is left out from here on: "
                    f"{courier.problem or f'no answer for {busy_s:.0f} s'}; metrics/{self._stage}.jsonl has every step"
                )
