"""Units written in chunks and read back by number: the same units, in order, and nothing else passes for them."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from moaa_ray.data.documents import Document
from moaa_ray.data.manifest import Manifest
from moaa_ray.data.store import open_store
from moaa_ray.data.unit_store import UnitStore, finish, write_chunk
from moaa_ray.data.units import Unit
from moaa_ray.errors import DataError


def unit(*lengths: int, first: int = 0) -> Unit:
    """Documents of these lengths, with tokens that go on from `first`; every second token counts."""
    documents = []
    for i, length in enumerate(lengths):
        tokens = np.arange(first + 100 * i, first + 100 * i + length, dtype=np.int32)
        documents.append(Document(tokens=tokens, counts=np.arange(length) % 2 == 1))
    return Unit(ids=tuple(f"r{first}.{i}" for i in range(len(lengths))), documents=tuple(documents))


def plain(one: Unit):
    return one.ids, [(d.tokens.tolist(), d.counts.tolist(), str(d.tokens.dtype)) for d in one.documents]


UNITS = [unit(3, 4), unit(5, first=1000), unit(1, 2, 6, first=2000), unit(2, first=3000)]


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def full(store):
    """UNITS in two chunks, of which the later one was written first, and an empty one."""
    write_chunk(store, "units", "part-00002", UNITS[3:])
    write_chunk(store, "units", "part-00000", UNITS[:3])
    write_chunk(store, "units", "part-00001", [])
    finish(store, "units", {"model": "tiny"})
    return store


def test_units_come_back_as_they_were_in_the_order_of_chunk_names(full):
    units = UnitStore(full, "units")
    assert len(units) == 4
    assert [plain(one) for one in units.read(range(4))] == [plain(one) for one in UNITS]


def test_units_are_read_by_number_in_the_order_asked_for_and_more_than_once(full):
    found = UnitStore(full, "units").read([3, 0, 3])
    assert [plain(one) for one in found] == [plain(UNITS[i]) for i in (3, 0, 3)]
    assert UnitStore(full, "units").read([]) == []


def test_the_counts_of_every_unit_are_known_without_reading_it(full):
    """Of n tokens with every second one counted, n // 2 count."""
    units = UnitStore(full, "units")
    assert units.num_tokens.tolist() == [7, 5, 9, 2]
    assert units.num_targets.tolist() == [1 + 2, 2, 0 + 1 + 3, 1]
    assert units.first_targets.tolist() == [1, 2, 0, 1]
    assert units.num_tokens.dtype == np.int64


def test_the_manifest_says_what_the_folder_holds(full):
    manifest = UnitStore(full, "units").manifest
    assert (manifest.schema, manifest.rows) == ("units/1", 4)
    assert [(shard.name, shard.rows) for shard in manifest.shards] == [
        ("part-00000.arrow", 3),
        ("part-00001.arrow", 0),
        ("part-00002.arrow", 1),
    ]
    assert (manifest.facts["model"], manifest.facts["num_tokens"], manifest.facts["num_targets"]) == ("tiny", 23, 10)


def test_equal_units_give_equal_files(store):
    for folder in ("a", "b"):
        write_chunk(store, folder, "part-0", UNITS)
        finish(store, folder, {})
    assert [store.read(path) for path in store.list("a")] == [store.read(path) for path in store.list("b")]


def test_a_store_of_no_units_can_be_opened(store):
    finish(store, "units", {})
    units = UnitStore(store, "units")
    assert (len(units), units.num_tokens.tolist(), units.read([])) == (0, [], [])


def test_a_chunk_is_there_once_both_its_files_are(store):
    assert not store.exists("units/part-0.json")
    write_chunk(store, "units", "part-0", UNITS)
    assert store.exists("units/part-0.json")
    store.delete("units/part-0.json")
    assert not store.exists("units/part-0.json")
    with pytest.raises(DataError, match=r"part-0\.arrow was not written to its end; write the chunk again"):
        finish(store, "units", {})


def test_many_threads_read_the_same_files(full):
    units = UnitStore(full, "units")
    orders = [[(i * k) % 4 for i in range(50)] for k in (1, 3, 1, 3)]
    with ThreadPoolExecutor(4) as threads:
        for order, found in zip(orders, threads.map(units.read, orders), strict=True):
            assert [plain(one) for one in found] == [plain(UNITS[i]) for i in order]


def test_more_files_than_are_kept_open_can_be_read(store, tmp_path):
    """64 stay open: of 66 files read one after another, the first two have to be opened again."""
    for i in range(66):
        write_chunk(store, "units", f"part-{i:02}", [unit(3, first=i)])
    finish(store, "units", {})
    counting = CountingStore(tmp_path)
    units = UnitStore(counting, "units")
    found = units.read([*range(66), 65, 2])
    assert [one.ids for one in found] == [(f"r{i}.0",) for i in (*range(66), 65, 2)]
    assert counting.num_opened == 66
    assert units.read([0])[0].ids == ("r0.0",)
    assert counting.num_opened == 67


