"""metrics/<stage>.jsonl: one line a step, each step once, also after a restart."""

import json
import time
from collections.abc import Mapping
from typing import Any

from moaa_ray.data.store import Store
from moaa_ray.errors import DataError

_FLUSH_EVERY_S = 2.0


def read_metrics(store: Store, path: str) -> list[dict[str, Any]]:
    """The lines of a metrics file, oldest first; [] where there is none. Raises DataError for a damaged one."""
    if not store.exists(path):
        return []
    try:
        return [json.loads(line) for line in store.read(path).decode().splitlines()]
    except ValueError as error:
        said = f"{store.uri}/{path}: damaged ({error}); restore it, or remove it, and the numbers of its steps with it"
        raise DataError(said) from error


def validation_score(line: Mapping[str, Any], best_by: str) -> float:
    """What the best step is chosen by, larger is better: a metric of validation, of the loss its negative."""
    value = line[f"validation_{best_by}"]
    return -value if best_by == "loss" else value


class MetricsLog:
    """The metrics file of a stage, kept by rank 0; replaced whole, so that a reader never sees half a line."""

    def __init__(self, store: Store, path: str, *, next_step: int):
        """Goes on behind the lines of steps before next_step; later ones belong to a run that was cut off."""
        self._store = store
        self._path = path
        self._lines = [json.dumps(line) for line in read_metrics(store, path) if line["step"] < next_step]
        self._flushed_at = 0.0

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is written at once if the last write is some seconds old."""
        self._lines.append(json.dumps(dict(line)))
        if time.monotonic() - self._flushed_at > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        self._flushed_at = time.monotonic()
        self._store.put(self._path, "".join(f"{line}\n" for line in self._lines).encode())
