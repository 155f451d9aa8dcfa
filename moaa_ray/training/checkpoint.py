"""Resumable training state: sharded, written while training goes on, complete or not there, pruned.

    step-00000040/  00000-<attempt>.safetensors ...   every worker's slices of weights and optimizer state
                    index-<attempt>.json              which slice is where
                    complete.json                     step, the loop's own values, files with sizes: written last

A folder without complete.json, or one that lacks a file or a byte of what it lists, is no checkpoint. Slices are read
by what they hold, so the number of workers may change, and the strategy among single, ddp and fsdp2. Random state is
not kept: the loop draws it anew from (seed, step).
"""

import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError, MoaaError, StageError
from moaa_ray.training.checkpoint_storage import TensorReader, TensorWriter, index_of
from moaa_ray.training.strategies.base import Strategy, from_first
from moaa_ray.training.weights import plain_name

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
        return _folder(self.step)


@runtime_checkable
class SavesItself(Protocol):
    """A strategy whose state is in a library's own files (DeepSpeed); `save` returns when all workers' are written."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Checkpoints:
    """The checkpoints of one training stage; every worker has one, and all call its methods together but `prune`."""

    def __init__(self, uri: str, *, fingerprint: Mapping[str, str], keep: int = 2):
        """uri: a folder or object store prefix of their own; fingerprint: what may not change between starts, by name.

        Raises ConfigError for keep < 1.
        """
        if keep < 1:
            raise ConfigError(f"keep_checkpoints = {keep}; a run keeps at least its newest checkpoint: set 1 or more")
        self._store = open_store(uri)
        self._fingerprint = dict(fingerprint)
        self._keep = keep
        # Of its own: saving talks in the background, at the same time as training does.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._saving: tuple[int, Future] | None = None

    def save(
        self,
        step: int,
        strategy: Strategy,
        extra: Mapping[str, Any],
        *,
        is_async: bool = True,
        pinned: Collection[int] = (),
    ) -> float:
        """Save the state after `step` steps, then prune; returns the seconds that training stood still for it.

        Async: weights and optimizer state are copied to memory, and written while training goes on; the next save or
        `wait` waits for it and raises what went wrong: StageError where it cannot be written. extra is JSON.
        """
        started = time.perf_counter()
        self.wait()
        publish = partial(self._publish, step, json.loads(json.dumps(extra)), frozenset(pinned))
        if isinstance(strategy, SavesItself):
            self._save_itself(step, strategy, publish)
            return time.perf_counter() - started
        options: dict[str, Any] = {
            "storage_writer": TensorWriter(self._store, _folder(step), publish),
            "process_group": self._group,
            "no_dist": self._group is None,
        }
        with self._told(step, "saved"):
            if is_async:
                self._saving = step, cast(Future, dcp.async_save(_tensors(strategy), **options))
            else:
                dcp.save(_tensors(strategy), **options)
        return time.perf_counter() - started

    def wait(self) -> None:
        """Return when nothing is being saved. Raises StageError where the save under way has failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._told(saving[0], "saved"):
                saving[1].result()

    def newest(self) -> Found | None:
        """The newest complete checkpoint. Raises ConfigError where it is of another run (by the fingerprint)."""
        self.wait()
        return from_first(self._newest)

    def at(self, step: int) -> Found:
        """The complete checkpoint after this step. Raises StageError where there is none."""

        def find() -> Found:
            found = self._read(step)
            if found is None:
                raise StageError(
                    f"{self._store.uri}/{_folder(step)} is not, or no longer, a whole checkpoint; set export: last"
                )
            return found

        self.wait()
        return from_first(find)

    def load(self, found: Found, strategy: Strategy) -> None:
        """Put a checkpoint's weights and optimizer state into a strategy, in place; another number of workers may have
        saved it. Raises ConfigError where it is of another model, StageError or DataError where it cannot be read.
        """
        has_index = any(name.endswith(".safetensors") for name in found.files)
        if isinstance(strategy, SavesItself) == has_index:
            raise ConfigError(
                f"{self._store.uri}/{found.folder} was saved by strategy {'deepspeed' if not has_index else 'fsdp2'} or "
                "a like one, whose files the present one cannot read; go on with the former, or start a new run"
            )
        if isinstance(strategy, SavesItself):
            strategy.load(Path(self._store.uri) / found.folder)
            return
        tensors = _tensors(strategy)
        reader = TensorReader(self._store, found.folder, index_of(found.files))
        with self._told(found.step, "read"):
            stored = reader.read_metadata().state_dict_metadata.keys()
            if other := sorted(stored ^ tensors.keys()):
                raise ConfigError(
                    f"{self._store.uri}/{found.folder} is a checkpoint of another model: {', '.join(other[:4])} are in "
                    f"one of the two only ({len(other)} in all); use another run directory, or the model it is of"
                )
            dcp.load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)

    def prune(self, pinned: Collection[int] = ()) -> None:
        """Delete all but the newest `keep` and the pinned ones, and what broken saves before the newest have left.

        For the first worker alone; save has done it already. complete.json goes first, so no half-deleted one is taken.
        """
        paths = self._store.list()
        steps = sorted({int(name[5:]) for name in {path.split("/")[0] for path in paths} if _is_folder(name)})
        complete = [step for step in steps if f"{_folder(step)}/{MARKER}" in paths and self._read(step) is not None]
        kept = {*complete[-self._keep :], *(step for step in complete if step in pinned)}
        for step in steps:
            if complete and step < complete[-1] and step not in kept:
                self._delete(step)

    def _publish(self, step: int, extra: dict[str, Any], pinned: frozenset[int], files: dict[str, int]) -> None:
        """In the first worker, when all files are durable. Where another attempt has completed this step, that stays."""
        record = {
            "step": step,
            "extra": extra,
            "world_size": dist.get_world_size() if dist.is_initialized() else 1,
            "fingerprint": self._fingerprint,
            "files": files,
        }
        marker, data = f"{_folder(step)}/{MARKER}", json.dumps(record, indent=1).encode()
        if not self._store.put_if_absent(marker, data) and self._read(step) is None:
            self._store.put(marker, data)  # what was there lists files that are damaged or gone
        self.prune(pinned)

    def _save_itself(self, step: int, strategy: SavesItself, publish: Any) -> None:
        if not self._store.can_rename:
            raise ConfigError(
                f"{self._store.uri}: strategy deepspeed saves to file systems only; use a run directory on one that all "
                "nodes share, or strategy fsdp2"
            )
        from_first(lambda: self._delete(step))  # files of another number of workers would be taken for its own
        strategy.save(Path(self._store.uri) / _folder(step))
        os.sync()
        if dist.is_initialized():
            dist.barrier()

        def finish() -> None:
            prefix = f"{_folder(step)}/"
            paths = self._store.list(_folder(step))
            publish({path.removeprefix(prefix): _num_bytes(self._store, path) for path in paths})

        from_first(finish)

    def _delete(self, step: int) -> None:
        self._store.delete(f"{_folder(step)}/{MARKER}")
        self._store.delete_folder(_folder(step))

    def _newest(self) -> Found | None:
        markers = [path for path in self._store.list() if _is_folder(path.removesuffix(f"/{MARKER}"))]
        found = (self._read(int(path[5:13])) for path in sorted(markers, reverse=True))
        return next((checkpoint for checkpoint in found if checkpoint is not None), None)

    def _read(self, step: int) -> Found | None:
        """The checkpoint of a step, if all its files are there and whole."""
        folder = _folder(step)
        try:
            record = json.loads(self._store.read(f"{folder}/{MARKER}"))
        except FileNotFoundError:
            return None
        self._check_fingerprint(folder, record["fingerprint"])
        files = record["files"]
        if any(_num_bytes(self._store, f"{folder}/{name}") != size for name, size in files.items()):
            return None
        return Found(step=step, extra=record["extra"], world_size=record["world_size"], files=files)

    def _check_fingerprint(self, folder: str, other: dict[str, str]) -> None:
        fields = {**other, **self._fingerprint}
        changed = [
            f"{field} was {other.get(field, 'not there')}, is {self._fingerprint.get(field, 'not there')}"
            for field in fields
            if other.get(field) != self._fingerprint.get(field)
        ]
        if changed:
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise ConfigError(
                f"{self._store.uri}/{folder} is a checkpoint of another run: {'; '.join(changed[:4])}{more}; use another "
                "run directory, undo the change, or delete the checkpoints to train anew"
            )

    @contextmanager
    def _told(self, step: int, what: str) -> Iterator[None]:
        """Turns the errors that PyTorch has collected from all workers into one of ours, the same in each of them."""
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            ours = next((cause for cause in causes if isinstance(cause, MoaaError)), None)
            if ours is not None:
                raise ours from error
            raise StageError(
                f"{self._store.uri}/{_folder(step)} could not be {what}: {causes[0]!r}; repair the storage and run the "
                "same command again, it goes on from the newest complete checkpoint"
            ) from error


def _tensors(strategy: Strategy) -> dict[str, Tensor]:
    """Weights and optimizer state by name, not copied; slices (DTensor) where they are sharded."""
    tensors = {}
    for name, p in strategy.model.named_parameters():
        tensors[f"model.{plain_name(name)}"] = p.detach()
        if p.requires_grad:
            for key, value in _adamw_state(strategy.optimizer, p).items():
                tensors[f"optimizer.{plain_name(name)}.{key}"] = value
    return tensors


def _adamw_state(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> dict[str, Tensor]:
    """A parameter's optimizer state; before the first step it is made, as AdamW would make it."""
    if not optimizer.state[p]:
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer.state[p]


def _folder(step: int) -> str:
    return f"step-{step:08d}"


def _is_folder(name: str) -> bool:
    return name.startswith("step-") and len(name) == 13 and name[5:].isdigit()


def _num_bytes(store: Store, path: str) -> int | None:
    """None where there is no such file."""
    try:
        with store.open(path) as file:
            return file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return None
