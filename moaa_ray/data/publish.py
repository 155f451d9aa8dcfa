"""Publishing: rows into a public folder that a reader sees whole or not at all, and never from an old driver.

On a POSIX file system the folder is built under work/ and moved into place. Each move a driver makes
starts or ends in its own folder work/publish/<folder>/e<epoch>/; a newer driver takes that folder away
in one step, and with it the older one's power to move anything. In an object store the shards carry
their content's hash and _manifest.json is switched last, on condition that nobody else switched it.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moaa_ray.data.commit import Epoch, check_owner
from moaa_ray.data.manifest import MANIFEST, Manifest, Shard, read_batches, read_manifest, verify
from moaa_ray.data.schemas import SCHEMA_KEY
from moaa_ray.data.store import Store
from moaa_ray.errors import ConfigError, DataError, StageError

__all__ = ["Manifest", "Shard", "fence_publish", "publish", "read_batches", "read_manifest", "verify"]

_HOME = "work/publish"
_FOLDER = re.compile(r"[a-z][a-z0-9_-]*")
_STAGED = re.compile(rf"{_HOME}/({_FOLDER.pattern})/e(\d+)/.+")
_ROW_GROUP_ROWS = 1024
_ZSTD_LEVEL = 3

_Files = Iterator[tuple[bytes, int]]  # Parquet files and their rows
_Sign = Callable[[list[Shard]], Manifest]


def publish(
    store: Store,
    epoch: Epoch,
    folder: str,
    batches: Iterable[pa.Table],
    schema: pa.Schema,
    shard_rows: int,
    facts: Mapping[str, Any],
) -> Manifest:
    """The manifest of the folder, which now holds these rows in shards of shard_rows, the last one shorter.

    Equal rows, schema, shard_rows and facts give equal bytes, however the batches are cut; a folder that
    holds them already is left alone. One compressed shard and one row group are in memory at a time.
    Raises FencedError where a newer driver owns the run, DataError where a batch has another schema.
    """
    if shard_rows < 1:
        raise ConfigError(f"shard_rows = {shard_rows}, a shard has at least 1 row; try 10000")
    if not _FOLDER.fullmatch(folder) or folder == "work":
        raise ValueError(f"public folder {folder!r}: want one lower-case name such as 'sft'")
    shards = _shards(_Rows(batches, schema), schema, shard_rows)
    about = (schema.metadata or {}).get(SCHEMA_KEY, b"").decode()
    way = _publish_by_rename if store.can_rename else _publish_by_manifest
    try:
        return way(store, epoch, folder, shards, partial(_manifest, about=about, facts=facts))
    except FileNotFoundError as error:
        raise _lost(store, epoch, folder) from error


def fence_publish(store: Store, epoch: Epoch) -> None:
    """Takes from all older drivers what they were publishing, and puts back a folder one of them had moved away."""
    if store.can_rename:
        staged = (_STAGED.fullmatch(path) for path in store.list(_HOME))
        for folder in sorted({found[1] for found in staged if found}):
            try:
                _seize(store, epoch, folder)
            except FileNotFoundError as error:
                raise _lost(store, epoch, folder) from error


def _publish_by_rename(store: Store, epoch: Epoch, folder: str, shards: _Files, manifest_of: _Sign) -> Manifest:
    mine = f"{_HOME}/{folder}/e{epoch.number}"
    _seize(store, epoch, folder)
    entries: list[Shard] = []
    for data, num_rows in shards:
        entries.append(_entry(f"part-{len(entries):05d}.parquet", data, num_rows))
        store.put(f"{mine}/new/{entries[-1].name}", data)
        del data  # or it would be in memory beside the next one
    manifest = manifest_of(entries)
    store.put(f"{mine}/new/{MANIFEST}", manifest.to_bytes())
    check_owner(store, epoch)  # after the last file is made: from here on this driver only moves folders
    if not _holds(store, folder, manifest):
        if store.list(folder):
            store.rename_folder(folder, f"{mine}/old")
        store.rename_folder(f"{mine}/new", folder)
    store.delete_folder(mine)
    return manifest


def _seize(store: Store, epoch: Epoch, folder: str) -> None:
    """Moves every older driver's staging folder into this one's, restores what was public, deletes the rest."""
    home = f"{_HOME}/{folder}"
    mine = f"{home}/e{epoch.number}"
    while others := _staging_epochs(store, folder) - {epoch.number}:
        if max(others) > epoch.number:
            raise _lost(store, epoch, folder)
        store.put(f"{mine}/seized", b"")
        for number in sorted(others):
            try:
                store.rename_folder(f"{home}/e{number}", f"{mine}/e{number}")
            except FileNotFoundError:
                check_owner(store, epoch)  # either a newer driver was here, or the older one ended by itself
    if not store.list(folder):
        moved_away = [path for path in store.list(mine) if path.endswith(f"/old/{MANIFEST}")]
        if moved_away:
            newest = min(moved_away, key=lambda path: path.count("/"))
            store.rename_folder(newest.removesuffix(f"/{MANIFEST}"), folder)
    store.delete_folder(mine)


def _staging_epochs(store: Store, folder: str) -> set[int]:
    staged = (_STAGED.fullmatch(path) for path in store.list(f"{_HOME}/{folder}"))
    return {int(found[2]) for found in staged if found}


def _publish_by_manifest(store: Store, epoch: Epoch, folder: str, shards: _Files, manifest_of: _Sign) -> Manifest:
    path = f"{folder}/{MANIFEST}"
    old = store.read(path) if store.exists(path) else None
    present = set(store.list(folder))
    entries: list[Shard] = []
    for data, num_rows in shards:
        digest = hashlib.sha256(data).hexdigest()
        entries.append(_entry(f"part-{len(entries):05d}-{digest[:8]}.parquet", data, num_rows))
        if old is None or digest.encode() not in old or f"{folder}/{entries[-1].name}" not in present:
            store.put(f"{folder}/{entries[-1].name}", data)
        del data  # or it would be in memory beside the next one
    manifest = manifest_of(entries)
    new = manifest.to_bytes()
    check_owner(store, epoch)
    if new != old:
        if not store.can_swap:
            store.put(path, new)
        elif not store.swap(path, new, old=old) and store.read(path) != new:  # equal: our own write, retried
            raise _lost(store, epoch, folder)
    extras = set(store.list(folder)) - {path, *(f"{folder}/{entry.name}" for entry in entries)}
    check_owner(store, epoch)  # after the listing, so that no newer driver's shard is among the extras
    for extra in sorted(extras):
        store.delete(extra)
    return manifest


def _lost(store: Store, epoch: Epoch, folder: str) -> StageError:
    """What to raise when something was moved under this driver: FencedError where a newer one did it."""
    check_owner(store, epoch)
    return StageError(
        f"{store.uri}/{folder} was changed from outside while it was published; run the same command again, "
        f"and let nothing else write there"
    )


def _holds(store: Store, folder: str, manifest: Manifest) -> bool:
    names = {MANIFEST, *(shard.name for shard in manifest.shards)}
    if set(store.list(folder)) != {f"{folder}/{name}" for name in names}:
        return False
    return store.read(f"{folder}/{MANIFEST}") == manifest.to_bytes()


def _entry(name: str, data: bytes, num_rows: int) -> Shard:
    return Shard(name=name, rows=num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _manifest(entries: list[Shard], *, about: str, facts: Mapping[str, Any]) -> Manifest:
    return Manifest(schema=about, rows=sum(entry.rows for entry in entries), shards=tuple(entries), facts=facts)


class _Rows:
    """A stream of tables of any size, given out again in pieces of wanted size, each in one chunk."""

    def __init__(self, batches: Iterable[pa.Table], schema: pa.Schema) -> None:
        self._batches = iter(batches)
        self._schema = schema
        self._held = schema.empty_table()

    def has_more(self) -> bool:
        """Whether there is another row."""
        while not self._held.num_rows and (batch := next(self._batches, None)) is not None:
            self._held = self._checked(batch)
        return self._held.num_rows > 0

    def take(self, num_rows: int) -> pa.Table:
        """The next num_rows rows; fewer only at the end."""
        pieces, missing = [self._held], num_rows - self._held.num_rows
        while missing > 0 and (batch := next(self._batches, None)) is not None:
            pieces.append(self._checked(batch))
            missing -= batch.num_rows
        rows = pa.concat_tables(pieces)
        self._held = rows.slice(num_rows)
        return rows.slice(0, num_rows).combine_chunks()

    def _checked(self, batch: pa.Table) -> pa.Table:
        if batch.schema.names != self._schema.names or batch.schema.types != self._schema.types:
            raise DataError(
                f"rows to publish have the schema {batch.schema.to_string(show_schema_metadata=False)}, wanted is "
                f"{self._schema.to_string(show_schema_metadata=False)}; cast them before publishing"
            )
        return pa.Table.from_arrays(batch.columns, schema=self._schema)


def _shards(rows: _Rows, schema: pa.Schema, shard_rows: int) -> _Files:
    """(Parquet file, its rows) of every shard, at least one; the cut into pages depends on the rows alone."""
    yield _shard(rows, schema, shard_rows)
    while rows.has_more():
        yield _shard(rows, schema, shard_rows)


def _shard(rows: _Rows, schema: pa.Schema, shard_rows: int) -> tuple[bytes, int]:
    out, left = io.BytesIO(), shard_rows
    with pq.ParquetWriter(out, schema, compression="zstd", compression_level=_ZSTD_LEVEL, version="2.6") as writer:
        while left and rows.has_more():
            group = rows.take(min(_ROW_GROUP_ROWS, left))
            writer.write_table(group, row_group_size=_ROW_GROUP_ROWS)
            left -= group.num_rows
    return out.getvalue(), shard_rows - left
