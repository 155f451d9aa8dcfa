"""Whether a run directory goes on with a recipe: only rows bind, not a start that came to nothing."""

from contextlib import suppress

import pyarrow as pa
import pytest

from moaa_ray.data import commit
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError, DataError, FencedError, StageError
from moaa_ray.generation.stage import generate
from moaa_ray.lines.mixture import prompt_versions
from moaa_ray.loading import load_recipe
from moaa_ray.reporting.status import run_status
from moaa_ray.run_record import noting_stop, open_run, read_run, set_stage
from tests.generation import runs

RECIPE = """
name: record
prompts: {sources: [{path: prompts.jsonl}]}
models: {a: {engine: fake}}
mixture: {layers: [{proposers: [{model: a}]}], aggregator: {model: a}}
"""


@pytest.fixture
def load(tmp_path):
    runs.write_prompts(tmp_path / "prompts.jsonl", 3)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return lambda *overrides: load_recipe(path, [f"run_dir={tmp_path}/run", *overrides])


def test_a_start_that_was_refused_leaves_the_directory_to_the_recipe_that_is_mended(load):
    with pytest.raises(ConfigError, match="has no column 'question'"):
        generate(load("prompts.sources.0.columns.prompt=question"))
    with pytest.raises(DataError, match="no row can be used"):
        generate(load("prompts.max_chars=1"))
    mended = load("seed=7")
    assert open_run(open_store(mended.run_dir), mended, prompt_versions=prompt_versions()) is False


def commit_row(store) -> None:
    epoch = commit.take_epoch(store, commit.owner_record())
    commit.adopt(store, "generate", epoch)
    table = pa.table({"id": ["r"], "status": ["open"]})
    commit.commit_block(store, "generate", "0.0", epoch.number, "new-0", table)


@pytest.mark.parametrize("make", [commit_row, lambda store: store.put("sft/_manifest.json", b"{}")])
def test_rows_bind_the_directory_to_what_made_them(load, make):
    store = open_store(load().run_dir)
    assert open_run(store, load(), prompt_versions={}) is False
    make(store)
    assert open_run(store, load(), prompt_versions={}) is False
    with pytest.raises(ConfigError, match=r"holds rows made with another recipe:\n  seed was 0, is 7"):
        open_run(store, load("seed=7"), prompt_versions={})


@pytest.mark.parametrize("other", [b"{}", b'{"name": "x", "sessions": []}'])
def test_a_run_json_of_another_program_is_refused_and_left_alone(load, other):
    store = open_store(load().run_dir)
    store.put("run.json", other)
    with pytest.raises(ConfigError, match=r"run\.json: was not written by moaa_ray; give another run_dir"):
        open_run(store, load(), prompt_versions={})
    assert store.read("run.json") == other


@pytest.mark.parametrize("field", ["generate.block_rows", "generate.phases"])
def test_blocks_and_phases_below_one_are_refused(load, field):
    with pytest.raises(ConfigError, match=rf"{field} = 0: must be at least 1 or auto"):
        load(f"{field}=0")


def test_a_stage_that_stops_short_is_told_with_its_reason(load):
    with pytest.raises(ConfigError):
        generate(load("prompts.sources.0.columns.prompt=question"))
    (told,) = run_status(load().run_dir).splitlines()[1:-1]
    assert told.startswith("  generate  stopped 0s ago (has begun): ")
    assert "has no column 'question'" in told


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (StageError("first line\nthe way out"), "first line"),
        (ValueError("s3://key:secret@bucket"), "ValueError; what its command printed says more"),
        (KeyboardInterrupt(), "by a signal"),
    ],
)
def test_what_stopped_a_stage_stands_in_one_line(load, error, why):
    store = begun(load)
    with pytest.raises(type(error)), noting_stop(store, "generate"):
        raise error
    state = read_run(store)["stages"]["generate"]
    assert (state["status"], state["why"], state["epoch"]) == ("stopped", why, 3)


def test_a_driver_that_lost_the_run_says_nothing_in_its_place(load):
    store = begun(load)
    with pytest.raises(FencedError), noting_stop(store, "generate"):
        raise FencedError("another driver")
    with suppress(StageError), noting_stop(store, "generate"):
        open_run(store, load(), prompt_versions={})  # the other driver
        raise StageError("late")
    assert read_run(store)["stages"]["generate"]["status"] == "running"


def test_a_stage_that_had_ended_stays_done(load):
    store = begun(load)
    with suppress(StageError), noting_stop(store, "generate"):
        set_stage(store, "generate", status="done", epoch=3)
        raise StageError("too many rows failed")
    assert read_run(store)["stages"]["generate"]["status"] == "done"


def test_a_store_that_fails_does_not_hide_what_stopped_the_stage(load, monkeypatch):
    def broken(*_args):
        raise RuntimeError("an object store's own kind of error")

    store = begun(load)
    monkeypatch.setattr(type(store), "put", broken)
    with pytest.raises(StageError, match="first"), noting_stop(store, "generate"):
        raise StageError("first")


def begun(load):
    """A run directory in which generate has begun."""
    store = open_store(load().run_dir)
    open_run(store, load(), prompt_versions={})
    set_stage(store, "generate", status="running", epoch=3)
    return store
