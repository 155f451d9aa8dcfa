"""Every Arrow schema that moaa_ray writes, each with a name and a version in its metadata.

A file says which schema it holds under the key b"moaa_ray.schema", as b"<name>/<version>". Columns
that a reader could misunderstand are never guessed: check_schema refuses a file by name. The small
converters at the end turn the dataclasses of types.py into the plain records of these schemas.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from moaa_ray.errors import DataError
from moaa_ray.types import Answer, Completion, Failure, Message, Proposal, Row

SCHEMA_KEY = b"moaa_ray.schema"
ANSWER_PREFIX = "a."

Record = dict[str, Any]

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PROPOSAL = pa.struct(
    [
        ("turn", pa.int32()),
        ("layer", pa.int32()),
        ("proposer", pa.string()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("completion", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("used", pa.bool_()),
        ("error", pa.string()),
    ]
)

ANSWER = pa.struct(
    [
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("flags", pa.list_(pa.string())),
        ("error_reason", pa.string()),  # null: a completion; else a failure
        ("error_detail", pa.string()),
        ("retryable", pa.bool_()),
    ]
)


def _schema(name: str, version: int, fields: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(list(fields), metadata={SCHEMA_KEY: f"{name}/{version}".encode()})


PROMPTS = _schema("prompts", 1, [("id", pa.string()), ("source", pa.string()), ("messages", MESSAGES)])

SFT = _schema(
    "sft",
    1,
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("messages", MESSAGES),
        ("proposals", pa.list_(PROPOSAL)),
        ("flags", pa.list_(pa.string())),
    ],
)

FAILURES = _schema(
    "failures",
    1,
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("messages", MESSAGES),
        ("proposals", pa.list_(PROPOSAL)),
    ],
)


def work_schema(pass_names: Sequence[str]) -> pa.Schema:
    """Rows in flight: the row, and one column of answers per pass."""
    fields = [
        ("id", pa.string()),
        ("source", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("turn", pa.int32()),
        ("messages", MESSAGES),
        ("later", pa.list_(pa.string())),
        ("proposals", pa.list_(PROPOSAL)),
    ]
    return _schema("work", 1, fields + [(ANSWER_PREFIX + name, pa.list_(ANSWER)) for name in pass_names])


def check_schema(found: pa.Table | pa.Schema, expected: pa.Schema, *, where: str = "this table") -> None:
    """Raise DataError unless `found` has the name, the version and the columns of `expected`.

    `where` is what the message calls the table, say its path.
    """
    schema = found if isinstance(found, pa.Schema) else found.schema
    wanted, got = schema_name(expected), schema_name(schema)
    if not got:
        raise DataError(
            f"{where} has no moaa_ray schema in its metadata, where {wanted!r} is expected: another program wrote it; "
            "name it as a prompt source, or point at the folder that moaa_ray wrote"
        )
    if got.split("/")[0] != wanted.split("/")[0]:
        raise DataError(f"{where} holds schema {got!r}, where {wanted!r} is expected; point at the folder of that kind")
    if got != wanted:
        raise DataError(
            f"{where} has schema version {got!r}, this moaa_ray reads {wanted!r}; go on with the version that wrote "
            "it, or start a new run directory"
        )
    if not schema.equals(expected):
        raise DataError(
            f"{where} says it is {got!r} but has other columns: {_difference(schema, expected)}; the file was changed "
            "after it was written, or belongs to a run with other passes: restore it, or start a new run directory"
        )


def schema_name(schema: pa.Schema) -> str:
    """The "<name>/<version>" that a schema declares; empty when it declares none."""
    return (schema.metadata or {}).get(SCHEMA_KEY, b"").decode("utf-8", "replace")


def _difference(found: pa.Schema, expected: pa.Schema) -> str:
    """What a reader has to look at, in words."""
    missing = [name for name in expected.names if name not in found.names]
    extra = [name for name in found.names if name not in expected.names]
    common = [n for n in expected.names if expected.names.count(n) == found.names.count(n) == 1]
    other = [
        f"{n} is {found.field(n).type} instead of {expected.field(n).type}"
        for n in common
        if not found.field(n).equals(expected.field(n))
    ]
    parts = [f"missing {missing}" if missing else "", f"not expected {extra}" if extra else "", *other]
    return "; ".join(part for part in parts if part) or f"the order is {found.names} instead of {expected.names}"


def messages_from(records: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """Messages out of the records of a MESSAGES column."""
    return tuple(Message(role=record["role"], content=record["content"]) for record in records)


def answer_record(answer: Answer) -> Record:
    """The ANSWER struct of a completion or a failure."""
    if isinstance(answer, Failure):
        failed = {"error_reason": answer.reason, "error_detail": answer.detail, "retryable": answer.retryable}
        return {**dict.fromkeys(ANSWER.names), **failed}
    known = {**vars(answer), "flags": list(answer.flags)}
    return {**dict.fromkeys(ANSWER.names), **known}


def answer_from(record: Record) -> Answer:
    """The completion or failure of an ANSWER struct."""
    if record["error_reason"] is not None:
        return Failure(
            reason=record["error_reason"], detail=record["error_detail"] or "", retryable=record["retryable"]
        )
    return Completion(
        text=record["text"],
        finish_reason=record["finish_reason"],
        prompt_tokens=record["prompt_tokens"],
        completion_tokens=record["completion_tokens"],
        flags=tuple(record["flags"] or ()),
    )


def row_record(row: Row, *, pass_names: Sequence[str]) -> Record:
    """The work_schema(pass_names) record of a row; a pass that has not answered is null.

    Answers of other passes must not get lost, so one that has no column is an error of ours.
    """
    unknown = set(row.answers) - set(pass_names)
    assert not unknown, f"row {row.id!r} holds answers of {sorted(unknown)}, which have no column"
    asked = {ANSWER_PREFIX + name: row.answers.get(name) for name in pass_names}
    return {
        "id": row.id,
        "source": row.source,
        "status": row.status,
        "reason": row.reason,
        "flags": list(row.flags),
        "turn": row.turn,
        "messages": [dict(message) for message in row.messages],
        "later": list(row.later),
        "proposals": [dict(vars(proposal)) for proposal in row.proposals],
        **{name: None if a is None else [answer_record(one) for one in a] for name, a in asked.items()},
    }


def row_from(record: Record) -> Row:
    """The row of a work record."""
    answers = {
        name.removeprefix(ANSWER_PREFIX): tuple(answer_from(one) for one in value)
        for name, value in record.items()
        if name.startswith(ANSWER_PREFIX) and value is not None
    }
    return Row(
        id=record["id"],
        source=record["source"],
        messages=messages_from(record["messages"]),
        turn=record["turn"],
        later=tuple(record["later"]),
        answers=answers,
        proposals=tuple(Proposal(**proposal) for proposal in record["proposals"]),
        status=record["status"],
        reason=record["reason"],
        flags=tuple(record["flags"]),
    )
