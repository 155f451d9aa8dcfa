import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moaa_ray.data import commit
from moaa_ray.errors import DataError, FencedError
from tests.data.faulty_store import KINDS, World, store_on

OWNER = {"host": "node-7", "pid": 42, "started": "2026-01-02T03:04:05+00:00"}


@pytest.fixture(params=KINDS)
def store(request):
    return store_on(request.param, World())


def _rows(ids, status="ok", **columns) -> pa.Table:
    return pa.table({"id": list(ids), "status": [status] * len(ids), **columns})


def _paths(files):
    return [file.path for file in files]


def test_epochs_count_up_and_a_newer_one_fences_the_older(store):
    first = commit.take_epoch(store, OWNER)
    commit.check_owner(store, first)
    second = commit.take_epoch(store, OWNER)
    assert (first.number, second.number) == (1, 2)
    commit.check_owner(store, second)
    with pytest.raises(
        FencedError, match=r"host node-7, pid 42, started 2026.*took epoch 2.*run the same command again"
    ):
        commit.check_owner(store, first)


def test_the_tenth_epoch_follows_the_ninth(store):
    assert [commit.take_epoch(store, OWNER).number for _ in range(12)] == list(range(1, 13))


def test_a_driver_whose_run_was_cleaned_is_fenced(store):
    epoch = commit.take_epoch(store, OWNER)
    store.delete_folder("work")
    with pytest.raises(FencedError, match="cleaned under this driver"):
        commit.check_owner(store, epoch)


def test_a_new_driver_inherits_what_was_committed_when_it_began(store):
    first = commit.take_epoch(store, OWNER)
    assert commit.committed(store, "sft", first) == []
    kept = commit.commit_block(store, "sft", "0.0", 1, "a", _rows("ab"))
    second = commit.take_epoch(store, OWNER)
    assert _paths(commit.committed(store, "sft", second)) == [kept]


def test_what_a_zombie_commits_later_never_counts(store):
    first = commit.take_epoch(store, OWNER)
    commit.adopt(store, "sft", first)
    kept = commit.commit_block(store, "sft", "0.0", 1, "a", _rows("ab"))
    second = commit.take_epoch(store, OWNER)
    commit.adopt(store, "sft", second)
    commit.commit_block(store, "sft", "0.0", 1, "late", _rows("cd"))
    own = commit.commit_block(store, "sft", "0.0", 2, "late", _rows("cd"))
    third = commit.take_epoch(store, OWNER)
    commit.commit_block(store, "sft", "0.1", 1, "later", _rows("ef"))
    assert _paths(commit.committed(store, "sft", second)) == [kept, own]
    assert _paths(commit.committed_so_far(store, "sft")) == [kept, own]
    assert _paths(commit.committed(store, "sft", third)) == [kept, own]


def test_an_epoch_that_died_before_it_adopted_is_passed_over(store):
    first = commit.take_epoch(store, OWNER)
    commit.adopt(store, "sft", first)
    kept = commit.commit_block(store, "sft", "0.0", 1, "a", _rows("ab"))
    commit.take_epoch(store, OWNER)
    third = commit.take_epoch(store, OWNER)
    assert _paths(commit.committed(store, "sft", third)) == [kept]


def test_a_driver_that_adopts_after_a_newer_one_began_is_fenced(store):
    first = commit.take_epoch(store, OWNER)
    commit.take_epoch(store, OWNER)
    with pytest.raises(FencedError):
        commit.adopt(store, "sft", first)


def test_stages_adopt_on_their_own(store):
    first = commit.take_epoch(store, OWNER)
    commit.adopt(store, "sft", first)
    commit.commit_block(store, "sft", "0.0", 1, "a", _rows("ab"))
    commit.adopt(store, "judge", first)
    assert commit.committed(store, "judge", first) == []


