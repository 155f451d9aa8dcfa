from dataclasses import replace

import pyarrow as pa

from moaa_ray.data import schemas
from moaa_ray.generation.blocks import (
    BLOCK_COLUMN,
    in_flight_schema,
    key_of,
    rows_for_passes,
    with_answers,
)
from moaa_ray.types import Failure, Message, Proposal, Row
from tests.core.rows import row, said

PASSES = ("l0.a", "l0.b", "aggregate")
EARLIER = Proposal(
    turn=0,
    layer=0,
    proposer="a",
    model="org/a",
    revision="main",
    completion="Four.",
    finish_reason="stop",
    prompt_tokens=5,
    completion_tokens=2,
    used=True,
    error="",
)
FAILED = Failure(reason="timeout", detail="no answer within 600 s", retryable=True)
ROWS = (
    row("r1", answers={"l0.a": (said("Four.", flags=("role_tokens_plain",)), said("4")), "l0.b": (FAILED,)}),
    row("r2", text="", status="failed", reason="l0.a: timeout", flags=("x", "y"), answers={"l0.a": ()}),
    replace(
        row("r3", turn=1, later=("And 3 + 3?", "Why? \u4e16"), proposals=(EARLIER,)),
        messages=(
            Message(role="system", content="Be kind."),
            Message(role="user", content="2 + 2?"),
            Message(role="assistant", content="4"),
            Message(role="user", content="Sure?"),
        ),
    ),
)


def block_of(*rows: Row, key="b000007") -> pa.Table:
    records = [{**schemas.row_record(r, pass_names=PASSES), BLOCK_COLUMN: key} for r in rows]
    return pa.Table.from_pylist(records, schema=in_flight_schema(PASSES))


def test_what_comes_out_unchanged_goes_back_as_the_same_table():
    block = block_of(*ROWS)
    again = with_answers(block, rows_for_passes(block, PASSES), PASSES)
    assert again.equals(block, check_metadata=True)


def test_rows_have_what_passes_look_at():
    rows = rows_for_passes(block_of(*ROWS), PASSES)
    unseen = {"later": (), "proposals": ()}
    assert rows == [replace(r, **unseen) for r in ROWS]


def test_answers_of_passes_that_are_not_named_are_not_read():
    assert [list(r.answers) for r in rows_for_passes(block_of(*ROWS), ["l0.b"])] == [["l0.b"], [], []]


def test_a_pass_changes_its_own_column_and_the_state_and_nothing_else():
    block = block_of(*ROWS)
    rows = rows_for_passes(block, ["l0.b"])
    answered = [
        replace(rows[0], status="failed", reason="why", flags=("f",), answers={"l0.b": (said("B"),)}),
        *rows[1:],
    ]
    changed = with_answers(block, answered, ["l0.b"])
    assert changed.schema.equals(block.schema, check_metadata=True)
    for name in block.column_names:
        is_same = changed.column(name).equals(block.column(name))
        assert is_same == (name not in ("a.l0.b", "status", "reason", "flags")), name
    first = schemas.row_from(changed.drop_columns([BLOCK_COLUMN]).to_pylist()[0])
    assert first.answers == {"l0.a": ROWS[0].answers["l0.a"], "l0.b": (said("B"),)}
    assert (first.status, first.reason, first.flags) == ("failed", "why", ("f",))


def test_a_pass_that_has_not_answered_stays_null_and_one_asked_for_nothing_stays_empty():
    block = block_of(*ROWS)
    again = with_answers(block, rows_for_passes(block, PASSES), PASSES)
    assert [a is None for a in again.column("a.aggregate").to_pylist()] == [True, True, True]
    assert again.column("a.l0.a").to_pylist()[1:] == [[], None]


def test_the_rows_given_are_left_as_they_are():
    block = block_of(*ROWS)
    before = block.to_pylist()
    with_answers(block, [replace(r, status="dropped") for r in rows_for_passes(block, PASSES)], PASSES)
    assert block.to_pylist() == before


def test_a_block_knows_its_key():
    assert key_of(block_of(*ROWS)) == "b000007"
