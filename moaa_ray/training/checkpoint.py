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
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_slices
from torch.distributed.checkpoint.state_dict_saver import async_save as save_slices_later
from torch.distributed.checkpoint.state_dict_saver import save as save_slices

from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError, MoaaError, StageError
from moaa_ray.training.checkpoint_folders import Folders, Found, folder_of, num_bytes
from moaa_ray.training.checkpoint_storage import TensorReader, TensorWriter, index_of
from moaa_ray.training.strategies.base import Plain, Strategy, from_first

__all__ = ["Checkpoints", "Found"]


@runtime_checkable
class SavesItself(Protocol):
    """A strategy whose state is in a library's own files (DeepSpeed); `save` returns when all workers' are written."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Checkpoints:
    """The checkpoints of one training stage. Every worker has one, and all of them call its methods together."""

    def __init__(self, uri: str, *, fingerprint: Mapping[str, str], keep: int = 2):
        """uri: a folder or object store prefix of their own; fingerprint: what may not change between starts, by name.

        Raises ConfigError for keep < 1.
        """
        self._store = open_store(uri)
        self._folders = Folders(self._store, fingerprint, keep=keep)
        # A group of its own: saving talks in the background, at the same time as training does.
        group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._workers: dict[str, Any] = {"process_group": group, "no_dist": group is None}
        self._saving: tuple[int, Future] | None = None
        # One process is meant; PyTorch says at every save that it assumes so.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

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

        Async: weights and optimizer state are copied to the host's memory, and written while training goes on; the next
        save or `wait` waits for it and raises what went wrong: StageError where it cannot be written. extra is JSON.
        Pruning keeps the newest `keep` checkpoints and those after the pinned steps.
        """
        started = time.perf_counter()
        self.wait()
        publish = partial(self._publish, step, json.loads(json.dumps(extra)), frozenset(pinned))
        if isinstance(strategy, SavesItself):
            self._let_save(strategy, step, publish)
            return time.perf_counter() - started
        writer = TensorWriter(self._store, folder_of(step), publish)
        with self._told(step, "saved"):
            if is_async:
                future = save_slices_later(_tensors(strategy), storage_writer=writer, **self._workers)
                self._saving = step, cast(Future, future)
            else:
                save_slices(_tensors(strategy), storage_writer=writer, **self._workers)
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
        return from_first(self._folders.newest)

    def at(self, step: int) -> Found:
        """The complete checkpoint after this step. Raises StageError where there is none."""
        self.wait()
        found = from_first(lambda: self._folders.read(step))
        if found is None:
            raise StageError(
                f"{self._store.uri}/{folder_of(step)} is not, or no longer, a whole checkpoint; set export: last"
            )
        return found

    def load(self, found: Found, strategy: Strategy) -> None:
        """Put a checkpoint's weights and optimizer state into a strategy, in place.

        Another number of workers may have saved it. Raises ConfigError where it is of another model, StageError or
        DataError where it cannot be read.
        """
        where = f"{self._store.uri}/{found.folder}"
        has_slices = any(name.endswith(".safetensors") for name in found.files)
        if isinstance(strategy, SavesItself) == has_slices:
            raise ConfigError(
                f"{where}: strategy deepspeed has files of its own, and "
                f"{'cannot read those of another strategy' if has_slices else 'no other strategy reads them'}; "
                f"go on with {'fsdp2, ddp or single' if has_slices else 'deepspeed'}, or use another run directory"
            )
        if isinstance(strategy, SavesItself):
            strategy.load(Path(self._store.uri) / found.folder)
            return
        tensors = _tensors(strategy)
        reader = TensorReader(self._store, found.folder, index_of(found.files))
        with self._told(found.step, "read"):
            if other := sorted(reader.read_metadata().state_dict_metadata.keys() ^ tensors.keys()):
                raise ConfigError(
                    f"{where} is a checkpoint of another model: {', '.join(other[:4])} are in one of the two only "
                    f"({len(other)} in all); use another run directory, or the model it is of"
                )
            load_slices(tensors, storage_reader=reader, **self._workers)

    def _publish(self, step: int, extra: dict[str, Any], pinned: frozenset[int], files: dict[str, int]) -> None:
        """In the first worker, when all files are durable."""
        size = dist.get_world_size() if dist.is_initialized() else 1
        self._folders.publish(Found(step=step, extra=extra, world_size=size, files=files))
        self._folders.prune(pinned)

    def _let_save(self, strategy: SavesItself, step: int, publish: Callable[[dict[str, int]], None]) -> None:
        if not self._store.can_rename:
            raise ConfigError(
                f"{self._store.uri}: strategy deepspeed saves to file systems only; use a run directory on one that "
                "all nodes share, or strategy fsdp2"
            )
        folder = folder_of(step)
        from_first(lambda: self._folders.delete(step))  # files of another number of workers would be read as its own
        strategy.save(Path(self._store.uri) / folder)
        os.sync()
        if dist.is_initialized():
            dist.barrier()

        def finish() -> None:
            sizes = {path.removeprefix(f"{folder}/"): num_bytes(self._store, path) for path in self._store.list(folder)}
            publish({name: size for name, size in sizes.items() if size is not None})

        from_first(finish)

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
                f"{self._store.uri}/{folder_of(step)} could not be {what}: {causes[0]!r}; repair the storage and run "
                "the same command again, it goes on from the newest complete checkpoint"
            ) from error


def _tensors(strategy: Strategy) -> dict[str, Tensor]:
    """Trained weights and their optimizer state by name, not copied; slices (DTensor) where they are sharded."""
    tensors = {}
    assert isinstance(strategy, Plain), "other strategies save themselves"
    for name, p in strategy.named_parameters():
        if p.requires_grad:  # what is frozen comes from the student's folder, whose hash is in the fingerprint
            tensors[f"model.{name}"] = p.detach()
            for key, value in _adamw_state(strategy.optimizer, p).items():
                tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _adamw_state(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> dict[str, Tensor]:
    """A parameter's optimizer state; before the first step it is made, as AdamW would make it."""
    if not optimizer.state[p]:
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer.state[p]
