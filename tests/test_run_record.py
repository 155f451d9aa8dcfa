"""Whether a run directory goes on with a recipe: only rows bind, not a start that came to nothing."""

import pyarrow as pa
import pytest

from moaa_ray.data import commit
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.generation.stage import generate
from moaa_ray.lines.mixture import prompt_versions
from moaa_ray.loading import load_recipe
from moaa_ray.run_record import open_run
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


@pytest.mark.parametrize("make", [commit_row, lambda store: store.put("sft/manifest.json", b"{}")])
def test_rows_bind_the_directory_to_what_made_them(load, make):
    store = open_store(load().run_dir)
    assert open_run(store, load(), prompt_versions={}) is False
    make(store)
    assert open_run(store, load(), prompt_versions={}) is False
    with pytest.raises(ConfigError, match=r"holds rows made with another recipe:\n  seed was 0, is 7"):
        open_run(store, load("seed=7"), prompt_versions={})


@pytest.mark.parametrize("field", ["generate.block_rows", "generate.phases"])
def test_blocks_and_phases_below_one_are_refused(load, field):
    with pytest.raises(ConfigError, match=rf"{field} = 0: must be at least 1 or auto"):
        load(f"{field}=0")
