"""Finding files and reading records: every format, and every file that is broken as a whole."""

import gzip
import json
import os
import time
from random import Random

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moaa_ray.data import readers
from moaa_ray.data.locations import find_files
from moaa_ray.data.readers import BadRecord, column_names, read_records
from moaa_ray.errors import ConfigError, DataError

ROWS = [{"id": "a", "prompt": "eins"}, {"id": "b", "prompt": '日本語, "quoted"\nsecond line'}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
NOISE = Random(0).randbytes(40_000).hex().encode()


def find(path, **options):
    return find_files(str(path), field="prompts.sources.0.path", **options)


def records(path, **options):
    return [record for _, record in read_records(find(path, **options))]


def write(folder, name, data: bytes):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_arrow(path, table, *, is_stream=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    make = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.fixture
def one_file_of_each_format(tmp_path):
    write(tmp_path, "a.jsonl", LINES)
    write(tmp_path, "a.ndjson", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\n"))
    write(tmp_path, "a.jsonl.gz", gzip.compress(LINES[:40]) + gzip.compress(LINES[40:]))
    write(tmp_path, "a.jsonl.zst", pa.compress(LINES, "zstd", asbytes=True))
    write(tmp_path, "a.csv", '\ufeffid,prompt\na,eins\n\nb,"日本語, ""quoted""\nsecond line"\n'.encode())
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "a.parquet")
    write_arrow(tmp_path / "a.arrow", table)
    write_arrow(tmp_path / "file.arrow", table, is_stream=False)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.ndjson", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.parquet", "a.arrow", "file.arrow"],
)
def test_every_format_gives_the_same_records(one_file_of_each_format, name):
    assert records(one_file_of_each_format / name) == ROWS
    assert column_names(find(one_file_of_each_format / name), num_rows=100) == ["id", "prompt"]


def test_a_json_file_holds_one_list_or_lines(tmp_path):
    listed = json.dumps([*ROWS, 3], indent=1).encode()
    *found, bad = read_records(find(write(tmp_path, "a.json", listed)))
    assert [(place, record) for place, record in found] == [((0, 1), ROWS[0]), ((0, 2), ROWS[1])]
    assert bad == ((0, 3), BadRecord("not_object", "int instead of an object"))
    assert records(write(tmp_path, "a.json.gz", gzip.compress(listed)))[:2] == ROWS
    assert records(write(tmp_path, "B.JSON", json.dumps(ROWS).encode())) == ROWS
    assert records(write(tmp_path, "b.json", LINES)) == ROWS
    with pytest.raises(DataError, match=r"c\.json: begins as a JSON list and is none"):
        records(write(tmp_path, "c.json", b'[{"id": 1},'))


def test_a_file_without_a_known_suffix_is_read_as_the_recipe_says(tmp_path):
    assert records(write(tmp_path, "prompts.txt", LINES), file_format="jsonl") == ROWS


def test_relative_paths_count_from_the_base_folder(tmp_path):
    write(tmp_path, "data/a.jsonl", LINES)
    assert find("data/a.jsonl", base_dir=str(tmp_path)).paths == (str(tmp_path / "data/a.jsonl"),)


def test_a_file_uri_is_the_local_path_that_it_names(tmp_path):
    write(tmp_path, "data/a.jsonl", LINES)
    for uri in (f"file://{tmp_path}/data/a.jsonl", f"file://{tmp_path}/data/*.jsonl", f"local://{tmp_path}/data"):
        assert find(uri).paths == (str(tmp_path / "data/a.jsonl"),)
    assert find("file://data/a.jsonl", base_dir=str(tmp_path)).paths == (str(tmp_path / "data/a.jsonl"),)


def test_brackets_in_the_base_folder_are_no_pattern(tmp_path):
    write(tmp_path, "run [1]/a.jsonl", LINES)
    assert find("*.jsonl", base_dir=str(tmp_path / "run [1]")).paths == (str(tmp_path / "run [1]/a.jsonl"),)


