"""A dataset in chunks of rows that can be read one by one on any machine: what a job over it is made of."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import IO, cast

import pyarrow.parquet as pq

from moaa_ray.core.seeds import seed_for
from moaa_ray.data.locations import SourceFiles
from moaa_ray.data.readers import (
    BadRecord,
    Record,
    batches_of,
    is_plain_lines,
    line_parts,
    no_column,
    opened,
    read_from,
    read_records,
)
from moaa_ray.data.schemas import SCHEMA_KEY
from moaa_ray.errors import DataError

_END_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows [start, stop) of one file; first is how many rows of the dataset come before them."""

    file: int
    start: int
    stop: int
    first: int
    byte: int = 0  # of the file at which they begin, where it can be read from there


def find_chunks(files: SourceFiles, *, chunk_rows: int) -> list[Chunk]:
    """The whole dataset in chunks of at most chunk_rows rows, in order."""
    chunks: list[Chunk] = []
    first = 0
    for i in range(len(files.paths)):
        start = 0
        for rows, byte in _parts(files, i, chunk_rows):
            chunks.append(Chunk(file=i, start=start, stop=start + rows, first=first, byte=byte))
            start, first = start + rows, first + rows
    if not first:
        raise DataError(f"{files.paths[0]}: holds no row; name a dataset with rows")
    return chunks


def _parts(files: SourceFiles, number: int, chunk_rows: int) -> Iterator[tuple[int, int]]:
    """(rows, byte at which they begin) of every chunk of a file."""
    path = files.paths[number]
    if is_plain_lines(files, path):
        yield from line_parts(files, path, chunk_rows)
        return
    if files.format == "parquet":
        with opened(files, path) as raw:
            metadata = pq.ParquetFile(raw).metadata
            total = sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    else:
        total = sum(1 for _ in read_records(SourceFiles(fs=files.fs, paths=(path,), format=files.format)))
    yield from ((min(chunk_rows, total - start), 0) for start in range(0, total, chunk_rows))


def read_chunk(files: SourceFiles, chunk: Chunk, columns: Sequence[str]) -> Iterator[tuple[int, Record]]:
    """(number of the row in its file, its record) of a chunk. Columns that Parquet lacks are left out."""
    path = files.paths[chunk.file]
    if is_plain_lines(files, path):
        records = itertools.islice(read_from(files, path, chunk.byte), chunk.stop - chunk.start)
        yield from enumerate(records, chunk.start)
        return
    if files.format != "parquet":
        one = SourceFiles(fs=files.fs, paths=(path,), format=files.format)
        for number, (_, record) in enumerate(itertools.islice(read_records(one), chunk.start, chunk.stop), chunk.start):
            yield number, record
        return
    with opened(files, path) as raw:
        parquet = pq.ParquetFile(raw)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
        starts = [0, *itertools.accumulate(sizes)]
        groups = [i for i in range(len(sizes)) if starts[i] < chunk.stop and starts[i + 1] > chunk.start]
        wanted = [column for column in columns if column in parquet.schema_arrow.names]
        number = starts[groups[0]]
        for batch in batches_of(parquet, groups, wanted):
            first, last = max(0, chunk.start - number), min(batch.num_rows, chunk.stop - number)
            if first < last:
                part = batch.slice(first, last - first)
                part.validate(full=True)  # offsets and UTF-8
                yield from enumerate(part.to_pylist(), number + first)
            number += batch.num_rows


def check_columns(files: SourceFiles, needed: Sequence[str], *, schema: str) -> None:
    """Raise ConfigError where a dataset's first file lacks a column, DataError where it is of another schema of ours.

    schema is "<name>/<version>"; files that other programs wrote declare none and are taken by their columns.
    """
    path = files.paths[0]
    if files.format == "parquet":
        with opened(files, path) as raw:
            found = pq.ParquetFile(raw).schema_arrow
        declared = (found.metadata or {}).get(SCHEMA_KEY, b"").decode("utf-8", "replace")
        if declared and declared != schema:
            raise DataError(
                f"{path}: holds schema {declared!r}, where {schema!r} is expected; name the folder of that kind, or "
                "make the data again with this version"
            )
        names = found.names
    else:
        record = next((record for _, record in read_records(files) if not isinstance(record, BadRecord)), {})
        names = list(record)
        if not names:
            raise DataError(f"{path}: holds no row that can be read; name a dataset with rows")
    for column in needed:
        if column not in names:
            way_out = f"rename its columns, or name data that has {' and '.join(needed)}"
            raise no_column(path, column, names, way_out=way_out)


def drawn_rows(num_rows: int, wanted: int, *, seed: int, name: str) -> set[int]:
    """Numbers of `wanted` rows out of num_rows, without replacement, by the seed and the dataset's name."""
    if wanted >= num_rows:
        return set(range(num_rows))
    return set(Random(seed_for(seed, "rows", name)).sample(range(num_rows), wanted))


def digest_of_files(files: SourceFiles) -> str:
    """A hash of the files' names, sizes, first and last MiB: another dataset gives another one."""
    digest = sha256()
    for path in files.paths:
        size = int(files.fs.info(path)["size"])
        digest.update(f"{path.rsplit('/', 1)[-1]} {size} ".encode())
        with files.fs.open(path, "rb") as file:
            raw = cast(IO[bytes], file)
            digest.update(raw.read(_END_BYTES))
            if size > _END_BYTES:
                raw.seek(max(_END_BYTES, size - _END_BYTES))
                digest.update(raw.read())
    return digest.hexdigest()[:16]
