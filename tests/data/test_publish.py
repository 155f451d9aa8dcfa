import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError, DataError, FencedError
from tests.data.faulty_store import KINDS, ROOT, World, store_on

SCHEMA = pa.schema([("id", pa.string()), ("texts", pa.list_(pa.string()))], metadata={schemas.SCHEMA_KEY: b"sft/1"})


def _rows(num_rows, start=0) -> pa.Table:
    ids = range(start, start + num_rows)
    texts = [None if i % 7 == 0 else [f"text {i}", None][: i % 3] for i in ids]
    return pa.table({"id": [f"r{i}" for i in ids], "texts": texts}, schema=SCHEMA)


def _cut(table, sizes):
    start = 0
    for size in [*sizes, table.num_rows]:
        yield table.slice(start, size)
        start += size


def _published(kind, batches, *, shard_rows=10, facts=None):
    """The world after one driver published the batches as sft."""
    world = World()
    store = store_on(kind, world)
    epoch = commit.take_epoch(store, {})
    publish.publish(store, epoch, "sft", batches, SCHEMA, shard_rows, facts or {})
    return world


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_run_that_lacks_a_shard_is_refused_with_its_name(kind):
    store = store_on(kind, _published(kind, [_rows(25)]))
    lost = f"sft/{publish.read_manifest(store, 'sft').shards[1].name}"
    store.delete(lost)
    with pytest.raises(DataError, match=f"{lost} is gone or damaged .*; run the stage that made it again"):
        list(publish.read_batches(store, "sft", 10))