def test_a_pattern_takes_its_matches_in_order_of_name(tmp_path):
    for name in ("s-10.jsonl", "s-02.jsonl", "t.jsonl"):
        write(tmp_path, name, LINES)
    assert [os.path.basename(p) for p in find(tmp_path / "s-*.jsonl").paths] == ["s-02.jsonl", "s-10.jsonl"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    write(tmp_path, "a.jsonl", b"")
    assert records(write(tmp_path, "[a].jsonl", LINES)) == ROWS


def test_a_folder_gives_its_files_at_any_depth_and_no_hidden_or_sidecar_ones(tmp_path):
    for name in ("data/p1.jsonl", "data/p0.jsonl", ".cache/x.jsonl", "_tmp/y.csv", "README.md", "info.json"):
        write(tmp_path, name, LINES)
    assert [os.path.basename(p) for p in find(tmp_path).paths] == ["p0.jsonl", "p1.jsonl"]


@pytest.mark.parametrize("file_format", ["auto", "hf"])
def test_a_folder_written_by_datasets_is_read_shard_by_shard(tmp_path, file_format):
    table = pa.Table.from_pylist(ROWS)
    write_arrow(tmp_path / "data-00000-of-00002.arrow", table.slice(0, 1))
    write_arrow(tmp_path / "data-00001-of-00002.arrow", table.slice(1))
    for name in ("state.json", "dataset_info.json"):
        write(tmp_path, name, b"{}")
    assert records(tmp_path, file_format=file_format) == ROWS


def test_a_folder_of_parquet_shards_is_an_hf_folder_too(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train-00000-of-00001.parquet")
    assert records(tmp_path, file_format="hf") == ROWS


def test_several_splits_are_not_mixed_and_the_message_names_them(tmp_path):
    write(tmp_path, "dataset_dict.json", b'{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        write_arrow(tmp_path / split / "data-00000-of-00001.arrow", pa.Table.from_pylist(ROWS))
    with pytest.raises(ConfigError, match=r"holds several splits; add one of \['test', 'train'\] to the path"):
        find(tmp_path)


def test_only_the_named_columns_are_decoded(one_file_of_each_format):
    files = find(one_file_of_each_format / "a.parquet")
    assert [r for _, r in read_records(files, columns=["prompt"])] == [{"prompt": row["prompt"]} for row in ROWS]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing.jsonl", "prompts.sources.0.path = 'missing.jsonl': no such file, folder or match; relative paths"),
        ("none-*.jsonl", "no such file, folder or match"),
        ("empty_folder", "must be files of one format"),
        ("mixed", r"must be files of one format .* not \['.csv', '.jsonl'\]"),
        ("notes.txt", r"must be files of one format .* not \['.txt'\]; set format"),
        ("", "must be a path without NUL"),
        ("a\0b", "must be a path without NUL"),
        ("file:/etc/passwd", "must be a local path or one of file://, s3://"),
        ("file:///missing.jsonl", "no such file, folder or match"),
        ("file://", "must be a path without NUL"),
        ("org/prompts", "no such file, .*; a data set of the hub is written hf://datasets/org/prompts/..."),
        ("http://169.254.169.254/latest/meta-data", "must be a local path or one of"),
        ("https://example.org/a.jsonl", "copy the data to such a place"),
        ("ftp://example.org/a.jsonl", "must be a local path"),
        ("simplecache::s3://b/a.jsonl", "must be a local path"),
        ("s3://b/zip::file:///etc/passwd", "must be a local path"),
        ("s3:bucket/key", "must be a local path"),
        ("S3://bucket/key", "must be a local path"),
    ],
)
def test_a_path_that_gives_nothing_to_read_is_refused_with_the_way_out(tmp_path, path, said):
    (tmp_path / "empty_folder").mkdir()
    write(tmp_path, "mixed/a.jsonl", LINES)
    write(tmp_path, "mixed/a.csv", b"id,prompt\n")
    write(tmp_path, "notes.txt", LINES)
    with pytest.raises(ConfigError, match=said):
        find(path, base_dir=str(tmp_path), file_format="auto")


def test_a_format_is_not_asked_for_where_there_is_no_setting_for_it(tmp_path):
    write(tmp_path, "notes.txt", LINES)
    with pytest.raises(ConfigError, match=r"not \['.txt'\]; give them such a suffix, or narrow it by a pattern"):
        find("notes.txt", base_dir=str(tmp_path))


def test_a_password_in_a_uri_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="holds a password") as caught:
        find("s3://AKIAKEY:topsecret@bucket/a.jsonl")
    assert "topsecret" not in str(caught.value)


