"""Single rows out of published folders and failure files, without reading the rest.

The id columns are read as a whole; of everything else only the row groups that hold a wanted row.
"""

import difflib
import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moaa_ray.data import commit
from moaa_ray.data.manifest import MANIFEST, open_shard, read_manifest
from moaa_ray.data.schemas import Record
from moaa_ray.data.store import Store

_BATCH_ROWS = 16
_NUM_NEAR = 5
_MOST_COMPARED = 300


@dataclass(frozen=True, kw_only=True)
class FoundRow:
    """A row, and where it stands."""

    record: Record
    path: str
    number: int
    """Of the row in its folder, from 0."""

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.path} row {self.number:,}"


def is_published(store: Store, folder: str) -> bool:
    """Whether the folder is there as a whole."""
    return store.exists(f"{folder}/{MANIFEST}")


def find_rows(
    store: Store, folder: str, ids: Collection[str], columns: Sequence[str] | None = None
) -> Iterator[FoundRow]:
    """The rows with these ids, in the folder's order; columns as in `read_batches`.

    Raises DataError where the folder is not published.
    """
    first = 0
    for shard in read_manifest(store, folder).shards:
        yield from find_in_file(store, f"{folder}/{shard.name}", ids, columns, first=first)
        first += shard.rows


def find_in_file(
    store: Store, path: str, ids: Collection[str], columns: Sequence[str] | None = None, *, first: int = 0
) -> Iterator[FoundRow]:
    """The same out of one Parquet file; first is the number of its first row."""
    wanted = pa.array(sorted(ids), pa.string())
    with open_shard(store, path) as parquet:
        for group in range(parquet.num_row_groups):
            known = parquet.read_row_group(group, columns=["id"]).column("id").combine_chunks()
            here = pc.call_function("is_in", [known], pc.SetLookupOptions(value_set=wanted))
            places = np.flatnonzero(here.to_numpy(zero_copy_only=False)).tolist()
            for place, record in _records(parquet, group, places, columns):
                yield FoundRow(record=record, path=path, number=first + place)
            first += len(known)


def find_row(store: Store, folder: str, row_id: str) -> FoundRow | None:
    """One row; None where the folder does not hold it, or is not published."""
    return next(find_rows(store, folder, [row_id]), None) if is_published(store, folder) else None


def find_failure(store: Store, name: str, row_id: str) -> FoundRow | None:
    """One row of failures/<name>.parquet; None where it is not there."""
    path = f"failures/{name}.parquet"
    return next(find_in_file(store, path, [row_id]), None) if store.exists(path) else None


def committed_failure(store: Store, stage: str, row_id: str) -> FoundRow | None:
    """The same of a row that had failed when its stage stopped, which publishes its failures at the end alone."""
    statuses = commit.read_statuses(store, commit.committed_so_far(store, stage))
    refs = statuses.refs_of([row_id], ("failed", "quarantined", "dropped"))
    for table in commit.read_rows(store, refs, batch_rows=1):
        (record,) = table.to_pylist()
        rule, _, detail = record["reason"].partition(": ")
        about = {"reason": rule, "detail": detail or rule, "proposals": []}
        return FoundRow(record={**record, **about}, path=refs[0][0], number=refs[0][1])
    return None


def all_ids(store: Store, folder: str) -> list[str]:
    """The ids of a folder; [] where it is not published."""
    found: list[str] = []
    for shard in read_manifest(store, folder).shards if is_published(store, folder) else ():
        with open_shard(store, f"{folder}/{shard.name}") as parquet:
            found += parquet.read(columns=["id"]).column("id").to_pylist()
    return found


def nearest(wanted: str, ids: Collection[str]) -> list[str]:
    """A few ids that somebody may have meant: those that hold the text, then those that begin and end like it."""
    holding = heapq.nsmallest(_NUM_NEAR, (known for known in ids if wanted and wanted in known), key=len)
    like = heapq.nlargest(_MOST_COMPARED, ids, key=lambda known: _common(wanted, known))
    ratio = difflib.SequenceMatcher(b=wanted)
    similar: list[tuple[float, str]] = []
    for known in like:
        ratio.set_seq1(known)
        similar.append((-_common(wanted, known) - len(wanted) * ratio.ratio(), known))
    best = [known for _, known in heapq.nsmallest(_NUM_NEAR, similar)]
    return list(dict.fromkeys([*holding, *best]))[:_NUM_NEAR]


def _common(one: str, other: str) -> int:
    """Characters at the beginning and at the end that two texts share."""
    start = len(commonprefix([one, other]))  # noqa: RUF071 - characters are what is wanted
    return start + len(commonprefix([one[start:][::-1], other[start:][::-1]]))  # noqa: RUF071


def _records(
    parquet: pq.ParquetFile, group: int, places: list[int], columns: Sequence[str] | None
) -> Iterator[tuple[int, Record]]:
    if not places:
        return
    start, left = 0, list(places)
    for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
        while left and left[0] < start + batch.num_rows:
            place = left.pop(0)
            yield place, batch.slice(place - start, 1).to_pylist()[0]
        start += batch.num_rows
        if not left:
            return
