"""Reading the records of a source's files, one at a time, in bounded memory.

Formats: JSON Lines, in a .json file also one list, CSV (all also .gz and .zst), Parquet, and what
`datasets` writes with save_to_disk (read with pyarrow; `datasets` is not needed). A record is a dict,
or a BadRecord where a single line is broken; a file that is broken as a whole is a DataError. Which
files is in locations.py, what a record means in conversations.py.
"""

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from moaa_ray.data.locations import FileFormat, Place, SourceFiles
from moaa_ray.errors import ConfigError, DataError

MAX_LINE_BYTES = 16 * 2**20
"""A million characters fit, however they are escaped; an endless line does not fill the memory."""
MAX_LIST_BYTES = 256 * 2**20
"""Of a JSON list, which is in memory as a whole."""
_FIRST_BYTES = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_FIRST_BYTES |= {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_UTF8_MARK = b"\xef\xbb\xbf"
_BROKEN = (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException)
_BROKEN_VALUES = (ValueError, LookupError, ArithmeticError, NotImplementedError, ImportError)
_ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class BadRecord:
    """A line that is no record. rule is a short stable word that is counted; detail is for people."""

    rule: str
    detail: str


Record = dict[str, Any] | BadRecord
Numbered = Iterator[tuple[int, Record]]  # by line or row of the file, counted from 1


def column_names(files: SourceFiles, *, num_rows: int) -> list[str]:
    """The columns of a source; of JSON Lines, every key of its first rows.

    Raises DataError when there is no row at all, or none of the first is a record.
    """
    names: dict[str, None] = {}
    first_bad = ""
    for place, record in itertools.islice(read_records(files), num_rows):
        if isinstance(record, BadRecord):
            first_bad = first_bad or f"{files.place(place)}: {record.detail} ({record.rule})"
        else:
            names.update(dict.fromkeys(map(str, record)))
    if names:
        return list(names)
    if first_bad:
        raise DataError(f"{first_bad}; the first {num_rows} rows hold no record: check the file and its `format`")
    raise DataError(f"{files.paths[0]}: holds no row; give a file with prompts or leave the source out")


def read_records(files: SourceFiles, *, columns: Sequence[str] | None = None) -> Iterator[tuple[Place, Record]]:
    """Every record with its place. Of Parquet and Arrow only the named columns are decoded (None: all).

    Raises DataError, naming file and line, for a file that cannot be read on, ConfigError for a file without a column.
    """
    for i, name in enumerate(files.paths):
        number = 0
        try:
            with files.fs.open(name, "rb") as raw:
                for number, record in _numbered(cast(IO[bytes], raw), files.format, name, columns):
                    yield (i, number), record
        except _BROKEN as error:
            said = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{files.place((i, number))} is the last that can be read: {said}; mend the file"
            ) from error


def line_parts(files: SourceFiles, name: str, num_rows: int) -> Iterator[tuple[int, int]]:
    """(rows, byte at which they begin) of parts of at most num_rows rows of a file that is plain JSON Lines."""
    with opened(files, name) as raw:
        start = len(_UTF8_MARK) if raw.read(len(_UTF8_MARK)) == _UTF8_MARK else 0
        raw.seek(0)
        stop, rows = start, 0
        for line in _lines(raw, name):
            if rows == num_rows:
                yield rows, start
                start, rows = stop, 0
            stop += len(line)
            rows += bool(line.strip())
    if rows:
        yield rows, start


def read_from(files: SourceFiles, name: str, start: int) -> Iterator[Record]:
    """The records of a file that is plain JSON Lines from a byte of line_parts on."""
    with opened(files, name) as raw:
        raw.seek(start)
        yield from (record for _, record in _json_lines(_lines(raw, name)))


@contextmanager
def opened(files: SourceFiles, name: str) -> Iterator[IO[bytes]]:
    """One of the files, to read. Raises DataError for what is broken about it in the `with` block."""
    try:
        with files.fs.open(name, "rb") as raw:
            yield cast(IO[bytes], raw)
    except _BROKEN as error:
        said = " ".join(str(error).split())
        raise DataError(f"{name}: cannot be read: {type(error).__name__}: {said}; mend the file") from error


def is_plain_lines(files: SourceFiles, name: str) -> bool:
    """Whether it is JSON Lines that can be read from any line on: not packed, and no .json that may be one list."""
    return files.format == "jsonl" and not re.search(r"(?i)\.(json|gz|zst)$", name)


def _numbered(raw: IO[bytes], kind: FileFormat, name: str, columns: Sequence[str] | None) -> Numbered:
    if kind == "jsonl":
        lines = _lines(raw, name)
        return _json_records(lines, name) if re.search(r"(?i)\.json(\.gz|\.zst)?$", name) else _json_lines(lines)
    if kind == "csv":
        return _csv_rows(_lines(raw, name), name)
    return _columnar(raw, kind, name, columns)


