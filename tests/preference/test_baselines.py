"""Datasets out of stored proposals: whose answers they hold, what is counted, and that they train."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.cleanup import clean_run
from moaa_ray.data.schema_check import check_schema
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.generation.summary import Summary
from moaa_ray.loading import LoadedPreference, load_preference
from moaa_ray.preference.baselines import make_baselines
from moaa_ray.preference.best import Place, Ranked, turns
from moaa_ray.preference.teachers import Answered, Teacher, answered, teachers_of
from moaa_ray.run_record import join_run

RECIPE = """
name: base
run_dir: {folder}/run
models:
  a: {{engine: fake}}
  b: {{engine: fake}}
  agg: {{engine: fake}}
  rule: {{engine: rule, function: longest}}
  other: {{engine: rule, function: shortest}}
mixture:
  layers: [{{proposers: [{{model: a}}, {{model: b}}]}}]
  aggregator: {{model: agg}}
  baselines: true
judges:
  rule: {{kind: score, model: rule}}
  other: {{kind: score, model: other}}
judge: {{use: rule, max_failed_fraction: 0.0}}
ray: {{address: local}}
{more}"""


def proposal(proposer: str, text: str, **fields) -> schemas.Record:
    known = {
        "turn": 0, "layer": 0, "proposer": proposer, "model": f"org/{proposer}", "revision": "", "completion": text,
        "finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": 3, "used": True, "error": "",
    }  # fmt: skip
    return {**known, **fields}


def failed(proposer: str, error: str, **fields) -> schemas.Record:
    return proposal(proposer, "", finish_reason="", used=False, error=error, **fields)


def direct(text: str, **fields) -> schemas.Record:
    """The aggregator's own answer, which is never shown."""
    return proposal("agg", text, used=False, **fields)


def row(row_id: str, *proposals: schemas.Record, messages: Sequence[tuple[str, str]] = (), **fields) -> schemas.Record:
    said = messages or [("user", f"Question {row_id}?"), ("assistant", f"mixture {row_id}")]
    return {
        "id": row_id,
        "source": "prompts",
        "messages": [{"role": role, "content": text} for role, text in said],
        "proposals": list(proposals)
        or [proposal("a", f"a {row_id}"), proposal("b", f"b {row_id}"), direct(f"d {row_id}")],
        "flags": ["proposals_cut:aggregate"],
        **fields,
    }


def write_run(folder: Path, records: Sequence[schemas.Record], *overrides: str, more: str = "") -> LoadedPreference:
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, more=more), encoding="utf-8")
    loaded = load_preference(folder / "recipe.yaml", overrides)
    store = open_store(loaded.run_dir)
    join_run(store, loaded)
    table = pa.Table.from_pylist(records, schema=schemas.SFT)
    publish.publish(store, commit.take_epoch(store, {}), "sft", [table], schemas.SFT, 1000, facts={})
    return loaded


