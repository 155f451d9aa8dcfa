"""Chunks cover a dataset once, in any format, and read what they name."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moaa_ray.data.chunks import check_columns, digest_of_files, drawn_rows, find_chunks, read_chunk
from moaa_ray.data.locations import SourceFiles, find_files
from moaa_ray.data.readers import read_records
from moaa_ray.errors import ConfigError, DataError


def write(folder: Path, kind: str, counts: list[int]) -> SourceFiles:
    """Files of so many rows, numbered through in column id; Parquet in row groups of 3."""
    first = 0
    for i, count in enumerate(counts):
        records = [{"id": str(first + n), "messages": "m"} for n in range(count)]
        first += count
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(records), folder / f"{i}.parquet", row_group_size=3)
        else:
            (folder / f"{i}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return find_files(str(folder), field="data")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("chunk_rows", [1, 4, 7, 100])
def test_every_row_is_in_one_chunk_in_order(tmp_path, kind, chunk_rows):
    files = write(tmp_path, kind, [10, 5])
    chunks = find_chunks(files, chunk_rows=chunk_rows)
    read = [(chunk, number, record) for chunk in chunks for number, record in read_chunk(files, chunk, ["id"])]
    assert [record["id"] for _, _, record in read] == [str(i) for i in range(15)]
    assert [chunk.first + number - chunk.start for chunk, number, _ in read] == list(range(15))
    assert all(chunk.start <= number < chunk.stop for chunk, number, _ in read)


def test_lines_are_read_from_where_a_chunk_begins(tmp_path):
    """A mark at the start, blank lines, letters of several bytes, a last line without an end, and a broken one."""
    lines = [json.dumps({"id": f"{i} ü"}, ensure_ascii=False) for i in range(7)]
    lines[4] = "{broken"
    text = "\n\n".join(lines[:3]) + "\n \n" + "\n".join(lines[3:])
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    files = find_files(str(tmp_path / "a.jsonl"), field="data")
    whole = [record for _, record in read_records(files)]
    assert len(whole) == 7
    for chunk_rows in (1, 2, 3, 7, 8):
        chunks = find_chunks(files, chunk_rows=chunk_rows)
        assert [record for chunk in chunks for _, record in read_chunk(files, chunk, ["id"])] == whole
    first, second, *_ = find_chunks(files, chunk_rows=3)
    assert (first.byte, second.byte) == (3, 3 + len("\n\n".join(lines[:3]).encode()) + 1)
    damaged = tmp_path.joinpath("a.jsonl").read_bytes().replace(b"0 ", b"\xff ")
    (tmp_path / "a.jsonl").write_bytes(damaged)  # what stands before a chunk is not read again
    assert [record for _, record in read_chunk(files, second, ["id"])] == whole[3:6]


def test_one_large_row_group_is_cut_too(tmp_path):
    pq.write_table(pa.table({"id": [str(i) for i in range(1000)]}), tmp_path / "0.parquet")
    files = find_files(str(tmp_path), field="data")
    chunks = find_chunks(files, chunk_rows=300)
    assert [chunk.stop - chunk.start for chunk in chunks] == [300, 300, 300, 100]
    assert [record["id"] for _, record in read_chunk(files, chunks[2], ["id"])] == [str(i) for i in range(600, 900)]


def test_messages_with_roles_as_categories_are_read_over_several_row_groups(tmp_path):
    roles, texts = pa.array(["user", "assistant"] * 5).dictionary_encode(), pa.array([str(i) for i in range(10)])
    messages = pa.StructArray.from_arrays([roles, texts], ["role", "content"])
    table = pa.table({"messages": pa.ListArray.from_arrays(list(range(0, 12, 2)), messages)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    files = find_files("a.parquet", field="x", base_dir=str(tmp_path))
    wanted = [{"messages": said} for said in table["messages"].to_pylist()]
    chunks = find_chunks(files, chunk_rows=2)
    assert [record for chunk in chunks for _, record in read_chunk(files, chunk, ["messages"])] == wanted
    assert [record for _, record in read_records(files)] == wanted


def test_a_dataset_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no row"):
        find_chunks(write(tmp_path, "parquet", [0]), chunk_rows=4)


def test_a_missing_column_and_a_foreign_schema_are_told(tmp_path):
    files = write(tmp_path, "jsonl", [2])
    check_columns(files, ["messages"], schema="sft/1")
    with pytest.raises(ConfigError, match=r"'message'; did you mean 'messages'.*: rename its columns, or name"):
        check_columns(files, ["message"], schema="sft/1")
    (tmp_path / "0.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no row that can be read"):
        check_columns(files, ["messages"], schema="sft/1")


def read_whole(files: SourceFiles) -> list:
    check_columns(files, ["id"], schema="sft/1")
    chunks = find_chunks(files, chunk_rows=4)
    return [record for chunk in chunks for _, record in read_chunk(files, chunk, ["id"])]


def test_a_parquet_file_that_is_damaged_is_told_by_its_name(tmp_path):
    files = write(tmp_path, "parquet", [4])
    path = tmp_path / "0.parquet"
    whole = path.read_bytes()
    no_utf8 = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"id": no_utf8}), path)
    for broken in (path.read_bytes(), b"", whole[:-40], whole[:4] + b"\xff" * 60 + whole[64:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"0.parquet: cannot be read: .*; mend the file"):
            read_whole(files)


def test_drawn_rows_depend_on_seed_and_name_alone():
    assert drawn_rows(10, 20, seed=1, name="a") == set(range(10))
    drawn = drawn_rows(100, 10, seed=1, name="a")
    assert len(drawn) == 10
    assert drawn == drawn_rows(100, 10, seed=1, name="a")
    assert drawn != drawn_rows(100, 10, seed=2, name="a")


def test_another_content_has_another_digest(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, same = write(tmp_path / "a", "jsonl", [3]), write(tmp_path / "b", "jsonl", [3])
    assert digest_of_files(one) == digest_of_files(same)
    (tmp_path / "b" / "0.jsonl").write_text('{"id": "x"}\n')
    assert digest_of_files(one) != digest_of_files(same)
