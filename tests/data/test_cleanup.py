"""What is freed of a finished run, what stays, and that a driver at work is left alone."""

import json

import pyarrow as pa
import pytest

from moaa_ray.data import commit, publish
from moaa_ray.data.cleanup import clean_run
from moaa_ray.errors import ConfigError, FencedError, StageError
from tests.data.faulty_store import KINDS, World, store_on

OWNER = {"host": "node-7", "pid": 42, "started": "2026-01-02T03:04:05+00:00"}
SCHEMA = pa.schema([("id", pa.string())])


@pytest.fixture(params=KINDS)
def store(request):
    return store_on(request.param, World())


def block(store, epoch, part, key, ids, status="ok") -> str:
    table = pa.table({"id": list(ids), "status": [status] * len(ids)})
    return commit.commit_block(store, "generate", part, epoch.number, key, table)


def begin(store) -> commit.Epoch:
    epoch = commit.take_epoch(store, OWNER)
    commit.adopt(store, "generate", epoch)
    return epoch


def note(store, epoch, status) -> None:
    store.put("run.json", json.dumps({"stages": {"generate": {"status": status, "epoch": epoch.number}}}).encode())


def finished(store) -> dict[str, str]:
    """A run of two drivers with a zombie's block, an intermediate block and the blocks that count."""
    first = begin(store)
    paths = {
        "first": block(store, first, "0.0", "new", "abc", "open"),
        "between": block(store, first, "0.1", "x", "ab"),
    }
    second = begin(store)
    block(store, first, "0.2", "late", "abc")
    paths["last"] = block(store, second, "0.2", "y", "abc")
    publish.publish(store, second, "sft", [pa.table({"id": ["a", "b", "c"]}, SCHEMA)], SCHEMA, 2, {})
    note(store, second, "done")
    return paths


def newest(store) -> list:
    statuses = commit.read_statuses(store, commit.committed_so_far(store, "generate"))
    return sorted((row_id, file.path, row, status) for row_id, (file, row, status) in statuses.items())


def test_dead_and_superseded_blocks_go_and_every_newest_and_first_record_stays(store):
    paths = finished(store)
    before = newest(store)
    cleaning = clean_run(store)
    assert newest(store) == before
    left = [path for path in store.list("work/generate") if path.endswith(".parquet")]
    assert left == sorted([paths["first"], paths["last"]])
    assert publish.verify(store, "sft") == []
    assert cleaning.num_files == 4  # two blocks and the lists of the two drivers
    assert cleaning.num_kept == 2
    assert cleaning.text() == f"{store.uri}: freed {cleaning.num_bytes:,} bytes in 4 files; 2 blocks stay"


def test_a_dry_run_tells_the_same_and_writes_nothing(store):
    finished(store)
    files = store.list()
    told = clean_run(store, dry_run=True)
    assert store.list() == files
    done = clean_run(store)
    assert (told.num_files, told.num_bytes, told.num_kept) == (done.num_files, done.num_bytes, done.num_kept)
    assert told.text().startswith(f"{store.uri}: would free {done.num_bytes:,} bytes")


def test_a_run_may_be_cleaned_twice_and_go_on_afterwards(store):
    finished(store)
    clean_run(store)
    before = newest(store)
    assert clean_run(store).num_files == 1  # the list of the first cleaning
    third = begin(store)
    assert newest(store) == before
    path = block(store, third, "0.2", "z", "d")
    assert path in [file.path for file in commit.committed(store, "generate", third)]


def test_a_run_that_may_have_a_driver_is_refused_with_its_name_unless_told(store):
    finished(store)
    third = begin(store)
    note(store, third, "running")
    files = store.list()
    with pytest.raises(StageError, match=r"not finished.*host node-7, pid 42, started 2026.*clean with --force"):
        clean_run(store)
    assert store.list() == files
    assert clean_run(store, force=True).is_done
    with pytest.raises(FencedError):
        commit.check_owner(store, third)


def test_a_driver_that_has_taken_its_epoch_and_noted_nothing_yet_is_seen(store):
    finished(store)
    commit.take_epoch(store, OWNER)
    with pytest.raises(StageError, match="may be alive"):
        clean_run(store)


def test_a_driver_that_comes_between_loses_nothing(store, monkeypatch):
    finished(store)
    before, adopt = newest(store), commit.adopt

    def adopt_and_be_overtaken(*args, **only):
        begin_with = adopt(*args, **only)
        commit.take_epoch(store, OWNER)
        return begin_with

    monkeypatch.setattr(commit, "adopt", adopt_and_be_overtaken)
    with pytest.raises(FencedError, match="host node-7"):
        clean_run(store)
    monkeypatch.undo()
    assert newest(store) == before


def test_the_units_of_a_training_stage_stay(store):
    """They lie under work/ too, and a training that goes on reads them."""
    finished(store)
    for path in ("work/sft/units/0a1b/index.parquet", "work/sft/units/0a1b/00000.safetensors"):
        store.put(path, b"units")
    clean_run(store)
    assert store.exists("work/sft/units/0a1b/index.parquet")
    assert store.exists("work/sft/units/0a1b/00000.safetensors")


def test_a_folder_without_a_run_is_refused(store):
    for force in (False, True):
        with pytest.raises(ConfigError, match=r"no run.json there"):
            clean_run(store, force=force)
    assert store.list() == []
