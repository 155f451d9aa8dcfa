"""A whole run in an object store: prompts read from S3, blocks committed there, killed, gone on with, published."""

import json
from pathlib import Path

import pytest

from moaa_ray.data import publish
from moaa_ray.data.store import open_store
from tests.generation import resumes, runs, servers

pytestmark = pytest.mark.long
NUM_ROWS = 120
RUN = "s3://bucket/runs/one"


@pytest.fixture
def bucket():
    pytest.importorskip("moto.server", reason="moto serves S3 on this machine")
    with servers.s3_bucket("bucket"):
        yield


def num_blocks() -> int:
    paths = open_store(RUN).list("work/generate")
    return sum(path.endswith(".parquet") and "/new-" not in path for path in paths)


def test_a_run_on_s3_that_was_killed_publishes_the_bytes_of_a_local_one(tmp_path: Path, bucket):
    runs.write_prompts(tmp_path / "prompts.jsonl", NUM_ROWS, turns=lambda i: 1 + (i % 5 == 0))
    code, output = runs.run(runs.write_recipe(tmp_path))
    assert code == 0, output

    import s3fs

    s3fs.S3FileSystem().put_file(str(tmp_path / "prompts.jsonl"), "bucket/prompts.jsonl")
    there = (f"run_dir={RUN}", "prompts.sources.0.path=s3://bucket/prompts.jsonl")
    slow = runs.write_recipe(tmp_path, models=resumes.SLOW)
    process = runs.start(slow, *there)
    resumes.wait_until(lambda: num_blocks() >= 3, process)
    runs.kill_all(process)
    found = num_blocks()
    assert found < NUM_ROWS / 16
    assert not open_store(RUN).list("sft")
    code, output = runs.run(runs.write_recipe(tmp_path), *there)
    assert code == 0, output
    assert f"{NUM_ROWS} prompts = {NUM_ROWS} ok" in output
    assert f"data: {RUN}/sft" in output

    store = open_store(RUN)
    for folder in ("sft", "prompts"):
        assert publish.verify(store, folder) == []
        theirs = [store.read(f"{folder}/{shard.name}") for shard in publish.read_manifest(store, folder).shards]
        assert theirs == [path.read_bytes() for path in sorted((tmp_path / "run" / folder).glob("*.parquet"))]
    assert json.loads(store.read("summary.json"))["generate"]["pools"][0]["calls"] < NUM_ROWS * 6 / 5

    code, output = runs.run(runs.write_recipe(tmp_path), *there, "ray.address=nowhere:1")
    assert code == 0, output