def test_the_first_commit_of_a_key_stands(store):
    commit.take_epoch(store, OWNER)
    path = commit.commit_block(store, "sft", "0.0", 1, "a", _rows("ab", "ok"))
    assert path == "work/sft/0.0/e1/a.parquet"
    assert commit.commit_block(store, "sft", "0.0", 1, "a", _rows("ab", "failed")) == path
    statuses = commit.read_statuses(store, commit.committed(store, "sft", commit.take_epoch(store, OWNER)))
    assert len(statuses) == 0, "nobody adopted under epoch 1, so its blocks do not count"
    assert pq.read_table(store.open(path))["status"].to_pylist() == ["ok", "ok"]


def test_a_block_keeps_its_schemas_metadata(store):
    table = _rows("ab").replace_schema_metadata({"moaa_ray.schema": "work/1"})
    path = commit.commit_block(store, "sft", "0.0", 1, "a", table)
    assert pq.read_schema(store.open(path)).metadata[b"moaa_ray.schema"] == b"work/1"


@pytest.mark.parametrize(("stage", "part", "key"), [("sft", "0", "a"), ("sft", "0.0", "../a"), ("S/x", "0.0", "a")])
def test_names_that_a_listing_would_not_find_again_are_refused(store, stage, part, key):
    with pytest.raises(ValueError, match=r"want e\.g\. 'sft'"):
        commit.commit_block(store, stage, part, 1, key, _rows("ab"))


def _committed_by_one(store, *blocks):
    """The files of one driver that committed the (part, key, rows)."""
    epoch = commit.take_epoch(store, OWNER)
    commit.adopt(store, "sft", epoch)
    for part, key, rows in blocks:
        commit.commit_block(store, "sft", part, epoch.number, key, rows)
    return commit.committed(store, "sft", epoch)


def test_the_newest_record_of_a_row_counts_by_epoch_then_round_then_phase(store):
    _committed_by_one(store, ("0.1", "a", _rows("abcd", "failed")), ("0.2", "b", _rows("b", "failed")))
    files = _committed_by_one(store, ("0.1", "a", _rows("abc", "ok")), ("1.0", "c", _rows("xc", "open")))
    statuses = commit.read_statuses(store, files)
    assert {row_id: (file.path, row, status) for row_id, (file, row, status) in statuses.items()} == {
        "a": ("work/sft/0.1/e2/a.parquet", 0, "ok"),
        "b": ("work/sft/0.1/e2/a.parquet", 1, "ok"),
        "c": ("work/sft/1.0/e2/c.parquet", 1, "open"),
        "d": ("work/sft/0.1/e1/a.parquet", 3, "failed"),
        "x": ("work/sft/1.0/e2/c.parquet", 0, "open"),
    }
    assert statuses.of(["d", "nobody", "a"]) == ["failed", None, "ok"]
    assert list(statuses.newest(["c", "nobody"])) == [(files[-1], 1, "open"), None]
    assert statuses.counts() == {"open": 2, "ok": 2, "failed": 1, "quarantined": 0, "dropped": 0}
    assert statuses.refs(["x", "a"]) == [("work/sft/1.0/e2/c.parquet", 0), ("work/sft/0.1/e2/a.parquet", 0)]
    assert statuses.refs_of(["d", "nobody", "a", "x"], ["ok", "open"]) == statuses.refs(["a", "x"])
    assert statuses.refs_of([], ["ok"]) == []


def test_a_row_without_a_record_is_named_when_its_place_is_wanted(store):
    with pytest.raises(DataError, match="row nobody has no committed record"):
        commit.read_statuses(store, _committed_by_one(store, ("0.0", "a", _rows("a")))).refs(["a", "nobody"])