def _lines(raw: IO[bytes], name: str) -> Iterator[bytes]:
    """Lines of at most MAX_LINE_BYTES, unpacked when the name ends in .gz or .zst, without a UTF-8 mark."""
    if name.endswith(".gz"):
        raw = gzip.GzipFile(fileobj=raw)  # pyright: ignore[reportAssignmentType]
    elif name.endswith(".zst"):
        raw = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    text = io.BufferedReader(raw, 2**20)  # pyright: ignore[reportArgumentType]
    found = [said for first, said in _FIRST_BYTES.items() if text.peek(8).startswith(first)]
    if found:
        raise DataError(f"{name}: is not UTF-8 text but {found[0]}; convert it, or name it by what it is")
    for number in itertools.count(1):
        line = text.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{name}, line {number}: longer than {MAX_LINE_BYTES} bytes; split it, or remove it")
        if not line:
            return
        yield line.removeprefix(_UTF8_MARK) if number == 1 else line


def _json_records(lines: Iterator[bytes], name: str) -> Numbered:
    """What a .json file holds: one list, its entries numbered from 1, or JSON Lines."""
    start = next(lines, b"")
    lines = itertools.chain([start], lines)
    if not start.lstrip().startswith(b"["):
        return _json_lines(lines)
    text = bytearray()
    for line in lines:
        text += line
        if len(text) > MAX_LIST_BYTES:
            raise DataError(f"{name}: a list of more than {MAX_LIST_BYTES} bytes; write it as JSON Lines (.jsonl)")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: begins as a JSON list and is none ({error}); mend it, or name it .jsonl") from error
    return enumerate(map(_entry, entries), 1)


def _entry(value: object) -> Record:
    kind = type(value).__name__
    return value if isinstance(value, dict) else BadRecord("not_object", f"{kind} instead of an object")


def _json_lines(lines: Iterator[bytes]) -> Numbered:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield number, BadRecord("not_utf8", f"byte {error.start} of the line is not UTF-8")
        except (ValueError, RecursionError) as error:
            yield number, BadRecord("not_json", str(error))
        else:
            yield number, _entry(value)


def _csv_rows(lines: Iterator[bytes], name: str) -> Numbered:
    """Rows as dicts; bytes that are not UTF-8 arrive as lone surrogates, which no other CSV text can hold."""
    csv.field_size_limit(MAX_LINE_BYTES)  # of the whole process; its default refuses prompts above 128 KiB
    rows = csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), strict=True)
    header = next(rows, [])
    if len(set(header)) < len(header) or not all(map(str.strip, header)):
        raise DataError(f"{name}, line 1: the header {header} has an empty or repeated name; name every column once")
    number = rows.line_num + 1
    for row in rows:
        if any(not one.isascii() and re.search("[\udc80-\udcff]", one) for one in row):
            yield number, BadRecord("not_utf8", "the row holds bytes that are not UTF-8")
        elif row and len(row) != len(header):
            yield number, BadRecord("wrong_columns", f"{len(row)} fields instead of {len(header)}")
        elif row:
            yield number, dict(zip(header, row, strict=True))
        number = rows.line_num + 1


def _columnar(raw: IO[bytes], kind: FileFormat, name: str, columns: Sequence[str] | None) -> Numbered:
    if kind == "parquet":
        parquet = pq.ParquetFile(raw, buffer_size=2**20)
        schema, batches = parquet.schema_arrow, batches_of(parquet, range(parquet.num_row_groups), columns)
    else:
        is_stream = raw.read(6) != b"ARROW1"
        raw.seek(0)
        reader = pa.ipc.open_stream(raw) if is_stream else pa.ipc.open_file(raw)
        batches = reader if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        schema = reader.schema
    wanted = schema.names if columns is None else list(columns)
    lacking = [column for column in wanted if column not in schema.names]
    if lacking or len(set(schema.names)) < len(schema.names):
        raise no_column(name, lacking[0] if lacking else "(a name twice)", schema.names)
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_A_TIME):
            part = batch.select(wanted).slice(start, _ROWS_AT_A_TIME)
            try:
                part.validate(full=True)  # offsets and UTF-8: a damaged file must not be followed out of bounds
                records = part.to_pylist()
            except _BROKEN_VALUES as error:
                raise DataError(f"{name}, rows {number + 1} to {number + part.num_rows}: {error}; mend them") from error
            yield from enumerate(records, number + 1)
            number += part.num_rows


def batches_of(parquet: pq.ParquetFile, groups: Iterable[int], columns: Sequence[str] | None) -> Iterator[Any]:
    """Rows of row groups, one after the other: Arrow cannot join categories within messages over several."""
    return (part for i in groups for part in parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[i], columns=columns))


def no_column(
    where: str, column: str, names: Sequence[str], *, way_out: str = "set `columns` to one of them"
) -> ConfigError:
    """The error for a column that is not there, with the nearest name."""
    near = get_close_matches(column, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(map(repr, list(names)[:20])) + (", ..." if len(names) > 20 else "")
    return ConfigError(f"{where}: has no column {column!r}; {hint}it has {listed}: {way_out}")
