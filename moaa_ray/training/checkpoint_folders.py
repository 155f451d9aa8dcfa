"""Which folders of a training stage are complete checkpoints: publishing, finding and deleting them.

Plain files and JSON, no tensors: one process does it, for all workers.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from moaa_ray.data.store import Store
from moaa_ray.errors import ConfigError

MARKER = "complete.json"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A complete checkpoint."""

    step: int
    extra: dict[str, Any]
    """What the loop gave to save."""
    world_size: int
    """Workers that wrote it."""
    files: dict[str, int]
    """Names in its folder, with bytes."""

    @property
    def folder(self) -> str:
        """Its folder among the checkpoints."""
        return folder_of(self.step)


class Folders:
    """The folders step-<step> of a store. Complete is one with complete.json, whose files are all there and whole."""

    def __init__(self, store: Store, fingerprint: Mapping[str, str], *, keep: int):
        """Raises ConfigError for keep < 1."""
        if keep < 1:
            raise ConfigError(f"keep_checkpoints = {keep}; a run keeps at least its newest checkpoint: set 1 or more")
        self._store = store
        self._fingerprint = dict(fingerprint)
        self._keep = keep

    def publish(self, checkpoint: Found) -> None:
        """Make a folder, whose files are durable, a checkpoint. One that is complete already stays what it is."""
        record = {
            "step": checkpoint.step,
            "extra": checkpoint.extra,
            "world_size": checkpoint.world_size,
            "fingerprint": self._fingerprint,
            "files": checkpoint.files,
        }
        marker, data = f"{checkpoint.folder}/{MARKER}", json.dumps(record, indent=1).encode()
        if not self._store.put_if_absent(marker, data) and self.read(checkpoint.step) is None:
            self._store.put(marker, data)  # what was there lists files that are damaged or gone

    def read(self, step: int) -> Found | None:
        """The checkpoint after a step; None where there is none, or a broken one.

        Raises ConfigError where it is of another run, by the fingerprint.
        """
        folder = folder_of(step)
        try:
            record = json.loads(self._store.read(f"{folder}/{MARKER}"))
            found = Found(
                step=step, extra=record["extra"], world_size=record["world_size"], files=dict(record["files"])
            )
            fingerprint = dict(record["fingerprint"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # one that is damaged vouches for no file
            return None
        self._check_fingerprint(folder, fingerprint)
        is_whole = all(num_bytes(self._store, f"{folder}/{name}") == size for name, size in found.files.items())
        return found if is_whole else None

    def newest(self) -> Found | None:
        """The newest complete checkpoint. Raises ConfigError where it is of another run."""
        with_marker = {step for step, paths in self._paths().items() if f"{folder_of(step)}/{MARKER}" in paths}
        found = (self.read(step) for step in sorted(with_marker, reverse=True))
        return next((checkpoint for checkpoint in found if checkpoint is not None), None)

    def prune(self, pinned: Collection[int]) -> None:
        """Delete all but the newest `keep` and the pinned, and what broken saves from before the newest have left."""
        steps = sorted(self._paths())
        complete = [step for step in steps if self.read(step) is not None]
        kept = {*complete[-self._keep :], *(step for step in complete if step in pinned)}
        for step in steps:
            if complete and step < complete[-1] and step not in kept:
                self.delete(step)

    def delete(self, step: int) -> None:
        """Delete a checkpoint; complete.json goes first, so that no half-deleted one is taken for whole."""
        self._store.delete(f"{folder_of(step)}/{MARKER}")
        self._store.delete_folder(folder_of(step))

    def _paths(self) -> dict[int, set[str]]:
        """Step -> files of its folder."""
        paths: dict[int, set[str]] = {}
        for path in self._store.list():
            name = path.split("/")[0].removeprefix("step-")
            if name.isdigit() and path.startswith(f"{folder_of(int(name))}/"):
                paths.setdefault(int(name), set()).add(path)
        return paths

    def _check_fingerprint(self, folder: str, other: Mapping[str, str]) -> None:
        mine = self._fingerprint
        changed = [
            f"{field} was {other.get(field, 'not there')}, is {mine.get(field, 'not there')}"
            for field in {**other, **mine}
            if other.get(field) != mine.get(field)
        ]
        if changed:
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise ConfigError(
                f"{self._store.uri}/{folder} is a checkpoint of another run: {'; '.join(changed[:4])}{more}; use "
                "another run directory, undo the change, or delete the checkpoints to train anew"
            )


def folder_of(step: int) -> str:
    """The folder of the checkpoint after a step."""
    return f"step-{step:08d}"


def num_bytes(store: Store, path: str) -> int | None:
    """The size of a file; None where there is none."""
    try:
        with store.open(path) as file:
            return file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return None
