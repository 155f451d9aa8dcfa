"""A killed run goes on in another shape: other pools, phases and CPUs, prompts in another order and more of them."""

import random
from pathlib import Path

import pytest

from tests.generation import resumes, runs

pytestmark = pytest.mark.slow
NUM_ROWS = 200


def turns(i: int) -> int:
    return 1 + (i % 5 == 0)


NUM_ROW_TURNS = sum(turns(i) for i in range(NUM_ROWS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


def begun(folder: Path, **recipe) -> Path:
    folder.mkdir()
    runs.write_prompts(folder / "prompts.jsonl", NUM_ROWS, turns=turns)
    return runs.write_recipe(folder, **recipe)


@pytest.fixture(scope="module")
def undisturbed(folder) -> dict[str, str]:
    code, output = runs.run(begun(folder / "undisturbed"))
    assert code == 0, output
    assert resumes.calls(folder / "undisturbed/run") == dict.fromkeys(resumes.POOLS, NUM_ROW_TURNS)
    return resumes.canonical(runs.rows(folder / "undisturbed/run"))


@pytest.fixture(scope="module")
def killed(folder) -> Path:
    """Killed in one line: some rows finished, some at their second turn, most not begun."""
    resumes.kill_after(begun(folder / "killed", models=resumes.SLOW), folder / "killed/run", 5)
    return folder / "killed/run"


@pytest.fixture(scope="module")
def killed_in_phases(folder) -> Path:
    """Killed in the second of two phases: some rows finished, all others with some of their proposals."""
    recipe = begun(folder / "phases", models=resumes.SLOW)
    num_blocks = -(-NUM_ROWS // 16)
    resumes.kill_after(recipe, folder / "phases/run", num_blocks + 4, "generate.phases=2")
    return folder / "phases/run"


def go_on(killed: Path, folder: Path, *overrides: str, prompts: list[dict] | None = None) -> dict[str, str]:
    """A copy of the killed run, gone on with; its rows. What was answered before is not asked for again."""
    recipe = resumes.copy_run(killed, folder)
    prompts = prompts or resumes.read_prompts(folder)
    resumes.put_prompts(folder, prompts)
    before = resumes.answered(folder / "run")
    code, output = runs.run(recipe, *overrides)
    assert code == 0, output
    needed = {(p["id"], turn) for p in prompts for turn in range(len(p["messages"]))}
    assert resumes.calls(folder / "run") == {name: len(needed - done) for name, done in before.items()}
    assert 0 < len(before["l0.a"]) < len(needed)
    assert resumes.summary(folder / "run")["statuses"]["ok"] == len({p["id"] for p in prompts})
    rows = runs.rows(folder / "run")
    assert [row["id"] for row in rows] == list(dict.fromkeys(p["id"] for p in prompts))
    return resumes.canonical(rows)


@pytest.mark.long
def test_with_other_numbers_of_engines_slots_and_rows_per_block(folder, undisturbed, killed):
    shape = ("models.a.replicas=2", "models.agg.replicas=3", "models.b.concurrency=3", "generate.block_rows=7")
    assert go_on(killed, folder / "replicas", *shape) == undisturbed


@pytest.mark.long
def test_with_phases_where_there_were_none(folder, undisturbed, killed):
    assert go_on(killed, folder / "to-phases", "generate.phases=3") == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("num_phases", [1, 4])
def test_with_another_number_of_phases(folder, undisturbed, killed_in_phases, num_phases):
    rows = go_on(killed_in_phases, folder / f"phases-{num_phases}", f"generate.phases={num_phases}")
    assert rows == undisturbed


@pytest.mark.long
def test_on_fewer_cpus_and_with_the_prompts_in_another_order(folder, undisturbed, killed):
    prompts = resumes.read_prompts(killed.parent)
    random.Random(1).shuffle(prompts)
    assert go_on(killed, folder / "order", "ray.num_cpus=3", prompts=prompts) == undisturbed


@pytest.mark.long
def test_with_new_prompts_between_the_old_ones_and_some_of_those_twice(folder, undisturbed, killed):
    old = resumes.read_prompts(killed.parent)
    new = [resumes.prompt(f"new{i}", f"New question {i}?", "And then?") for i in range(20)]
    rows = go_on(killed, folder / "more", prompts=[*new[:10], *old[:90], *old[:30], *new[10:], *old[90:]])
    assert {row_id: row for row_id, row in rows.items() if not row_id.startswith("new")} == undisturbed
    summary = resumes.summary(folder / "more/run")
    assert summary["num_prompts"] == NUM_ROWS + 30 + 20
    assert summary["dropped"] == {"duplicate": 30}


@pytest.mark.long
def test_rows_that_failed_for_want_of_proposals_are_mended_in_phases_too(folder):
    """A failed row is asked again from its proposers on; the record of the phase it failed in is later in the line."""
    models = 'a: {engine: fake, faults: {"Question 7?": error}}\nb: {engine: fake, faults: {"Question 7?": error}}'
    own = folder / "mended"
    own.mkdir()
    runs.write_prompts(own / "prompts.jsonl", 20)
    mixture = "  min_proposals: 2\n"
    code, output = runs.run(runs.write_recipe(own, models=models, mixture=mixture), "generate.phases=2")
    assert code == 0, output
    assert "20 prompts = 19 ok, 1 failed" in output
    code, output = runs.run(runs.write_recipe(own, mixture=mixture), "generate.phases=2")
    assert code == 0, output
    assert "20 prompts = 20 ok" in output
    assert resumes.calls(own / "run") == {"l0.a": 1, "l0.b": 1, "l0.c": 0, "aggregate": 1}
