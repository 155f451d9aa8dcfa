"""The storage under torch.distributed.checkpoint: safetensors and JSON through a run's own store, without pickles.

PyTorch plans who writes which slice and who reads what of it; here is where the bytes go. Its own file writers pickle
the index, which a reader would have to trust. A folder holds one file per worker and attempt, so that nothing is ever
overwritten, and an index. What makes them a checkpoint, complete.json, is for checkpoint.py to write.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from moaa_ray.data.store import Store
from moaa_ray.training.tensor_files import DTYPES, Layout, new_file, read_header, read_part, write_header, write_tensor

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorWriter(StorageWriter):
    """Writes each worker's tensors into a file of its own; the first worker publishes when all are durable."""

    def __init__(self, store: Store, folder: str, publish: Callable[[dict[str, int]], None]):
        """publish takes the files of the folder, with their bytes."""
        self._store, self._folder, self._publish = store, folder, publish
        self._attempt = uuid.uuid4().hex[:8]  # the first worker's is everybody's

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this worker's file."""
        layouts = {item.index.fqn: _layout_of(item) for item in plan.items}
        assert len(layouts) == len(plan.items), "a worker has one slice of each tensor"
        results = []
        if layouts:
            with new_file(f"{self._store.uri}/{self._folder}", plan.storage_data) as stream:
                num_bytes = write_header(stream, layouts)
                for item in plan.items:
                    write_tensor(stream, planner.resolve_data(item))  # pyright: ignore
            results = [
                WriteResult(index=item.index, size_in_bytes=num_bytes, storage_data=plan.storage_data)
                for item in plan.items
            ]
        return _done(results)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name every worker's file; no two attempts share a name."""
        return [
            replace(plan, storage_data=f"{rank:05d}-{self._attempt}.safetensors") for rank, plan in enumerate(plans)
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """In the first worker, when every file is durable: the index, then publish."""
        files = {result.storage_data: result.size_in_bytes for of_rank in results for result in of_rank}
        file_of = {result.index: result.storage_data for of_rank in results for result in of_rank}
        index = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            slices = [
                {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes)}
                | {"file": file_of[MetadataIndex(name, chunk.offsets)]}
                for chunk in entry.chunks
            ]
            index[name] = {"dtype": _NAMES[entry.properties.dtype], "shape": list(entry.size), "slices": slices}
        data = json.dumps({"tensors": index}).encode()
        index_name = f"index-{self._attempt}.json"
        self._store.put(f"{self._folder}/{index_name}", data)
        self._publish(files | {index_name: len(data)})

    def reset(self, checkpoint_id: str | PathLike | None = None) -> None:
        """Nothing to forget: one writer, one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to open."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """PyTorch's plan as it is."""
        return plan

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike) -> bool:
        """Unused: the folder is given at construction."""
        return False


class TensorReader(StorageReader):
    """Reads what TensorWriter wrote; any number of workers may have written it."""

    def __init__(self, store: Store, folder: str, index_name: str):
        self._store, self._folder, self._index_name = store, folder, index_name
        self._file_of: dict[MetadataIndex, str] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Every tensor's shape and slices."""
        index = json.loads(self._store.read(f"{self._folder}/{self._index_name}"))["tensors"]
        tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        for name, entry in index.items():
            chunks = [ChunkStorageMetadata(_size(part["offsets"]), _size(part["sizes"])) for part in entry["slices"]]
            properties = TensorProperties(dtype=DTYPES[entry["dtype"]])
            tensors[name] = TensorStorageMetadata(properties=properties, size=_size(entry["shape"]), chunks=chunks)
            for part in entry["slices"]:
                self._file_of[MetadataIndex(name, part["offsets"])] = part["file"]
        return Metadata(state_dict_metadata=tensors)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what the plan asks for into the tensors that are there."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self._file_of[item.storage_index], []).append(item)
        for file, items in by_file.items():
            with self._store.open(f"{self._folder}/{file}") as stream:
                layouts = read_header(stream)
                for item in items:
                    layout = layouts[item.storage_index.fqn]
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(read_part(stream, layout, item.storage_offsets, item.lengths))
                    planner.commit_tensor(item, target)
        return _done(None)

    def reset(self, checkpoint_id: str | PathLike | None = None) -> None:
        """Nothing to forget: one reader, one checkpoint."""

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """read_metadata has kept what is needed."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """PyTorch's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """PyTorch's plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike) -> bool:
        """Unused: the folder is given at construction."""
        return False


def index_of(files: Mapping[str, int]) -> str:
    """The index among a checkpoint's files."""
    return next(name for name in files if name.endswith(".json"))


def _layout_of(item: WriteItem) -> Layout:
    assert item.tensor_data is not None, f"{item.index.fqn} is not a tensor"
    return Layout(dtype=item.tensor_data.properties.dtype, shape=tuple(item.tensor_data.chunk.sizes))


def _size(numbers: Sequence[int]) -> torch.Size:
    return torch.Size(numbers)


def _done(result: Any) -> Future:
    future = Future()
    future.set_result(result)
    return future
