"""A run is gone on with after its recipe or its prompts changed: what is refused, what is not, and what is kept."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from moaa_ray.data.store import open_store
from moaa_ray.lines.mixture import prompt_versions
from moaa_ray.loading import load_recipe
from moaa_ray.run_record import open_run
from tests.generation import resumes, runs

pytestmark = pytest.mark.slow
NUM_ROWS = 40
NO_RAY = "ray.address=nowhere:1"
"""An override with which a start that wants Ray fails."""


def turns(i: int) -> int:
    return 1 + (i % 5 == 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("changes")


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    own = folder / "finished"
    own.mkdir()
    runs.write_prompts(own / "prompts.jsonl", NUM_ROWS, turns=turns)
    code, output = runs.run(runs.write_recipe(own))
    assert code == 0, output
    return own / "run"


def bytes_of(run_dir: Path) -> dict[str, str]:
    """A hash of every file but the records of who began when."""
    return {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run_dir.rglob("*")
        if path.is_file() and not path.is_relative_to(run_dir / "work")
    }


def refused(recipe: Path, *overrides: str, code: int) -> str:
    """A start that is refused and changes no file of a reader; what it says."""
    before = bytes_of(recipe.parent / "run")
    found, output = runs.run(recipe, NO_RAY, *overrides, timeout_s=120)
    assert found == code, output
    assert "Traceback" not in output
    after = bytes_of(recipe.parent / "run")
    if code != 2:  # the recipe was accepted, and is on record
        after |= {name: before[name] for name in ("run.json", "recipe.yaml")}
    assert after == before
    return output


def test_a_recipe_that_would_make_other_rows_is_refused_by_every_field(folder, finished):
    recipe = resumes.copy_run(finished, folder / "fields")
    changes = {
        "seed": ("seed=1", "0", "1"),
        "models.b.model": ("models.b.model=other", '"fake"', '"other"'),
        "mixture.layers.0.proposers.1.temperature": ("mixture.layers.0.proposers.1.temperature=0.2", "0.7", "0.2"),
        "mixture.aggregator.max_tokens": ("mixture.aggregator.max_tokens=99", "2048", "99"),
        "prompts.sources[prompts.jsonl].columns.id": ("prompts.sources.0.columns.id=name", "null", '"name"'),
        "prompts.sources[prompts.jsonl].turns": ("prompts.sources.0.turns=last", '"all"', '"last"'),
    }
    output = refused(recipe, *(override for override, _, _ in changes.values()), code=2)
    lines = [line.strip() for line in output.splitlines()]
    assert {line for line in lines if " was " in line} == {
        f"{field} was {old}, is {new}" for field, (_, old, new) in changes.items()
    }
    assert lines[-1].startswith("give another run_dir, put the recipe back, or mix the rows with --allow-changes")


def test_another_wording_of_our_prompts_is_refused(folder, finished):
    recipe = resumes.copy_run(finished, folder / "wording")
    record = json.loads((folder / "wording/run/run.json").read_text(encoding="utf-8"))
    record["fingerprint"]["templates.version"] = '"an older one"'
    (folder / "wording/run/run.json").write_text(json.dumps(record), encoding="utf-8")
    now = json.dumps(prompt_versions()["templates.version"])
    assert f'templates.version was "an older one", is {now}' in refused(recipe, code=2)


def test_a_model_folder_with_other_weights_is_refused(folder, finished):
    own = folder / "weights"
    own.mkdir()
    shutil.copy(finished.parent / "prompts.jsonl", own)
    (own / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (own / "model" / name).write_text('{"max_position_embeddings": 8192}', encoding="utf-8")
    recipe = runs.write_recipe(own, models="c: {engine: vllm, model: ./model, device: cpu}")
    store = open_store(str(own / "run"))
    open_run(store, load_recipe(recipe), prompt_versions=prompt_versions())
    store.put("sft/_manifest.json", b"{}")  # rows were made
    (own / "model/model.safetensors").write_text("other weights", encoding="utf-8")
    assert "models.c.files was " in refused(recipe, code=2)


def test_what_says_only_how_fast_and_where_may_change(folder, finished):
    recipe = resumes.copy_run(finished, folder / "execution")
    before = runs.digest(folder / "execution/run")
    more = ("models.a.replicas=3", "models.b.concurrency=1", "models.c.max_attempts=9", "generate.block_rows=3")
    code, output = runs.run(recipe, NO_RAY, *more, "generate.phases=2", "generate.on_missing_proposer=wait", "name=x")
    assert code == 0, output
    assert runs.digest(folder / "execution/run") == before
    assert json.loads((folder / "execution/run/run.json").read_text(encoding="utf-8"))["changes"] == []


@pytest.mark.long
def test_an_id_with_another_text_is_refused_and_with_its_old_one_goes_on(folder, finished):
    recipe = resumes.copy_run(finished, folder / "text")
    prompts = resumes.read_prompts(folder / "text")
    resumes.put_prompts(folder / "text", [*prompts[:3], resumes.prompt("r00003", "Another?"), *prompts[4:]])
    output = refused(recipe, code=3)
    assert "prompt 'r00003' of source 'prompts' has other messages than when this run began with it" in output
    assert "now 'Another?'" in output
    assert "put the old text back, or give another run_dir" in " ".join(output.split())
    resumes.put_prompts(folder / "text", prompts)
    code, output = runs.run(recipe, NO_RAY)
    assert code == 0, output
    assert runs.digest(folder / "text/run") == runs.digest(finished)


@pytest.mark.long
def test_a_prompt_taken_away_takes_its_row_along_and_brings_it_back(folder, finished):
    """Its row stays in the ledger, so that nothing is asked again."""
    recipe = resumes.copy_run(finished, folder / "removed")
    prompts = resumes.read_prompts(folder / "removed")
    resumes.put_prompts(folder / "removed", [p for p in prompts if p["id"] not in ("r00003", "r00005")])
    code, output = runs.run(recipe, NO_RAY)
    assert code == 0, output
    assert f"{NUM_ROWS - 2} prompts = {NUM_ROWS - 2} ok" in output
    left = [row for row in runs.rows(finished) if row["id"] not in ("r00003", "r00005")]
    assert runs.rows(folder / "removed/run") == left
    resumes.put_prompts(folder / "removed", prompts)
    code, output = runs.run(recipe, NO_RAY)
    assert code == 0, output
    assert runs.digest(folder / "removed/run") == runs.digest(finished)


@pytest.mark.long
def test_with_allow_changes_a_killed_run_goes_on_with_another_mixture_and_says_so(folder):
    """Killed with three proposers in two phases, gone on with two: rows are mixed, finished ones stay, none is lost."""
    own = folder / "allowed"
    own.mkdir()
    runs.write_prompts(own / "prompts.jsonl", 100, turns=turns)
    recipe = runs.write_recipe(own, models=resumes.SLOW)
    resumes.kill_after(recipe, own / "run", 11, "generate.phases=2")
    before = resumes.answered(own / "run")
    num_answered = len(before["aggregate"])
    assert 0 < num_answered < sum(turns(i) for i in range(100)), sorted(
        map(str, (own / "run" / "work").rglob("*.parquet"))
    )
    text = runs.write_recipe(own).read_text(encoding="utf-8")
    recipe.write_text(text.replace("  b: {engine: fake}\n", "").replace("{model: b}, ", ""), encoding="utf-8")
    code, output = runs.run(recipe)
    assert code == 2, output
    code, output = runs.run(recipe, "--allow-changes", "generate.phases=3")
    assert code == 0, output
    assert "100 prompts = 100 ok" in output
    needed = {(f"r{i:05d}", turn) for i in range(100) for turn in range(turns(i))}
    mixed = {"l0.b": 0} | {name: len(needed - before[name]) for name in ("l0.a", "l0.c", "aggregate")}
    assert resumes.calls(own / "run") == mixed
    for row in runs.rows(own / "run"):
        for turn in range(len(row["messages"]) // 2):
            speakers = "abc" if (row["id"], turn) in before["aggregate"] else "ac"
            assert "".join(p["proposer"] for p in row["proposals"] if p["turn"] == turn) == speakers
    record = json.loads((own / "run/run.json").read_text(encoding="utf-8"))
    (change,) = record["changes"]
    assert 'mixture.layers.0.proposers.1.model was "b", is "c"' in change["fields"]
    code, output = runs.run(recipe, NO_RAY)
    assert code == 0, output