def test_a_folder_that_is_missing_or_not_finished_is_refused(store):
    with pytest.raises(DataError, match=r"units is no finished store of units; run the stage that makes it"):
        UnitStore(store, "units")
    write_chunk(store, "units", "part-0", UNITS)
    with pytest.raises(DataError, match="no finished store of units"):
        UnitStore(store, "units")


@pytest.mark.parametrize("schema", ["sft/1", "units/2"])
def test_a_folder_of_another_kind_or_version_is_refused_by_both_names(schema, store):
    store.put("units/units.json", Manifest(schema=schema, rows=0, shards=()).to_bytes())
    with pytest.raises(DataError, match=f"holds '{schema}', this moaa_ray reads 'units/1'"):
        UnitStore(store, "units")


def test_a_manifest_that_was_changed_is_refused(full):
    body = json.loads(full.read("units/units.json"))
    full.put("units/units.json", json.dumps(body | {"rows": 3}).encode())
    with pytest.raises(DataError, match="was changed after it was published"):
        UnitStore(full, "units")


def test_an_index_that_is_missing_or_was_changed_is_refused(full):
    full.put("units/index.parquet", full.read("units/index.parquet")[:-1] + b"x")
    with pytest.raises(DataError, match=r"index\.parquet was changed"):
        UnitStore(full, "units")
    full.delete("units/index.parquet")
    with pytest.raises(DataError, match=r"index\.parquet is missing"):
        UnitStore(full, "units")


def test_a_file_that_is_missing_or_has_another_size_is_refused_when_it_is_read(full):
    data = full.read("units/part-00000.arrow")
    full.put("units/part-00000.arrow", data[:-8])
    units = UnitStore(full, "units")
    with pytest.raises(DataError, match=rf"part-00000\.arrow.*{len(data) - 8} bytes instead of {len(data)}"):
        units.read([0])
    full.delete("units/part-00000.arrow")
    with pytest.raises(DataError, match=r"part-00000\.arrow is gone or was changed.*delete the folder and run again"):
        units.read([0])
    assert plain(units.read([3])[0]) == plain(UNITS[3])


def test_a_file_of_the_right_size_that_is_no_arrow_file_is_refused(full):
    full.put("units/part-00000.arrow", b"x" * len(full.read("units/part-00000.arrow")))
    with pytest.raises(DataError, match=r"part-00000\.arrow is gone or was changed"):
        UnitStore(full, "units").read([0])


def test_a_file_of_the_right_size_with_damaged_bytes_is_refused(full):
    data = bytearray(full.read("units/part-00002.arrow"))
    at = data.index(b"\x28\xb5\x2f\xfd")  # where the first compressed column begins
    data[at : at + 4] = b"xxxx"
    full.put("units/part-00002.arrow", bytes(data))
    with pytest.raises(DataError, match=r"part-00002\.arrow is gone or was changed"):
        UnitStore(full, "units").read([3])


def test_reading_a_unit_does_not_read_its_file(store, tmp_path):
    """Of a file of 200 packs of random tokens, one pack takes a small part of the bytes."""
    random = np.random.default_rng(0)
    packs = [
        Unit(ids=("r",), documents=(Document(tokens=t.astype(np.int32), counts=np.ones(4096, bool)),))
        for t in random.integers(0, 150_000, (200, 4096))
    ]
    write_chunk(store, "units", "part-0", packs)
    finish(store, "units", {})
    counting = CountingStore(tmp_path)
    assert UnitStore(counting, "units").read([150])[0].documents[0].tokens.tolist() == (
        packs[150].documents[0].tokens.tolist()
    )
    assert counting.num_bytes < len(store.read("units/part-0.arrow")) / 10


class CountingFile:
    """A file that adds up what is read of it."""

    def __init__(self, store, file):
        self._store, self._file = store, file
        self.closed = False

    def read(self, size=-1):
        data = self._file.read(size)
        self._store.num_bytes += len(data)
        return data

    def seek(self, offset, whence=0):
        return self._file.seek(offset, whence)

    def tell(self):
        return self._file.tell()

    def close(self):
        self._file.close()


class CountingStore:
    """As much of a store as reading needs."""

    def __init__(self, root: Path):
        self.uri = str(root)
        self.num_bytes = 0
        self.num_opened = 0

    def read(self, path):
        return (Path(self.uri) / path).read_bytes()

    def open(self, path):
        self.num_opened += 1
        return CountingFile(self, open(Path(self.uri) / path, "rb"))


@pytest.mark.slow
def test_packs_are_written_and_read_faster_than_they_can_be_trained_on(store):
    random = np.random.default_rng(0)
    packs = [
        Unit(ids=("r",), documents=(Document(tokens=t.astype(np.int32), counts=np.ones(4096, bool)),))
        for t in random.integers(0, 150_000, (1000, 4096))
    ]
    start = time.perf_counter()
    write_chunk(store, "units", "part-0", packs)
    finish(store, "units", {})
    written = time.perf_counter()
    UnitStore(store, "units").read(random.permutation(1000).tolist())
    read = time.perf_counter()
    assert 1000 / (written - start) > 200
    assert 1000 / (read - written) > 500
