from dataclasses import replace

import pyarrow as pa
import pytest

from moaa_ray.core.admission import WorkBlock
from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.local_store import LocalStore
from moaa_ray.errors import DataError
from moaa_ray.generation.todo import Step, blocks_for, first_rows, next_steps, restart_turns, seed_rows, unchanged
from moaa_ray.lines.mixture import STAGE
from moaa_ray.types import Failure, Message, Row
from tests.core.rows import aggregator, proposer, row, said, work_of

PASSES = (proposer("a"), proposer("b"), aggregator(("l0.a", "l0.b")))
NAMES = [p.name for p in PASSES]
WORK = work_of(*PASSES)
DOWN = Failure(reason="timeout")


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path / "run"))


@pytest.fixture
def epoch(store):
    return commit.take_epoch(store, {})


def put(store, epoch, part, *rows: Row, key="b") -> str:
    commit.adopt(store, STAGE, epoch)
    records = [schemas.row_record(r, pass_names=NAMES) for r in rows]
    table = pa.Table.from_pylist(records, schema=schemas.work_schema(NAMES))
    return commit.commit_block(store, STAGE, part, epoch.number, key, table)


def statuses_of(store, epoch) -> commit.Statuses:
    return commit.read_statuses(store, commit.committed(store, STAGE, epoch), num_threads=1)


def steps_of(store, epoch, *order, work=WORK) -> dict[str, Step]:
    """What each row needs next, by its id as it stands at the place that the step names."""
    steps = next_steps(store, statuses_of(store, epoch), order, work)
    rows = commit.read_rows(store, steps.refs, batch_rows=1)
    return {table["id"][0].as_py(): step for table, step in zip(rows, steps, strict=True)}


def seed(store, epoch, *, known, modes):
    rows = first_rows(publish.read_batches(store, "prompts", batch_rows=100), modes)
    return seed_rows(store, epoch, WORK, rows, known=known)


def publish_prompts(store, epoch, *conversations, source="s"):
    records = [
        {"id": f"r{i}", "source": source, "messages": [Message(role="user", content=text) for text in texts]}
        for i, texts in enumerate(conversations)
    ]
    table = pa.Table.from_pylist(records, schema=schemas.PROMPTS)
    publish.publish(store, epoch, "prompts", [table], schemas.PROMPTS, 10, {})


def test_a_new_row_begins_at_the_first_pass_of_its_first_turn(store, epoch):
    path = put(store, epoch, "0.0", row("r1"), row("r2"))
    assert steps_of(store, epoch, "r1", "r2") == {
        "r1": Step(ref=(path, 0), turn=0, first_pass=0),
        "r2": Step(ref=(path, 1), turn=0, first_pass=0),
    }


def test_an_open_row_goes_on_after_the_passes_it_has_been_through(store, epoch):
    put(store, epoch, "0.0", row("r1"))
    path = put(store, epoch, "0.2", row("r1", answers={"l0.a": (said("A"),), "l0.b": (said("B"),)}))
    assert steps_of(store, epoch, "r1") == {"r1": Step(ref=(path, 0), turn=0, first_pass=2)}


def test_an_open_row_that_has_been_through_all_passes_begins_with_its_next_turn(store, epoch):
    put(store, epoch, "1.0", row("r1", turn=1))
    path = put(store, epoch, "1.3", row("r1", turn=2))
    assert steps_of(store, epoch, "r1") == {"r1": Step(ref=(path, 0), turn=2, first_pass=0)}


def test_finished_rows_need_nothing(store, epoch):
    rows = [row(status, status=status) for status in ("ok", "quarantined", "dropped")]
    put(store, epoch, "0.3", *rows)
    assert steps_of(store, epoch, "ok", "quarantined", "dropped", "never seen") == {}