def test_no_files_give_no_statuses(store):
    statuses = commit.read_statuses(store, [])
    assert (len(statuses), list(statuses), statuses.of(["a"]), list(statuses.newest(["a"]))) == (0, [], [None], [None])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"torn", "is not readable Parquet"),
        (b"", "is not readable Parquet"),
        (pa.table({"id": ["a"]}), r"lacks the columns \['status'\]"),
        (_rows("a", "done"), "a status outside"),
        (pa.table({"id": pa.array([None], pa.string()), "status": ["ok"]}), "without an id"),
    ],
)
def test_a_block_that_cannot_be_read_is_named_with_the_way_out(store, data, message):
    files = _committed_by_one(store, ("0.0", "a", _rows("a")), ("0.0", "b", _rows("b")))
    if isinstance(data, pa.Table):
        sink = pa.BufferOutputStream()
        pq.write_table(data, sink)
        data = sink.getvalue().to_pybytes()
    store.put(files[1].path, data)
    with pytest.raises(DataError, match=rf"0\.0/e1/b\.parquet .*{message}.*run the same command again"):
        commit.read_statuses(store, files)


def test_a_committed_file_that_is_gone_is_named(store):
    files = _committed_by_one(store, ("0.0", "a", _rows("a")))
    store.delete(files[0].path)
    with pytest.raises(DataError, match="was committed and is gone"):
        commit.read_statuses(store, files)


def test_rows_come_back_in_exactly_the_order_asked_for(store):
    files = _committed_by_one(store, ("0.0", "a", _rows("abc", n=[0, 1, 2])), ("0.0", "b", _rows("de", n=[3, 4])))
    a, b = _paths(files)
    tables = list(commit.read_rows(store, [(b, 1), (a, 2), (b, 0), (a, 2), (a, 0)], batch_rows=2))
    assert [table["n"].to_pylist() for table in tables] == [[4, 2], [3, 2], [0]]


def test_rows_of_files_with_other_columns_are_unified(store):
    files = _committed_by_one(store, ("0.0", "a", _rows("a", n=[1])), ("0.1", "b", _rows("b", m=["x"])))
    refs = [(path, 0) for path in _paths(files)]
    (table,) = commit.read_rows(store, refs, batch_rows=10)
    assert table.to_pylist() == [
        {"id": "a", "status": "ok", "n": 1, "m": None},
        {"id": "b", "status": "ok", "n": None, "m": "x"},
    ]
    wanted = pa.schema([("m", pa.string()), ("id", pa.string())])
    tables = list(commit.read_rows(store, refs, batch_rows=1, schema=wanted))
    assert [table.schema for table in tables] == [wanted, wanted]
    assert pa.concat_tables(tables).to_pylist() == [{"m": None, "id": "a"}, {"m": "x", "id": "b"}]


def test_more_files_than_are_kept_decoded_are_read_all_the_same(store):
    files = _committed_by_one(store, *(("0.0", f"k{i:02}", _rows([f"r{i}"], n=[i])) for i in range(20)))
    refs = [(path, 0) for path in _paths(files)] * 2
    tables = commit.read_rows(store, refs, batch_rows=7)
    assert pa.concat_tables(tables)["n"].to_pylist() == list(range(20)) * 2


def test_the_owner_record_says_who_to_look_for():
    assert set(commit.owner_record()) == {"host", "pid", "started"}


def test_a_driver_that_renews_its_epoch_fences_its_own_workers_and_keeps_what_they_had_committed(store):
    first = commit.take_epoch(store, OWNER)
    commit.adopt(store, "sft", first)
    kept = commit.commit_block(store, "sft", "0.1", 1, "a", _rows("ab"))
    second = commit.renew_epoch(store, first)
    assert (second.number, second.owner) == (2, OWNER)
    commit.adopt(store, "sft", second)
    commit.commit_block(store, "sft", "0.1", 1, "b", _rows("cd"))
    assert _paths(commit.committed(store, "sft", second)) == [kept]
    with pytest.raises(FencedError):
        commit.check_owner(store, first)


def test_an_epoch_that_another_driver_has_taken_is_not_renewed(store):
    first = commit.take_epoch(store, OWNER)
    commit.take_epoch(store, {**OWNER, "pid": 43})
    with pytest.raises(FencedError, match="pid 43"):
        commit.renew_epoch(store, first)
