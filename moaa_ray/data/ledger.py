"""The committed blocks as a ledger: the newest record of every row, and rows fetched by where they stand."""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moaa_ray.core.row_refs import RowRef, RowRefs
from moaa_ray.data.store import Store
from moaa_ray.errors import DataError

STATUSES = ("open", "ok", "failed", "quarantined", "dropped")
_CACHED_TABLES = 4
_WAY_OUT = "restore the file, or delete it and run the same command again: its rows are then asked again"


@dataclass(frozen=True, kw_only=True)
class BlockFile:
    """A committed block of a stage."""

    path: str
    round: int
    phase: int
    epoch: int
    key: str

    @property
    def order(self) -> tuple[int, int, int, str]:
        """Of two records of one row, the one from the file with the greater order counts.

        A driver goes on from the newest record, so its own is newer whatever its place in the line: a row that
        failed at the end of the line is asked again from an earlier phase on.
        """
        return (self.epoch, self.round, self.phase, self.key)


class Statuses:
    """For each row id its newest record; columns of numbers, so that a million rows stay small."""

    def __init__(self, files: Sequence[BlockFile], ids: Sequence[pa.Array], codes: Sequence[np.ndarray]) -> None:
        """Takes files in ascending order, and of each its ids and their places in STATUSES."""
        self._files = list(files)
        coded = pa.chunked_array(ids, pa.large_string()).dictionary_encode().combine_chunks()
        self._ids = coded.dictionary
        at = np.zeros(len(self._ids), np.int64)
        at[coded.indices.to_numpy()] = np.arange(len(coded))  # of equal indices the last one stays
        starts = np.cumsum([0, *(len(part) for part in codes)])
        self._file = (np.searchsorted(starts, at, side="right") - 1).astype(np.int32)
        self._row = (at - starts[self._file]).astype(np.int64)
        self._status = np.concatenate([*codes, np.zeros(0, np.int8)])[at]

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids.to_pylist())

    def items(self) -> Iterator[tuple[str, tuple[BlockFile, int, str]]]:
        """(id, (file, row, status)) of every row, in the order in which their first records come in the files."""
        for row_id, file, row, code in zip(
            self, self._file.tolist(), self._row.tolist(), self._status.tolist(), strict=True
        ):
            yield row_id, (self._files[file], row, STATUSES[code])

    def newest(self, ids: Sequence[str] | pa.Array) -> Iterator[tuple[BlockFile, int, str] | None]:
        """(file, row, status) of each row's newest record, None where it has none."""
        for place in self._places(ids):
            if place < 0:
                yield None
            else:
                yield self._files[self._file[place]], int(self._row[place]), STATUSES[self._status[place]]

    def of(self, ids: Sequence[str] | pa.Array) -> list[str | None]:
        """The status of each row, None where it has no record; quick for many ids at once."""
        places = self._places(ids)
        codes = np.where(places < 0, -1, self._status[places] if len(self) else -1)
        return [None if code < 0 else STATUSES[code] for code in codes.tolist()]

    def refs(self, ids: Sequence[str] | pa.Array) -> RowRefs:
        """Each row's newest record, for read_rows; DataError where a row has none."""
        places = self._places(ids)
        if (places < 0).any():
            missing = ids[int(np.argmin(places))]
            raise DataError(f"row {missing} has no committed record; run the stage to its end before reading it")
        return self._refs_at(places)

    def refs_of(self, ids: Sequence[str] | pa.Array, statuses: Collection[str]) -> RowRefs:
        """The newest records of those of the rows that stand at one of the statuses, in the order given."""
        places = self._places(ids)
        places = places[places >= 0]
        wanted = [code for code, status in enumerate(STATUSES) if status in statuses]
        return self._refs_at(places[np.isin(self._status[places], wanted)])

    def _refs_at(self, places: np.ndarray) -> RowRefs:
        paths = [file.path for file in self._files]
        return RowRefs((paths[f], r) for f, r in zip(self._file[places], self._row[places], strict=True))

    def counts(self) -> dict[str, int]:
        """How many rows stand at each status; every status is a key."""
        return dict(zip(STATUSES, np.bincount(self._status, minlength=len(STATUSES)).tolist(), strict=True))

    def _places(self, ids: Sequence[str] | pa.Array) -> np.ndarray:
        wanted = pa.array(ids, pa.large_string()) if isinstance(ids, Sequence) else ids.cast(pa.large_string())
        return _index_in(wanted, self._ids).to_numpy(zero_copy_only=False).astype(np.int64)