def test_an_object_store_is_read_like_a_folder():
    fsspec.filesystem("memory").pipe("/readers_test/a.jsonl", LINES)
    assert records("memory://readers_test/a.jsonl") == records("memory://readers_test") == ROWS
    assert records("memory://readers_test/*.jsonl") == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path, name, data):
    path = write(tmp_path, name, data if name.endswith("jsonl") else b"id,prompt\n")
    with pytest.raises(DataError, match=rf"{name}: holds no row"):
        column_names(find(path), num_rows=100)


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds no row"):
        column_names(find(tmp_path / "a.parquet"), num_rows=100)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", "\ufeff".encode("utf-16-le") + "{}".encode("utf-16-le"), "not UTF-8 text but UTF-16"),
        ("a.jsonl", gzip.compress(LINES, mtime=0), "not UTF-8 text but gzip; convert it, or name it by what it is"),
        ("a.jsonl", b"PK\x03\x04rest", "not UTF-8 text but zip"),
        ("a.csv", b"PAR1\x00\x00", "not UTF-8 text but Parquet"),
        ("a.jsonl", '{"prompt": "größer"}\n'.encode("latin-1") * 3, "line 1: byte 14 .*not_utf8.*hold no record"),
        ("a.jsonl", b'[{"prompt": "x"}]', "line 1: list instead of an object"),
        ("a.jsonl.gz", gzip.compress(NOISE, mtime=0)[:20_000], "cannot|last that can be read"),
        ("a.jsonl.gz", b"no gzip at all", "last that can be read: BadGzipFile"),
        ("a.jsonl.zst", b"no zstd at all", "last that can be read"),
        ("a.parquet", b"PAR1 is not enough", "last that can be read"),
        ("a.parquet", b"", "last that can be read"),
        ("a.arrow", b"\xff\xff\xff\xff\x10\x00\x00\x00garbage", "last that can be read"),
        ("a.csv", b'id,prompt\na,"never closed\n', "line 1 is the last|last that can be read: Error"),
        ("a.csv", b"id,id\n1,2\n", "line 1: the header .* empty or repeated name"),
        ("a.csv", b"id,\n1,2\n", "empty or repeated name"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_is_refused_by_name(tmp_path, name, data, said):
    path = write(tmp_path, name, data)
    with pytest.raises(DataError, match=said) as caught:
        column_names(find(path), num_rows=100)
    assert name in str(caught.value)


def test_a_truncated_gzip_file_is_refused_at_the_line_it_ends(tmp_path):
    lines = b"".join(json.dumps({"id": i, "prompt": os.urandom(50).hex()}).encode() + b"\n" for i in range(20_000))
    path = write(tmp_path, "a.jsonl.gz", gzip.compress(lines)[:-1000])
    with pytest.raises(DataError, match=r"a.jsonl.gz, line \d{4,5} is the last that can be read: EOFError"):
        records(path)


def test_a_truncated_zstd_file_is_refused(tmp_path):
    lines = b"".join(json.dumps({"id": i, "prompt": os.urandom(50).hex()}).encode() + b"\n" for i in range(20_000))
    path = write(tmp_path, "a.jsonl.zst", pa.compress(lines, "zstd", asbytes=True)[:-1000])
    with pytest.raises(DataError, match="last that can be read"):
        records(path)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b"{", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"a":' * 100_000, "not_json"),
        (b"9" * 10_000, "not_json"),
        (b"null", "not_object"),
        (b'["x"]', "not_object"),
        (b'{"prompt": "\xff"}', "not_utf8"),
    ],
)
def test_a_broken_line_is_one_bad_record_and_the_others_are_read(tmp_path, line, rule):
    first, bad, second = records(write(tmp_path, "a.jsonl", LINES.replace(b"\n", b"\n" + line + b"\n", 1)))
    assert isinstance(bad, BadRecord)
    assert bad.rule == rule
    assert [first, second] == ROWS


