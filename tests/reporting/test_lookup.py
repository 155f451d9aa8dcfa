"""Rows found by id in published folders."""

import pytest

from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.store import open_store
from moaa_ray.errors import DataError
from moaa_ray.reporting import lookup
from tests.reporting.runs import user


@pytest.fixture
def store(tmp_path):
    """prompts/ with 2,500 rows in shards of 1,200, each of two row groups."""
    store = open_store(str(tmp_path / "run"))
    rows = [{"id": f"r{n:04d}", "source": "s", "messages": user(f"prompt {n}")} for n in range(2500)]
    table = schemas.PROMPTS.empty_table().from_pylist(rows, schema=schemas.PROMPTS)
    publish.publish(store, commit.take_epoch(store, {}), "prompts", [table], schemas.PROMPTS, 1200, facts={})
    return store


@pytest.mark.parametrize("number", [0, 1, 1023, 1024, 1199, 1200, 2399, 2499])
def test_a_row_is_found_with_its_file_and_its_number_in_the_folder(store, number):
    found = lookup.find_row(store, "prompts", f"r{number:04d}")
    assert found is not None
    assert found.record["messages"][0]["content"] == f"prompt {number}"
    assert (found.path, found.number) == (f"prompts/part-{number // 1200:05d}.parquet", number)


def test_several_rows_come_in_the_order_of_the_folder(store):
    ids = ["r2499", "r0003", "r1500", "r0002", "absent"]
    assert [found.record["id"] for found in lookup.find_rows(store, "prompts", ids)] == [
        "r0002", "r0003", "r1500", "r2499"
    ]  # fmt: skip


def test_what_is_not_there_is_none_but_an_unpublished_folder_cannot_be_read(store):
    assert lookup.find_row(store, "prompts", "r9999") is None
    assert lookup.find_row(store, "sft", "r0001") is None
    assert lookup.find_failure(store, "generate", "r0001") is None
    with pytest.raises(DataError, match="not published"):
        list(lookup.find_rows(store, "sft", ["r0001"]))


def test_the_nearest_ids_are_those_that_hold_the_text_then_those_that_are_written_alike(store):
    ids = lookup.all_ids(store, "prompts")
    assert lookup.nearest("2499", ids)[0] == "r2499"
    assert "r0007" in lookup.nearest("r00007", ids)[:2]
    assert lookup.nearest("x", []) == []
    assert len(lookup.nearest("", ids)) == 5