def read_statuses(store: Store, files: Sequence[BlockFile], *, num_threads: int | None = None) -> Statuses:
    """The newest record of every row in the files, read from the columns id and status alone.

    num_threads: None picks 16 for an object store, whose answers take long, and 4 for a file system.
    Raises DataError naming the file that cannot be read or holds what no block may hold.
    """
    files = sorted(files, key=lambda file: file.order)
    read = partial(_read_status_columns, store)
    num_threads = num_threads or (4 if store.can_rename else 16)
    if num_threads == 1 or len(files) < 2:
        columns = [read(file) for file in files]
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            columns = list(pool.map(read, files))
    return Statuses(files, [ids for ids, _ in columns], [codes for _, codes in columns])


def _read_status_columns(store: Store, file: BlockFile) -> tuple[pa.Array, np.ndarray]:
    table = read_block(store, file.path, columns=["id", "status"]).combine_chunks()
    ids = pa.concat_arrays([pa.array([], pa.large_string()), *table["id"].cast(pa.large_string()).chunks])
    codes = _index_in(table["status"].cast(pa.string()), pa.array(STATUSES)).to_numpy().astype(np.int8)
    if ids.null_count or (codes < 0).any():
        raise DataError(
            f"{store.uri}/{file.path} holds a row without an id or with a status outside {', '.join(STATUSES)}; "
            f"{_WAY_OUT}"
        )
    return ids, codes


def _index_in(values: pa.Array | pa.ChunkedArray, known: pa.Array) -> pa.Array:
    """For each value its place in `known`, -1 where it has none."""
    return pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=known)).fill_null(-1)


def read_block(store: Store, path: str, *, columns: Sequence[str] | None = None, may_lack: bool = False) -> pa.Table:
    """A committed block, or some of its columns. Raises DataError, with the way out, where it cannot be read.

    may_lack: a column that is not there is left out.
    """
    try:
        with store.open(path) as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
            names = parquet.schema_arrow.names
            missing = [name for name in columns or () if name not in names]
            if missing and may_lack:
                columns = [name for name in columns or () if name in names]
            elif missing:
                raise DataError(f"{store.uri}/{path} lacks the columns {missing}, has {names}; {_WAY_OUT}")
            return parquet.read(columns=None if columns is None else list(columns), use_threads=False)
    except FileNotFoundError:
        raise DataError(
            f"{store.uri}/{path} was committed and is gone; restore it, or start in a new run directory"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{store.uri}/{path} is not readable Parquet ({error}); {_WAY_OUT}") from error


def read_rows(
    store: Store, refs: Sequence[RowRef], *, batch_rows: int, schema: pa.Schema | None = None
) -> Iterator[pa.Table]:
    """The rows at (path, row) in exactly that order, as tables of batch_rows rows, the last one shorter.

    schema: the columns to give, in its order; a column that a file lacks is null. Without it, columns are
    unified within each table. A file is decoded once per table at most, and a few stay decoded between them.
    """
    cache: OrderedDict[str, pa.Table] = OrderedDict()
    for start in range(0, len(refs), batch_rows):
        rows_of: dict[str, list[int]] = {}
        places: dict[str, list[int]] = {}
        for place, (path, row) in enumerate(refs[start : start + batch_rows]):
            rows_of.setdefault(path, []).append(row)
            places.setdefault(path, []).append(place)
        pieces = [_conformed(_cached(store, path, cache, schema).take(rows), schema) for path, rows in rows_of.items()]
        order = np.argsort(np.concatenate([places[path] for path in rows_of]))
        yield pa.concat_tables(pieces, promote_options="permissive").take(pa.array(order))


def _cached(store: Store, path: str, cache: OrderedDict[str, pa.Table], schema: pa.Schema | None) -> pa.Table:
    names = None if schema is None else schema.names
    table = cache.pop(path, None)
    cache[path] = read_block(store, path, columns=names, may_lack=True) if table is None else table
    if len(cache) > _CACHED_TABLES:
        cache.popitem(last=False)
    return cache[path]


def _conformed(table: pa.Table, schema: pa.Schema | None) -> pa.Table:
    if schema is None:
        return table
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
