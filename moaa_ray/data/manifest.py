"""The manifest of a published folder: which shards belong to it, and the proof that they are intact."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moaa_ray.data.store import Store
from moaa_ray.errors import DataError

MANIFEST = "_manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a published folder."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a published folder holds; equal rows, settings and facts give equal bytes."""

    schema: str
    """Name and version of the rows' schema, as in its metadata; "" where it has none."""
    rows: int
    shards: tuple[Shard, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        body = {
            "format_version": FORMAT_VERSION,
            "schema": self.schema,
            "rows": self.rows,
            "shards": [asdict(shard) for shard in self.shards],
            "facts": dict(self.facts),
        }
        return (json.dumps({**body, "sha256": _digest(body)}, indent=1, sort_keys=True) + "\n").encode()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in the bytes; DataError where it is torn, edited or of a later format."""
    way_out = "publish the folder again by running the same command"
    try:
        body = json.loads(data)
        version, digest = body["format_version"], body.pop("sha256")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{where} has format version {version}, known is {FORMAT_VERSION}; read it with a newer moaa_ray"
            )
        manifest = Manifest(
            schema=body["schema"],
            rows=body["rows"],
            shards=tuple(Shard(**shard) for shard in body["shards"]),
            facts=body["facts"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is not a manifest ({error!r}); {way_out}") from error
    if digest != _digest(body) or manifest.to_bytes() != data:
        raise DataError(f"{where} was changed after it was published; {way_out}")
    return manifest


def read_manifest(store: Store, folder: str) -> Manifest:
    """The manifest of a published folder; DataError where the folder is not published or the manifest damaged."""
    path = f"{folder}/{MANIFEST}"
    try:
        return parse_manifest(store.read(path), f"{store.uri}/{path}")
    except FileNotFoundError:
        raise DataError(f"{store.uri}/{folder} is not published; run the stage that makes it to its end") from None


def read_batches(
    store: Store, folder: str, batch_rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The published rows in their order, as tables of at most batch_rows rows.

    columns: read only these; a part of a nested one is written as Parquet does, candidates.list.element.completion.
    """
    for shard in read_manifest(store, folder).shards:
        with open_shard(store, f"{folder}/{shard.name}") as parquet:
            for batch in parquet.iter_batches(batch_rows, columns=columns):
                yield pa.Table.from_batches([batch])


@contextmanager
def open_shard(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A published Parquet file. Raises DataError where it is gone or cannot be read."""
    try:
        with store.open(path) as file, pq.ParquetFile(file) as parquet:
            yield parquet
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{store.uri}/{path} is gone or damaged ({error}); run the stage that made it again, which publishes it "
            "anew, or copy the run again"
        ) from error


def verify(store: Store, folder: str) -> list[str]:
    """What is wrong with a published folder, one line each; [] when every byte is as it was published."""
    try:
        manifest = read_manifest(store, folder)
    except DataError as error:
        return [str(error)]
    present = {path.removeprefix(f"{folder}/") for path in store.list(folder)}
    expected = {MANIFEST, *(shard.name for shard in manifest.shards)}
    problems = [f"{folder}/{name} is not in the manifest" for name in sorted(present - expected)]
    for shard in manifest.shards:
        path = f"{folder}/{shard.name}"
        problems += _shard_problems(store, path, shard) if shard.name in present else [f"{path} is missing"]
    total = sum(shard.rows for shard in manifest.shards)
    if total != manifest.rows:
        problems.append(f"{folder}/{MANIFEST} says {manifest.rows} rows, its shards say {total}")
    return problems


def _shard_problems(store: Store, path: str, shard: Shard) -> list[str]:
    try:
        data = store.read(path)
    except FileNotFoundError:
        return [f"{path} is missing"]
    if len(data) != shard.bytes:
        return [f"{path} has {len(data)} bytes, the manifest says {shard.bytes}"]
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        return [f"{path} has another sha256 than the manifest says"]
    try:
        rows = pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        return [f"{path} is not readable Parquet: {error}"]
    return [] if rows == shard.rows else [f"{path} has {rows} rows, the manifest says {shard.rows}"]
