"""How a stage over earlier rows begins: with what is there, or anew; and which prompts a round samples for."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.local_store import LocalStore
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.generation import todo
from moaa_ray.generation.stage_run import begin_stage
from moaa_ray.loading import load_preference
from moaa_ray.preference.sample import plan_input, rows_to_sample, sample_work
from moaa_ray.preference.stage import RowStage, begin, put_through
from moaa_ray.recipe import Run
from moaa_ray.run_folders import with_student
from moaa_ray.run_record import join_run
from moaa_ray.settings.models import FakeModel
from moaa_ray.settings.preference import SampleConfig
from tests.core.rows import row

STAGE = "sample"
RECIPE = Run(name="r", models={"a": FakeModel(engine="fake")}, sample=SampleConfig(model="a"))


@pytest.fixture
def store(tmp_path):
    store = LocalStore(str(tmp_path / "run"))
    store.put("run.json", b'{"format": 1, "name": "r", "fingerprint": {}, "changes": [], "sessions": []}')
    return store


def stage(made_with: dict, *, restart: bool = False) -> RowStage:
    return RowStage(
        work=sample_work(RECIPE),
        plan=plan_input(RECIPE),
        made_with=made_with,
        restart=restart,
        restart_command="moaa sample --restart",
        folder="candidates",
        schema=schemas.CANDIDATES,
        usable=lambda table: (table, []),
        facts={},
    )


def put_rows(store, epoch, *ids: str) -> None:
    records = [schemas.row_record(row(row_id), pass_names=["candidates"]) for row_id in ids]
    table = pa.Table.from_pylist(records, schema=schemas.work_schema(["candidates"]))
    commit.commit_block(store, STAGE, "0.0", epoch.number, "new-0", table)


def known(store, epoch) -> set[str]:
    return set(commit.read_statuses(store, commit.committed(store, STAGE, epoch), num_threads=1))


def test_a_stage_goes_on_with_its_rows_and_refuses_other_settings_with_the_way_out(store):
    put_rows(store, begin(stage({"temperature": "0.8"}), store), "r1")
    assert known(store, begin(stage({"temperature": "0.8"}), store)) == {"r1"}
    with pytest.raises(ConfigError, match=r"temperature was 0\.8, is 0\.9\n.*anew with `moaa sample --restart`"):
        begin(stage({"temperature": "0.9"}), store)
    assert known(store, begin(stage({"temperature": "0.8"}), store)) == {"r1"}


def test_a_stage_that_restarts_knows_none_of_its_rows_and_has_the_new_settings(store):
    put_rows(store, begin(stage({"temperature": "0.8"}), store), "r1")
    epoch = begin(stage({"temperature": "0.9"}, restart=True), store)
    assert known(store, epoch) == set()
    put_rows(store, epoch, "r2")
    assert known(store, begin(stage({"temperature": "0.9"}), store)) == {"r2"}


def test_a_restart_that_is_killed_between_its_steps_never_takes_old_rows_for_new_ones(store):
    """Killed after the old rows are forgotten: new settings are still refused, and the old ones begin from nothing."""
    put_rows(store, begin(stage({"temperature": "0.8"}), store), "r1")
    begin_stage(store, STAGE, forget=True)
    with pytest.raises(ConfigError, match="temperature was"):
        begin(stage({"temperature": "0.9"}), store)
    assert known(store, begin(stage({"temperature": "0.8"}), store)) == set()


def test_a_row_that_the_stage_before_has_changed_is_refused_by_name(store):
    epoch = begin(stage({}), store)
    put_rows(store, epoch, "r1")
    rows = [row("r1", text="What is 2 + 3?")]
    with pytest.raises(DataError, match=r"row 'r1' has other messages .* anew too, with `moaa sample --restart`"):
        list(todo.same_rows(store, epoch, sample_work(RECIPE), rows, restart_command="moaa sample --restart"))


def drawn(tmp_path, number: int = 1, **sample) -> list[str]:
    """The ids that a round samples for, of ten rows of two sources."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: r\nrun_dir: {tmp_path}/run\nmodels: {{student: {{engine: fake}}}}\n", encoding="utf-8")
    loaded = with_student(load_preference(path, [f"sample.{name}={value}" for name, value in sample.items()]))
    store = open_store(loaded.run_dir)
    if not store.exists("sft/_manifest.json"):
        join_run(store, loaded)
        said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}]
        records = [
            {"id": f"r{i}", "source": "uf" if i < 6 else "uc", "messages": said, "proposals": [], "flags": []}
            for i in range(10)
        ]
        table = pa.Table.from_pylist(records, schema=schemas.SFT)
        publish.publish(store, commit.take_epoch(store, {}), "sft", [table], schemas.SFT, 100, facts={})
    rows, rejected = rows_to_sample(loaded, loaded.run_dir, number)
    assert not rejected.num_rows
    assert all([message["role"] for message in found.messages] == ["user"] for found in rows)
    return [found.id for found in rows]


