"""Units on disk, read by number: Arrow files written chunk by chunk, an index of counts, a manifest written last.

Each unit is one record batch of its own, so any unit is read without the rest of its file. Beside each chunk
stands a small file with its counts, so chunks may be written on any machine and finished without reading them.
A folder belongs to one set of rows and settings; whoever writes other ones takes another folder.
"""

import hashlib
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moaa_ray.data.documents import Document
from moaa_ray.data.manifest import Manifest, Shard, parse_manifest
from moaa_ray.data.schemas import SCHEMA_KEY, schema_name
from moaa_ray.data.store import Store
from moaa_ray.data.units import Unit
from moaa_ray.errors import DataError

UNITS_MANIFEST = "units.json"
UNITS_INDEX = "index.parquet"
UNITS = pa.schema(
    [
        ("ids", pa.list_(pa.string())),
        ("tokens", pa.list_(pa.int32())),
        ("counts", pa.list_(pa.bool_())),
        ("offsets", pa.list_(pa.int32())),  # where each document begins in tokens, and how many tokens there are
    ],
    metadata={SCHEMA_KEY: b"units/1"},
)
_COUNTS = ("num_tokens", "num_targets", "first_targets")
_MAX_OPEN_FILES = 64


def write_chunk(store: Store, folder: str, name: str, units: Sequence[Unit]) -> None:
    """Writes or replaces one chunk. Equal units give equal bytes; chunks are ordered by their names."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.ipc.new_file(sink, UNITS, options=options) as writer:
        for unit in units:
            writer.write_batch(_batch(unit))
    data = sink.getvalue().to_pybytes()
    facts = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_tokens": [unit.num_tokens for unit in units],
        "num_targets": [unit.num_targets for unit in units],
        "first_targets": [unit.documents[0].num_targets for unit in units],
    }
    store.put(f"{folder}/{name}.arrow", data)
    store.put(f"{folder}/{name}.json", json.dumps(facts).encode())


def finish(store: Store, folder: str, facts: Mapping[str, Any]) -> Manifest:
    """Makes the folder's chunks, in the order of their names, a store that can be opened; returns its manifest.

    facts (plain JSON values) go into the manifest, with the sums num_tokens and num_targets. Raises DataError for
    a chunk that was not written to its end.
    """
    paths = store.list(folder)
    names = sorted(path[len(folder) + 1 : -len(".arrow")] for path in paths if path.endswith(".arrow"))
    shards: list[Shard] = []
    columns: dict[str, list[int]] = {column: [] for column in _COUNTS}
    for name in names:
        if f"{folder}/{name}.json" not in paths:
            raise DataError(f"{store.uri}/{folder}/{name}.arrow was not written to its end; write the chunk again")
        chunk = json.loads(store.read(f"{folder}/{name}.json"))
        for column in _COUNTS:
            columns[column] += chunk[column]
        rows = len(chunk["num_tokens"])
        shards.append(Shard(name=f"{name}.arrow", rows=rows, bytes=chunk["bytes"], sha256=chunk["sha256"]))
    out = io.BytesIO()
    pq.write_table(pa.table(columns, schema=pa.schema([(column, pa.int64()) for column in _COUNTS])), out)
    sums = {column: sum(columns[column]) for column in ("num_tokens", "num_targets")}
    index_sha256 = hashlib.sha256(out.getvalue()).hexdigest()
    manifest = Manifest(
        schema=schema_name(UNITS),
        rows=len(columns["num_tokens"]),
        shards=tuple(shards),
        facts={**facts, **sums, "index_sha256": index_sha256},
    )
    store.put(f"{folder}/{UNITS_INDEX}", out.getvalue())
    store.put(f"{folder}/{UNITS_MANIFEST}", manifest.to_bytes())
    return manifest


class UnitStore:
    """A finished folder of units; `read` may be called from several threads."""

    num_tokens: np.ndarray  # int64 [units]
    num_targets: np.ndarray  # int64 [units]
    first_targets: np.ndarray  # int64 [units], of a unit's first document: a pair's chosen one
    manifest: Manifest

    def __init__(self, store: Store, folder: str):
        """Raises DataError for a folder that is missing, not finished, damaged, or of another kind or version."""
        self._store = store
        self._folder = folder
        self.manifest = _manifest_of(store, folder)
        index = _index_of(store, folder, self.manifest)
        self.num_tokens, self.num_targets, self.first_targets = (index[column].to_numpy() for column in _COUNTS)
        self._starts = np.cumsum([0, *(shard.rows for shard in self.manifest.shards)])
        self._lock = threading.Lock()
        self._readers: OrderedDict[int, tuple[IO[bytes], pa.ipc.RecordBatchFileReader]] = OrderedDict()

    def __len__(self) -> int:
        return self.manifest.rows

    def read(self, indices: Sequence[int]) -> list[Unit]:
        """The units with these numbers, in the order asked for. Raises DataError for a file gone or damaged."""
        units = []
        for index in indices:
            assert 0 <= index < len(self), f"unit {index} of {len(self)}"
            file = int(np.searchsorted(self._starts, index, side="right")) - 1
            try:
                with self._lock:
                    batch = self._reader(file).get_batch(int(index - self._starts[file]))
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(file, repr(error)) from error
            units.append(_unit(batch))
        return units

    def _reader(self, file: int) -> pa.ipc.RecordBatchFileReader:
        """The open file; the one not used for longest makes room."""
        if file not in self._readers:
            if len(self._readers) == _MAX_OPEN_FILES:
                _, (oldest, _) = self._readers.popitem(last=False)
                oldest.close()
            self._readers[file] = self._opened(file)
        self._readers.move_to_end(file)
        return self._readers[file][1]

    def _opened(self, file: int) -> tuple[IO[bytes], pa.ipc.RecordBatchFileReader]:
        shard = self.manifest.shards[file]
        opened = self._store.open(f"{self._folder}/{shard.name}")
        try:
            num_bytes = opened.seek(0, io.SEEK_END)
            if num_bytes != shard.bytes:
                raise self._damaged(file, f"{num_bytes} bytes instead of {shard.bytes}")
            return opened, pa.ipc.open_file(pa.PythonFile(opened, mode="r"))
        except BaseException:
            opened.close()
            raise

    def _damaged(self, file: int, why: str) -> DataError:
        path = f"{self._store.uri}/{self._folder}/{self.manifest.shards[file].name}"
        return DataError(f"{path} is gone or was changed after it was written: {why}; delete the folder and run again")


def _manifest_of(store: Store, folder: str) -> Manifest:
    where = f"{store.uri}/{folder}"
    try:
        manifest = parse_manifest(store.read(f"{folder}/{UNITS_MANIFEST}"), f"{where}/{UNITS_MANIFEST}")
    except FileNotFoundError:
        raise DataError(f"{where} is no finished store of units; run the stage that makes it to its end") from None
    if manifest.schema != schema_name(UNITS):
        raise DataError(
            f"{where} holds {manifest.schema!r}, this moaa_ray reads {schema_name(UNITS)!r}; go on with the version "
            "that wrote it, or start a new run directory"
        )
    return manifest


def _index_of(store: Store, folder: str, manifest: Manifest) -> pa.Table:
    where = f"{store.uri}/{folder}/{UNITS_INDEX}"
    try:
        data = store.read(f"{folder}/{UNITS_INDEX}")
    except FileNotFoundError:
        raise DataError(f"{where} is missing; delete the folder and run again") from None
    if hashlib.sha256(data).hexdigest() != manifest.facts["index_sha256"]:
        raise DataError(f"{where} was changed after it was written; delete the folder and run again")
    return pq.read_table(io.BytesIO(data))


def _batch(unit: Unit) -> pa.RecordBatch:
    lengths = [len(document.tokens) for document in unit.documents]
    values = (
        pa.array(unit.ids, pa.string()),
        pa.array(np.concatenate([document.tokens for document in unit.documents]), pa.int32()),
        pa.array(np.concatenate([document.counts for document in unit.documents]), pa.bool_()),
        pa.array(np.cumsum([0, *lengths]), pa.int32()),
    )
    columns = [pa.ListArray.from_arrays(pa.array([0, len(part)], pa.int32()), part) for part in values]
    return pa.record_batch(columns, schema=UNITS)


def _unit(batch: pa.RecordBatch) -> Unit:
    ids, tokens, counts, offsets = (batch.column(name)[0].values for name in UNITS.names)
    tokens, counts = tokens.to_numpy(), counts.to_numpy(zero_copy_only=False)
    offsets = offsets.to_pylist()
    documents = tuple(
        Document(tokens=tokens[start:stop], counts=counts[start:stop]) for start, stop in pairwise(offsets)
    )
    return Unit(ids=tuple(ids.to_pylist()), documents=documents)