def rows_of(folder: Path, name: str) -> list[schemas.Record]:
    place = folder / "run" / "baselines" / name
    return [row for path in sorted(place.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def answers(folder: Path, name: str) -> dict[str, str]:
    return {row["id"]: row["messages"][-1]["content"] for row in rows_of(folder, name)}


def test_a_teachers_dataset_holds_its_answers_under_the_prompts_of_the_mixture(tmp_path):
    loaded = write_run(tmp_path, [row("r1"), row("r2")])
    (summary,) = make_baselines(loaded, ["teacher:b"])
    first, second = rows_of(tmp_path, "teacher-b")
    assert first["messages"] == [
        {"role": "user", "content": "Question r1?"},
        {"role": "assistant", "content": "b r1"},
    ]
    assert (first["id"], first["source"], first["flags"]) == ("r1", "prompts", [])
    assert first["proposals"] == [proposal("b", "b r1")]
    assert second["messages"][-1]["content"] == "b r2"
    assert (summary.num_prompts, summary.num_rows, summary.taken, summary.dropped) == (2, 2, {"b": 2}, {})
    assert summary.mean_chars == 4
    check_schema(pq.read_schema(tmp_path / "run/baselines/teacher-b/part-00000.parquet"), schemas.SFT)


def test_teachers_are_the_first_layers_proposers_and_the_direct_answer_where_it_is_stored(tmp_path):
    """A second layer's answers are made of others, so they are nobody's own."""
    deep = [proposal("a", "a"), proposal("b", "b"), proposal("a", "a of both", layer=1), direct("d")]
    loaded = write_run(tmp_path, [row("r1", *deep)])
    made = make_baselines(loaded, ["teachers", "combined"])
    assert [summary.name for summary in made] == ["teacher-a", "teacher-b", "teacher-direct", "combined-3"]
    assert answers(tmp_path, "teacher-direct") == {"r1": "d"}
    assert answers(tmp_path, "combined-3") == {"r1#a": "a", "r1#b": "b", "r1#direct": "d"}
    without = write_run(tmp_path, [row("r1", *deep[:3])], "mixture.baselines=false")
    assert [summary.name for summary in make_baselines(without, ["random"])] == ["random-2"]


def test_the_samples_of_one_slot_are_teachers_by_number(tmp_path):
    loaded = write_run(
        tmp_path,
        [row("r1", proposal("a", "one"), proposal("a", "two"), proposal("b", "b"), direct("d"))],
        "mixture.layers.0.proposers.0.num_samples=2",
    )
    make_baselines(loaded, ["teacher:a.2", "combined"])
    assert answers(tmp_path, "teacher-a-2") == {"r1": "two"}
    assert list(answers(tmp_path, "combined-4")) == ["r1#a.1", "r1#a.2", "r1#b", "r1#direct"]


def test_random_takes_each_teacher_alike_and_the_same_one_again_by_seed_and_id(tmp_path):
    """Of 900 prompts 300 each are expected; 4 standard deviations are 57."""
    rows = [row(f"r{i}") for i in range(900)]
    loaded = write_run(tmp_path, rows)
    (summary,) = make_baselines(loaded, ["random"])
    taken = Counter(text.split()[0] for text in answers(tmp_path, "random-3").values())
    assert summary.taken == {"a": taken["a"], "b": taken["b"], "direct": taken["d"]}
    assert all(abs(num - 300) < 57 for num in taken.values())
    first = answers(tmp_path, "random-3")
    make_baselines(write_run(tmp_path, rows[::-1]), ["random"])
    assert answers(tmp_path, "random-3") == first
    make_baselines(write_run(tmp_path, rows, "seed=1"), ["random"])
    same = sum(text == first[row_id] for row_id, text in answers(tmp_path, "random-3").items())
    assert abs(same - 300) < 57


def test_answers_that_are_lacking_are_counted_and_their_prompts_written_down(tmp_path):
    rows = [
        row("r1"),
        row("r2", proposal("a", "a r2"), failed("b", "engine_missing"), direct("d r2")),
        row("r3", proposal("a", "a r3"), proposal("b", " \n"), direct("d r3")),
        row("r4", failed("a", "empty"), failed("b", "context_length"), failed("agg", "empty")),
        row("r5", proposal("z", "of another mixture")),
    ]
    loaded = write_run(tmp_path, rows)
    teacher, random, combined = make_baselines(loaded, ["teacher:b", "random", "combined"])
    assert (teacher.num_prompts, teacher.num_rows) == (5, 1)
    assert teacher.dropped == {
        "b: engine_missing": 1, "b: empty": 1, "b: context_length": 1, "another_mixture": 1
    }  # fmt: skip
    left_out = pq.read_table(tmp_path / "run/baselines/failures/teacher-b.parquet").to_pylist()
    assert {one["id"]: one["reason"] for one in left_out} == {
        "r2": "b: engine_missing", "r3": "b: empty", "r4": "b: context_length", "r5": "another_mixture",
    }  # fmt: skip
    assert list(answers(tmp_path, "random-3")) == ["r1", "r2", "r3"]
    assert random.dropped == {"a: empty, b: context_length, direct: empty": 1, "another_mixture": 1}
    assert random.lacking["b: engine_missing"] == random.lacking["b: empty"] == 1
    assert combined.num_rows == 3 + 2 + 2
    assert "dropped: b: engine_missing 1, b: empty 1, b: context_length 1, another_mixture 1" in teacher.text()


def test_a_conversation_of_several_turns_is_the_teachers_own(tmp_path):
    """Its answers stand in the mixture's places; of each turn is said whether it was cut."""
    talk = [("system", "Be kind."), ("user", "One?"), ("assistant", "m1"), ("user", "Two?"), ("assistant", "m2")]
    cut = {"finish_reason": "length"}
    proposals = [proposal("a", "a1", **cut), proposal("b", "b1"), direct("d1")]
    proposals += [proposal("a", "a2", turn=1, **cut), failed("b", "empty", turn=1), direct("d2", turn=1)]
    loaded = write_run(tmp_path, [row("r1", *proposals, messages=talk)])
    made = make_baselines(loaded, ["teachers"])
    (own,) = rows_of(tmp_path, "teacher-a")
    assert [message["content"] for message in own["messages"]] == ["Be kind.", "One?", "a1", "Two?", "a2"]
    assert own["flags"] == ["truncated:0", "truncated"]
    assert [one["completion"] for one in own["proposals"]] == ["a1", "a2"]
    assert [summary.num_truncated for summary in made] == [1, 0, 0]
    assert made[1].dropped == {"b: empty": 1}
    assert "m1" not in json.dumps(rows_of(tmp_path, "teacher-direct"))


def test_the_history_that_a_dataset_brings_along_stays(tmp_path):
    talk = [("user", "One?"), ("assistant", "the dataset's"), ("user", "Two?"), ("assistant", "mixture")]
    loaded = write_run(tmp_path, [row("r1", messages=talk)])
    make_baselines(loaded, ["teacher:a"])
    (own,) = rows_of(tmp_path, "teacher-a")
    assert [message["content"] for message in own["messages"]] == ["One?", "the dataset's", "Two?", "a r1"]


@pytest.mark.parametrize(
    ("wanted", "overrides", "told"),
    [
        (["worst"], [], r"baseline 'worst': .* known are teacher:<name>, teachers, random, combined, best"),
        (["teacher:c"], [], r"'teacher:c'.* the teachers of this recipe are a, b, direct$"),
        (["teacher:direct"], ["mixture.baselines=false"], r"are a, b; `direct` needs mixture.baselines: true"),
        (["best"], ["judge.use=nobody"], r"judge.use = 'nobody': the recipe's judges are rule, other"),
        (["random"], ["mixture.layers.0.proposers.0.name=direct"], "two teachers would be called 'direct'"),
    ],
)
def test_a_baseline_that_cannot_be_made_is_refused_with_what_there_is(tmp_path, wanted, overrides, told):
    with pytest.raises(ConfigError, match=told):
        make_baselines(write_run(tmp_path, [row("r1")], *overrides), wanted)
    assert not (tmp_path / "run/baselines").exists()


def test_an_unknown_judge_a_run_without_rows_and_one_of_another_mixture_are_refused(tmp_path):
    loaded = write_run(tmp_path, [row("r1", proposal("x", "x"), proposal("y", "y"))])
    with pytest.raises(ConfigError, match="--judge jury: there is no such judge; the recipe's judges are rule, other"):
        make_baselines(loaded, ["random", "best"], judge="jury")
    with pytest.raises(ConfigError, match="mixture: the recipe has none"):
        teachers_of(loaded.recipe.model_copy(update={"mixture": None}))
    with pytest.raises(
        DataError, match=r"row 'r1' holds answers of x, y, and the recipe's mixture has a \(a\), b \(b\)"
    ):
        make_baselines(loaded, ["random"])
    with pytest.raises(ConfigError, match="no published rows there; run `moaa generate` first"):
        make_baselines(load_preference(tmp_path / "recipe.yaml", [f"run_dir={tmp_path}/none"]), ["random"])


# the best one

TEACHERS = (Teacher(name="a", proposer="a"), Teacher(name="b", proposer="b"), Teacher(name="direct", proposer="agg"))


def read(record: schemas.Record) -> Answered:
    found = answered(record, TEACHERS)
    assert found is not None
    return found


def ranked(**places: Place) -> Ranked:
    nothing = Summary(run_dir="", num_prompts=0, statuses={}, dropped={}, failures={}, flags={})
    return Ranked(
        teachers=TEACHERS, places={name.replace("_", "#"): at for name, at in places.items()}, summary=nothing
    )


def two_turns() -> Answered:
    talk = [("user", "One?"), ("assistant", "m1"), ("user", "Two?"), ("assistant", "m2")]
    names = ("a", "b", "agg")
    return read(row("r1", *(proposal(n, f"{n}{t}", turn=t) for t in (0, 1) for n in names), messages=talk))


def test_every_turn_is_judged_on_the_history_that_it_was_answered_on():
    first, second = turns(two_turns(), TEACHERS)
    assert (first.id, second.id) == ("r1#0", "r1#1")
    assert [message["content"] for message in first.messages] == ["One?"]
    assert [message["content"] for message in second.messages] == ["One?", "m1", "Two?"]
    assert [answer.text for answer in second.answers["candidates"]] == ["a1", "b1", "agg1"]


def test_the_best_of_several_turns_has_the_highest_mean_score_and_equal_ones_the_better_mean_place():
    """Means: a 0.5, b 0.75, direct 0.25; then a and b both 0.5, where b stands first and second, a first and third."""
    first = Place(scores=[1.0, 0.5, 0.0], ranking=[0, 1, 2])
    assert ranked(r1_0=first, r1_1=Place(scores=[0.0, 1.0, 0.5], ranking=[1, 2, 0])).best(two_turns()) == "b"
    tied = Place(scores=[0.0, 0.5, 0.5], ranking=[1, 2, 0])
    assert ranked(r1_0=first, r1_1=tied).best(two_turns()) == "b"
    assert ranked(r1_0=first).best(two_turns()) == ""
    assert ranked(r1_0=first, r1_1=Place(scores=[None, None, None], ranking=[])).best(two_turns()) == ""


def test_of_one_turn_the_top_of_the_ranking_is_the_best_whatever_broke_the_tie():
    record = read(row("r1"))
    assert ranked(r1_0=Place(scores=[0.5, 0.5, 0.5], ranking=[2, 0, 1])).best(record) == "direct"
    assert ranked(r1_0=Place(scores=[-7.5, None, -9.0], ranking=[0, 2])).best(record) == "a"


def test_answers_that_are_all_the_same_need_no_judge_and_lacking_ones_are_no_candidates():
    same = read(row("r1", proposal("a", "same"), failed("b", "empty"), direct("same")))
    assert list(turns(same, TEACHERS)) == []
    assert ranked().best(same) == "a"
    only = read(row("r2", proposal("a", "one"), failed("b", "empty"), direct("two")))
    (turn,) = turns(only, TEACHERS)
    assert [getattr(answer, "reason", "") for answer in turn.answers["candidates"]] == ["", "empty", ""]


def lengths(i: int) -> list[schemas.Record]:
    """Teacher i % 3 has the longest answer, teacher (i + 1) % 3 the shortest."""
    words = {i % 3: 3, (i + 1) % 3: 1, (i + 2) % 3: 2}
    return [proposal(n, f"{i} " + "word " * words[j] + ".") for j, n in enumerate(("a", "b", "agg"))]


@pytest.mark.long
def test_best_is_what_the_judge_ranks_first_and_each_judge_has_a_dataset_of_its_own(tmp_path):
    loaded = write_run(tmp_path, [row(f"r{i}", *lengths(i)) for i in range(9)])
    (longest,) = make_baselines(loaded, ["best"])
    (shortest,) = make_baselines(loaded, ["best"], judge="other")
    assert (longest.name, shortest.name) == ("best-3-rule", "best-3-other")
    names = ["a", "b", "agg"]
    assert [one["proposals"][0]["proposer"] for one in rows_of(tmp_path, "best-3-rule")] == names * 3
    assert [one["proposals"][0]["proposer"] for one in rows_of(tmp_path, "best-3-other")] == ["b", "agg", "a"] * 3
    assert longest.judging is not None
    assert sum(pool.calls for pool in longest.judging.usage) == 27
    assert (tmp_path / "run/baselines/judges/rule/judgments/_manifest.json").exists()
    assert not (tmp_path / "run/pairs").exists()
    (again,) = make_baselines(loaded, ["best"])
    assert again.judging is not None
    assert not again.judging.pools
    assert {**vars(again), "judging": None} == {**vars(longest), "judging": None}
    for place in ("run/baselines", "run/baselines/judges/rule"):
        assert clean_run(open_store(str(tmp_path / place))).is_done
    make_baselines(loaded, ["best"])
    changed = [row(f"r{i}", *lengths(i + 1)) for i in range(9)]
    with pytest.raises(DataError, match=r"`moaa baselines best --judge rule --restart`"):
        make_baselines(write_run(tmp_path, changed), ["best"])
    make_baselines(loaded, ["best"], restart=True)
    assert [one["proposals"][0]["proposer"] for one in rows_of(tmp_path, "best-3-rule")] == ["b", "agg", "a"] * 3


@pytest.mark.long
def test_the_command_makes_datasets_that_train(tmp_path):
    """Sixteen prompts, of which one answer was cut: 32 documents."""
    pytest.importorskip("torch")
    from tests.training.jobs import make_student, text

    make_student(tmp_path / "student")
    rows = []
    for i in range(16):
        cut = {"finish_reason": "length"} if i == 3 else {}
        rows.append(row(f"r{i}", proposal("a", text(i)), proposal("b", text(i + 1), **cut)))
    training = "epochs: 1, batch: 4, max_tokens: 128, precision: float32, workers: 1, packing: false"
    more = f"student: {{model: {tmp_path}/student}}\nsft: {{data: [{{path: RUN/baselines/combined-2}}], {training}}}\n"
    write_run(tmp_path, rows, more=more)
    recipe = str(tmp_path / "recipe.yaml")
    output = command("baselines", recipe, "teachers", "combined", "mixture.baselines=false")
    assert re.search(r"combined-2: 32 rows of 16 prompts; 1 truncated", output), output
    assert json.loads((tmp_path / "run/baselines/summary.json").read_text())["combined-2"]["num_rows"] == 32
    output = command("train", "sft", recipe, "mixture.baselines=false")
    assert "sft: 32 rows" in output, output
    assert (tmp_path / "run/models/sft/config.json").exists()


def command(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "moaa_ray", *arguments], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