def test_a_failed_row_begins_at_the_first_pass_with_something_left_to_ask(store, epoch):
    """r1 lacks all proposals, r2 one of them, r3 its aggregator; r3 keeps its one failed proposal as it is."""
    a, b = (said("A"),), (said("B"),)
    path = put(
        store,
        epoch,
        "0.3",
        row("r1", status="failed", answers={"l0.a": (DOWN,), "l0.b": (DOWN,)}),
        row("r2", status="failed", answers={"l0.a": a, "l0.b": (DOWN,)}),
        row("r3", status="failed", answers={"l0.a": a, "l0.b": b, "aggregate": (DOWN,)}),
    )
    assert steps_of(store, epoch, "r1", "r2", "r3") == {
        f"r{i + 1}": Step(ref=(path, i), turn=0, first_pass=i) for i in range(3)
    }


def test_a_row_that_failed_in_a_later_turn_stays_in_it(store, epoch):
    put(store, epoch, "0.3", row("r1", turn=1))
    path = put(store, epoch, "1.2", row("r1", turn=1, status="failed", answers={"l0.a": (said("A"),), "l0.b": (DOWN,)}))
    assert steps_of(store, epoch, "r1") == {"r1": Step(ref=(path, 0), turn=1, first_pass=1)}


def test_a_failed_row_with_every_answer_goes_through_the_last_pass_again(store, epoch):
    answers = {"l0.a": (said("A"),), "l0.b": (said("B"),), "aggregate": (said("C"),)}
    path = put(store, epoch, "0.3", row("r1", status="failed", answers=answers))
    assert steps_of(store, epoch, "r1") == {"r1": Step(ref=(path, 0), turn=0, first_pass=2)}


def test_steps_come_in_the_order_of_the_prompts(store, epoch):
    put(store, epoch, "0.0", row("r1"), row("r2", status="failed"), row("r3"))
    assert list(steps_of(store, epoch, "r3", "r2", "r1")) == ["r3", "r2", "r1"]


def test_blocks_keep_turns_apart_and_rows_in_order():
    """Turn 0 has rows 0, 2, 4 in blocks of two, turn 1 has rows 1, 3."""
    steps = [Step(ref=("f", i), turn=i % 2, first_pass=0) for i in range(5)]
    assert blocks_for(steps, block_rows=2) == [
        WorkBlock(key="b000000", turn=0, refs=(("f", 0), ("f", 2))),
        WorkBlock(key="b000001", turn=0, refs=(("f", 4),)),
        WorkBlock(key="b000002", turn=1, refs=(("f", 1), ("f", 3))),
    ]


def test_no_steps_are_no_blocks():
    assert blocks_for([], block_rows=2) == []


def test_new_prompts_are_committed_as_open_rows_at_the_beginning(store, epoch):
    publish_prompts(store, epoch, ["Hi"], ["One?", "Two?", "Three?"], ["One?", "Two?"])
    prompts = seed(store, epoch, known=statuses_of(store, epoch), modes={})
    assert prompts.order.to_pylist() == ["r0", "r1", "r2"]
    assert prompts.later_turns == {1: 2, 2: 1}
    assert prompts.rejected.num_rows == 0
    statuses = statuses_of(store, epoch)
    assert statuses.counts()["open"] == 3
    (table,) = commit.read_rows(store, statuses.refs(prompts.order), batch_rows=10)
    rows = [schemas.row_from(record) for record in table.to_pylist()]
    assert rows[1] == replace(row("r1", text="One?"), later=("Two?", "Three?"))
    assert steps_of(store, epoch, *prompts.order.to_pylist())["r2"].first_pass == 0


def test_a_source_whose_last_turn_is_asked_has_no_later_turns(store, epoch):
    publish_prompts(store, epoch, ["One?", "Two?"], source="chats")
    prompts = seed(store, epoch, known=statuses_of(store, epoch), modes={"chats": "last"})
    assert prompts.later_turns == {}


def test_prompts_that_have_a_record_are_not_committed_again(store, epoch):
    publish_prompts(store, epoch, ["Hi"], ["Ho"])
    seed(store, epoch, known=statuses_of(store, epoch), modes={})
    put(store, epoch, "0.3", row("r0", status="ok"))
    later = commit.take_epoch(store, {})
    publish_prompts(store, later, ["Hi"], ["Ho"], ["New"])
    before = set(store.list(f"work/{STAGE}"))
    prompts = seed(store, later, known=statuses_of(store, later), modes={})
    assert prompts.order.to_pylist() == ["r0", "r1", "r2"]
    new = {path for path in store.list(f"work/{STAGE}") if path.endswith(".parquet")} - before
    assert new == {f"work/{STAGE}/0.0/e{later.number}/new-000000000.parquet"}
    statuses = statuses_of(store, later)
    assert statuses.of(["r0", "r1", "r2"]) == ["ok", "open", "open"]
    again = seed(store, later, known=statuses, modes={})
    assert again == prompts
    assert list(steps_of(store, later, *prompts.order.to_pylist())) == ["r1", "r2"]