@pytest.mark.parametrize(
    ("line", "rule"), [(b"x,\xff\n", "not_utf8"), (b"only\n", "wrong_columns"), (b"a,b,c\n", "wrong_columns")]
)
def test_a_broken_csv_row_is_one_bad_record_and_the_others_are_read(tmp_path, line, rule):
    path = write(tmp_path, "a.csv", b'id,prompt\na,"eins\nzwei"\n' + line + b"b,drei\n")
    (_, first), (place, bad), (_, last) = read_records(find(path))
    assert first == {"id": "a", "prompt": "eins\nzwei"}
    assert (place, bad.rule) == ((0, 4), rule)
    assert last == {"id": "b", "prompt": "drei"}


def test_a_csv_prompt_of_a_million_characters_is_read(tmp_path):
    path = write(tmp_path, "a.csv", b"prompt\n" + b"x" * 1_000_000 + b"\n")
    assert records(path) == [{"prompt": "x" * 1_000_000}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_an_endless_line_is_refused_in_a_second_and_in_bounded_memory(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".gz"):
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(32):
                file.write(b"x" * 2**20)
    else:
        with open(path, "wb") as file:
            file.truncate(2**30)  # a sparse gigabyte
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"{name}, line 1: longer than {readers.MAX_LINE_BYTES} bytes; split it"):
        records(path)
    assert time.monotonic() - began < 2


def test_text_in_arrow_files_that_is_not_utf8_is_refused_with_its_rows(tmp_path):
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    write_arrow(tmp_path / "a.arrow", pa.table({"prompt": text}))
    with pytest.raises(DataError, match=r"a.arrow, rows 1 to 1: .*UTF8.*; mend them"):
        records(tmp_path / "a.arrow")


def test_offsets_that_point_outside_an_arrow_file_are_not_followed(tmp_path):
    offsets = pa.py_buffer(b"\0\0\0\0\xff\xff\xff\x7f\1\0\0\0")  # 0, 2^31 - 1, 1
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"x")])
    write_arrow(tmp_path / "a.arrow", pa.table({"prompt": text}))
    with pytest.raises(DataError, match=r"a.arrow, rows 1 to 2: .*offset"):
        records(tmp_path / "a.arrow")


def test_a_shard_without_the_column_is_refused_with_the_nearest_name(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([{"id": "c", "prompts": "x"}]), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"b.parquet: has no column 'prompt'; did you mean 'prompts'\?"):
        list(read_records(find(tmp_path), columns=["prompt"]))


def test_of_a_saved_dataset_only_the_files_that_it_lists_are_read(tmp_path):
    write_arrow(tmp_path / "data-00000-of-00001.arrow", pa.Table.from_pylist(ROWS))
    write_arrow(tmp_path / "data-00001-of-00002.arrow", pa.Table.from_pylist([{"id": "old", "prompt": "old"}]))
    write_arrow(tmp_path / "cache-1f.arrow", pa.table({"indices": [1, 0]}))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    write(tmp_path, "state.json", json.dumps(state).encode())
    assert records(tmp_path) == ROWS
    os.remove(tmp_path / "data-00000-of-00001.arrow")
    with pytest.raises(ConfigError, match=r"state.json: lists .*data-00000-of-00001.arrow, which is not there; copy"):
        find(tmp_path)


@pytest.mark.slow
def test_a_folder_that_datasets_wrote_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package `datasets` writes the folder of this test")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "hf"), num_shards=2)
    assert records(tmp_path / "hf", file_format="hf") == ROWS
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ConfigError, match=r"add one of \['train'\]"):
        find(tmp_path / "splits")
    assert records(tmp_path / "splits/train") == ROWS