def test_other_programs_read_a_published_folder_as_it_is(tmp_path):
    pandas = pytest.importorskip("pandas")
    store = open_store(str(tmp_path))
    publish.publish(store, commit.take_epoch(store, {}), "sft", [_rows(25)], SCHEMA, 10, {})
    assert pq.read_table(tmp_path / "sft").equals(_rows(25))
    assert list(pandas.read_parquet(tmp_path / "sft")["id"]) == [f"r{i}" for i in range(25)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_rows", "sizes"), [(0, [0]), (9, [9]), (10, [10]), (25, [10, 10, 5]), (30, [10, 10, 10])])
def test_shards_hold_exactly_shard_rows_and_the_last_one_the_rest(kind, num_rows, sizes):
    store = store_on(kind, _published(kind, [_rows(num_rows)], facts={"recipe": "abc"}))
    manifest = publish.read_manifest(store, "sft")
    assert [shard.rows for shard in manifest.shards] == sizes
    assert (manifest.rows, manifest.schema, manifest.facts) == (num_rows, "sft/1", {"recipe": "abc"})
    assert publish.verify(store, "sft") == []
    assert pa.concat_tables([SCHEMA.empty_table(), *publish.read_batches(store, "sft", 4)]).equals(_rows(num_rows))
    file = store.open(f"sft/{manifest.shards[0].name}")
    assert pq.read_schema(file).equals(SCHEMA)
    assert pq.read_schema(file).metadata == SCHEMA.metadata


@settings(max_examples=25)
@given(st.lists(st.integers(0, 1500), max_size=6), st.sampled_from([1, 700, 1024, 2500]))
def test_equal_rows_give_equal_bytes_however_the_batches_are_cut(sizes, shard_rows):
    rows = _rows(3000 if shard_rows > 1 else 12)
    whole = _published("posix", [rows], shard_rows=shard_rows)
    copied = pa.concat_tables([pa.table(rows.slice(i, 5).to_pydict(), schema=SCHEMA) for i in range(0, len(rows), 5)])
    assert _published("posix", _cut(copied, sizes), shard_rows=shard_rows).under("sft") == whole.under("sft")


def test_object_shards_carry_the_hash_of_their_content_in_the_name():
    world = _published("object", [_rows(25)])
    manifest = publish.read_manifest(store_on("object", world), "sft")
    assert [shard.name for shard in manifest.shards] == [
        f"part-{i:05d}-{shard.sha256[:8]}.parquet" for i, shard in enumerate(manifest.shards)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_publishing_again_replaces_everything_and_leaves_nothing_of_the_old(kind):
    world = _published(kind, [_rows(45)])
    store = store_on(kind, world)
    publish.publish(store, commit.take_epoch(store, {}), "sft", [_rows(5)], SCHEMA, 10, {})
    assert world.under("sft") == _published(kind, [_rows(5)]).under("sft")
    assert world.under("work/publish") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_publishing_the_same_again_touches_no_public_file(kind):
    world = _published(kind, [_rows(25)])
    before = {name: id(data) for name, data in world.under("sft").items()}
    store = store_on(kind, world)
    publish.publish(store, commit.take_epoch(store, {}), "sft", [_rows(25)], SCHEMA, 10, {})
    assert {name: id(data) for name, data in world.under("sft").items()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_shard_is_made_again(kind):
    world = _published(kind, [_rows(25)])
    whole = world.under("sft")
    world.files.pop(f"{ROOT}/sft/{sorted(whole)[-1]}")
    store = store_on(kind, world)
    publish.publish(store, commit.take_epoch(store, {}), "sft", [_rows(25)], SCHEMA, 10, {})
    assert world.under("sft") == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_fenced_driver_publishes_nothing(kind):
    world = _published(kind, [_rows(25)])
    before = world.under("sft")
    store = store_on(kind, world)
    old = commit.take_epoch(store, {"host": "old"})
    publish.fence_publish(store, commit.take_epoch(store, {"host": "new"}))
    with pytest.raises(FencedError, match="the driver on host new"):
        publish.publish(store, old, "sft", [_rows(25)], SCHEMA, 5, {})
    manifest = publish.read_manifest(store, "sft")
    assert {name: world.under("sft")[name] for name in before} == before
    assert manifest.rows == 25


def test_a_folder_moved_away_by_a_driver_that_died_is_put_back_by_the_next():
    world = _published("posix", [_rows(25)])
    before = world.under("sft")
    store = store_on("posix", world)
    store.put("work/publish/sft/e1/new/part-00000.parquet", b"staged")
    store.rename_folder("sft", "work/publish/sft/e1/old")
    publish.fence_publish(store, commit.take_epoch(store, {}))
    assert world.under("sft") == before
    assert world.under("work/publish") == {}


@pytest.mark.parametrize("folder", ["", "a/b", "../x", "work", "Sft"])
def test_public_folders_are_single_plain_names(folder):
    store = store_on("posix", World())
    with pytest.raises(ValueError, match="want one lower-case name"):
        publish.publish(store, commit.take_epoch(store, {}), folder, [], SCHEMA, 10, {})


def test_rows_of_another_schema_and_shards_without_rows_are_refused():
    store = store_on("posix", World())
    epoch = commit.take_epoch(store, {})
    with pytest.raises(DataError, match="cast them before publishing"):
        publish.publish(store, epoch, "sft", [pa.table({"id": [1]})], SCHEMA, 10, {})
    with pytest.raises(ConfigError, match="shard_rows = 0"):
        publish.publish(store, epoch, "sft", [], SCHEMA, 0, {})


def test_reading_what_is_not_published_says_how_to_get_it():
    with pytest.raises(DataError, match="is not published; run the stage"):
        publish.read_manifest(store_on("posix", World()), "sft")


def _flip_a_bit(world, names, rng):
    name = rng.choice(names)
    data = bytearray(world.files[name])
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    world.files[name] = bytes(data)


def _truncate(world, names, rng):
    name = rng.choice(names)
    world.files[name] = world.files[name][: rng.randrange(len(world.files[name]))]


def _lengthen(world, names, rng):
    world.files[rng.choice(names)] += rng.randbytes(rng.randrange(1, 20))


def _swap(world, names, rng):
    one, two = rng.sample(names, 2)
    world.files[one], world.files[two] = world.files[two], world.files[one]


def _remove(world, names, rng):
    del world.files[rng.choice(names)]


def _add(world, names, rng):
    world.files[f"{ROOT}/sft/part-{rng.randrange(10, 99999):05d}.parquet"] = world.files[rng.choice(names)]


def _put_a_stale_one(world, names, rng):
    sink = io.BytesIO()
    pq.write_table(_rows(10, start=rng.randrange(1000, 9999)), sink)
    world.files[rng.choice([name for name in names if name.endswith(".parquet")])] = sink.getvalue()


def _edit_the_manifest(world, names, rng):
    path = f"{ROOT}/sft/_manifest.json"
    body = json.loads(world.files[path])
    place = rng.choice(["rows", "facts", "shards", "schema", "sha256", "format_version", "name", "new"])
    if place == "shards":
        body["shards"].pop(rng.randrange(len(body["shards"])))
    elif place == "name":
        body["shards"][0]["rows"] += 1
    elif place == "rows":
        body["rows"] += rng.randrange(1, 9)
    else:
        body[place] = rng.choice([0, "", None, {"a": rng.random()}, []])
    world.files[path] = json.dumps(body, indent=1, sort_keys=True).encode()


FAULTS = [_flip_a_bit, _truncate, _lengthen, _swap, _remove, _add, _put_a_stale_one, _edit_the_manifest]


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_finds_every_planted_fault(fault):
    rng = random.Random(fault.__name__)
    clean = _published("posix", [_rows(35)])
    names = [f"{ROOT}/sft/{name}" for name in clean.under("sft")]
    for trial in range(80):
        world = clean.copy()
        fault(world, names, rng)
        assert publish.verify(store_on("posix", world), "sft"), (fault.__name__, trial)


def test_verify_finds_nothing_in_a_hundred_clean_publications():
    for trial in range(100):
        kind = KINDS[trial % 3]
        world = _published(kind, [_rows(trial)], shard_rows=20 + trial % 13)
        assert publish.verify(store_on(kind, world), "sft") == []