def test_a_failed_row_that_is_asked_again_from_an_earlier_phase_goes_on_from_there(store, epoch):
    """Its failure stands in the file of the last phase, the new attempt of a later driver in that of the first."""
    put(store, epoch, "0.3", row("r1", status="failed", answers={"l0.a": (DOWN,), "l0.b": (DOWN,)}))
    later = commit.take_epoch(store, {})
    path = put(store, later, "0.2", row("r1", answers={"l0.a": (said("A"),), "l0.b": (said("B"),)}))
    assert steps_of(store, later, "r1") == {"r1": Step(ref=(path, 0), turn=0, first_pass=2)}


def known_prompts(store, epoch, *conversations, modes=None):
    """One session: the prompts are checked against the run's blocks, published, and begun with."""
    files = commit.committed(store, STAGE, epoch)
    records = [
        {"id": row_id, "source": "s", "messages": [Message(role="user", content=text) for text in texts]}
        for row_id, *texts in conversations
    ]
    table = pa.Table.from_pylist(records, schema=schemas.PROMPTS)
    batches = unchanged([table], store, files, modes or {})
    publish.publish(store, epoch, "prompts", batches, schemas.PROMPTS, 10, {})
    known = commit.read_statuses(store, files, num_threads=1)
    return seed(store, epoch, known=known, modes=modes or {})


def test_an_id_keeps_its_messages_as_long_as_the_run_lives(store, epoch):
    known_prompts(store, epoch, ("r0", "Hi"), ("r1", "One?", "Two?"))
    known_prompts(store, commit.take_epoch(store, {}), ("r1", "One?", "Two?"), ("r2", "New"))
    for changed, modes in (
        (("r0", "Ho"), {}),  # it was taken away before
        (("r2", "New", "and more"), {}),
        (("r1", "One?", "Two!"), {}),
        (("r1", "One?", "Two?"), {"s": "last"}),
    ):
        with pytest.raises(DataError, match=rf"prompt '{changed[0]}' of source 's' has other messages than when"):
            known_prompts(store, commit.take_epoch(store, {}), ("r3", "Never begun"), changed, modes=modes)
    last = commit.take_epoch(store, {})
    assert known_prompts(store, last, ("r0", "Hi"), ("r2", "New")).order.to_pylist() == ["r0", "r2"]
    assert "r3" not in set(statuses_of(store, last))


def test_after_a_change_of_the_mixture_rows_under_way_stand_at_the_beginning_of_their_turn(store, epoch):
    """c is new and stands first, b is gone: two passes done and four passes done mean nothing any more."""
    a = {"l0.a": (said("A"),)}
    put(store, epoch, "0.0", row("new"))
    put(store, epoch, "0.2", row("half", answers={**a, "l0.b": (said("B"),)}), row("bad", status="failed"))
    put(store, epoch, "0.3", row("done", status="ok"), row("next", turn=1))
    put(store, epoch, "1.1", row("late", turn=1, answers=a))
    later = commit.take_epoch(store, {})
    work = work_of(proposer("c"), proposer("a"), aggregator(("l0.c", "l0.a")))
    restart_turns(store, later, statuses_of(store, later), work)
    steps = steps_of(store, later, "new", "half", "bad", "done", "next", "late", work=work)
    assert {name: (step.turn, step.first_pass) for name, step in steps.items()} == {
        "new": (0, 0),
        "half": (0, 0),
        "bad": (0, 0),
        "next": (1, 0),
        "late": (1, 0),
    }
    (table,) = commit.read_rows(store, [steps["half"].ref, steps["late"].ref], batch_rows=2)
    assert [schemas.row_from(record).answers for record in table.to_pylist()] == [a, a]
