"""When the pools of a stage were up and busy, over all its starts, for whoever looks at the run later.

Every phase of every start has a file of its own, one line a moment, with counters that only grow; what happened between
two moments is their difference. So a line can be left out without making another one wrong, and a long phase gets
coarser instead of longer.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from moaa_ray.data.store import Store
from moaa_ray.errors import DataError
from moaa_ray.generation.coordinator import PoolSnapshot, Snapshot

Moment = Mapping[str, Any]
"""at (unix time), and under `pools`, by name: workers, starting, up (how many), rows, calls, prompt_tokens,
completion_tokens, busy_s and up_s, the seconds summed over the pool's engines."""

_FIRST_EVERY_S = 1.0
_MOST_MOMENTS = 240
_WRITE_EVERY_S = 10.0


class Timeline:
    """The moments of one phase; at most 240, evenly over its time."""

    def __init__(self, store: Store, stage: str, part: str):
        """part is the phase's name among all phases of all starts; names sort as the phases came."""
        self._store = store
        self._path = f"{_folder(stage)}/{part}.jsonl"
        self._every_s = _FIRST_EVERY_S
        self._moments: list[Moment] = []
        self._written_at = 0.0

    def note(self, snapshot: Snapshot, *, is_last: bool = False, now: float | None = None) -> None:
        """Keep the moment where one is due, and write now and then; the last one always."""
        now = time.time() if now is None else now
        if not is_last and self._moments and now - self._moments[-1]["at"] < self._every_s:
            return
        self._moments.append({"at": round(now, 2), "pools": {pool.name: _counters(pool) for pool in snapshot.pools}})
        if len(self._moments) > _MOST_MOMENTS:
            self._moments = self._moments[::2]
            self._every_s *= 2
        if is_last or now - self._written_at >= _WRITE_EVERY_S:
            self._written_at = now
            self._store.put(self._path, "".join(f"{json.dumps(one)}\n" for one in self._moments).encode())


def read_timelines(store: Store, stage: str) -> list[list[Moment]]:
    """The moments of every phase, in the order in which the phases began."""
    return [_moments(store, path) for path in sorted(store.list(_folder(stage)))]


def _moments(store: Store, path: str) -> list[Moment]:
    try:
        return [json.loads(line) for line in store.read(path).decode().splitlines()]
    except ValueError as error:
        said = f"{store.uri}/{path}: damaged ({error}); remove it, only pictures of the run's course are made of it"
        raise DataError(said) from error


def _folder(stage: str) -> str:
    return f"metrics/timeline/{stage}"


def _counters(pool: PoolSnapshot) -> dict[str, float]:
    states = [stats.state for stats in pool.stats]
    return {
        "workers": pool.num_workers,
        "starting": states.count("starting"),
        "up": states.count("up"),
        "rows": pool.rows_done,
        "calls": sum(stats.calls for stats in pool.stats),
        "prompt_tokens": sum(stats.prompt_tokens for stats in pool.stats),
        "completion_tokens": sum(stats.completion_tokens for stats in pool.stats),
        "busy_s": round(sum(stats.busy_s for stats in pool.stats), 2),
        "up_s": round(sum(stats.up_s for stats in pool.stats), 2),
    }