def test_without_a_number_every_row_of_sft_is_sampled_for_in_order(tmp_path):
    assert drawn(tmp_path) == [f"r{i}" for i in range(10)]


def test_rounds_draw_other_prompts_until_all_have_been_drawn(tmp_path):
    """4 of 10 in each: two rounds share none, and the third has the 2 that are left and 2 of the first."""
    first, second, third = (drawn(tmp_path, number, rows=4) for number in (1, 2, 3))
    assert [len(ids) for ids in (first, second, third)] == [4, 4, 4]
    assert not set(first) & set(second)
    assert {*first, *second, *third} == {f"r{i}" for i in range(10)}
    assert drawn(tmp_path, 1, rows=4) == first


def test_only_the_sources_that_are_named_are_sampled_for_and_an_unknown_one_is_refused(tmp_path):
    assert drawn(tmp_path, from_sources="[uc]") == ["r6", "r7", "r8", "r9"]
    with pytest.raises(ConfigError, match=r"sample.from_sources = 'xx': no row of that source; there are uc, uf"):
        drawn(tmp_path, from_sources="[xx]")


def test_rows_of_the_sources_that_are_no_prompt_are_counted_and_kept_with_their_rule(tmp_path, store):
    """Four lines: a prompt, the same again, an empty one, one without content; of another source, a broken one."""
    told = [{"id": "r1", "prompt": "What is 2 + 3?"}] * 2 + [{"prompt": " "}, {"messages": [{"role": "tool"}]}]
    (tmp_path / "uf.jsonl").write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    (tmp_path / "uc.jsonl").write_text('{"prompt": "Ho?"}\n{', encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: r\nrun_dir: {tmp_path}/run\nmodels: {{student: {{engine: fake}}}}\n"
        "sample: {from_sources: [uf], sources: [{path: uf.jsonl}, {path: uc.jsonl}]}\n",
        encoding="utf-8",
    )
    rows, rejected = rows_to_sample(with_student(load_preference(path)), "", 1)
    assert ([one.id for one in rows], rejected["id"].to_pylist()) == (["r1"], ["uf:0:2", "uf:0:3", "uf:0:4"])

    done = stage({})
    records = [schemas.row_record(replace(one, status="ok"), pass_names=["candidates"]) for one in rows]
    table = pa.Table.from_pylist(records, schema=schemas.work_schema(["candidates"]))
    commit.commit_block(store, STAGE, "0.1", begin(done, store).number, "done", table)
    done = replace(done, usable=lambda table: (schemas.CANDIDATES.empty_table(), {0: "a filter"}), rejected=rejected)
    summary = put_through(done, store, rows, console=None)
    assert (summary.num_prompts, summary.statuses["dropped"]) == (4, 4)
    assert summary.dropped == {"duplicate": 1, "empty": 1, "wrong_type": 1, "a filter": 1}
