"""Every Arrow schema that moaa_ray writes, each with a name and a version in its metadata.

A file says which schema it holds under the key b"moaa_ray.schema", as b"<name>/<version>". Columns
that a reader could misunderstand are never guessed: schema_check.py refuses a file by name. Those of an
evaluation stand in evaluation_schemas.py. The small converters at the end turn the dataclasses of
types.py into the plain records of these schemas.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

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
        ("first_logprobs", pa.list_(pa.struct([("token", pa.string()), ("logprob", pa.float64())]))),  # null: none
        ("model", pa.string()),
        ("revision", pa.string()),
    ]
)


def schema(name: str, version: int, fields: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """A schema that says its name and version."""
    return pa.schema(list(fields), metadata={SCHEMA_KEY: f"{name}/{version}".encode()})


_HEAD = (("id", pa.string()), ("source", pa.string()))
PROMPTS = schema("prompts", 1, [*_HEAD, ("messages", MESSAGES)])

SFT = schema(
    "sft", 1, [*_HEAD, ("messages", MESSAGES), ("proposals", pa.list_(PROPOSAL)), ("flags", pa.list_(pa.string()))]
)

CANDIDATE = pa.struct(
    [
        ("completion", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("error", pa.string()),
    ]
)

CANDIDATES = schema(
    "candidates",
    1,
    [*_HEAD, ("messages", MESSAGES), ("candidates", pa.list_(CANDIDATE)), ("flags", pa.list_(pa.string()))],
)

_VERDICT = [
    ("first", pa.int32()),
    ("second", pa.int32()),
    ("judge", pa.string()),
    ("criteria", pa.list_(pa.string())),
    ("criteria_chosen", pa.bool_()),
    ("verdict", pa.string()),  # first, second; empty: none, see error
    ("error", pa.string()),
]
_TEXTS = [("text", pa.string()), ("assessments", pa.list_(pa.struct([("judge", pa.string()), ("text", pa.string())])))]
JUDGMENT = pa.struct(_VERDICT + _TEXTS)
VERDICT = pa.struct(_VERDICT)
RATING = pa.struct(
    [
        ("candidate", pa.int32()),
        ("aspect", pa.string()),
        ("value", pa.float64()),
        ("text", pa.string()),
        ("error", pa.string()),
    ]
)

JUDGMENTS = schema(
    "judgments",
    2,
    [
        *_HEAD,
        ("messages", MESSAGES),
        ("candidates", pa.list_(CANDIDATE)),
        ("scores", pa.list_(pa.float64())),  # by candidate; null: none
        ("ranking", pa.list_(pa.int32())),  # candidates, best first
        ("top_tie", pa.string()),
        ("bottom_tie", pa.string()),
        ("judgments", pa.list_(JUDGMENT)),
        ("ratings", pa.list_(RATING)),
        ("flags", pa.list_(pa.string())),
    ],
)

PAIRS = schema(
    "pairs",
    1,
    [
        *_HEAD,
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("margin", pa.float64()),
        ("chosen_index", pa.int32()),
        ("rejected_index", pa.int32()),
        ("scores", pa.list_(pa.float64())),
        ("judgments", pa.list_(VERDICT)),
        ("flags", pa.list_(pa.string())),
    ],
)

FAILURES = schema(
    "failures",
    1,
    [
        *_HEAD,
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
        *_HEAD,
        ("status", pa.string()),
        ("reason", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("turn", pa.int32()),
        ("messages", MESSAGES),
        ("later", pa.list_(pa.string())),
        ("proposals", pa.list_(PROPOSAL)),
    ]
    return schema("work", 3, fields + [(ANSWER_PREFIX + name, pa.list_(ANSWER)) for name in pass_names])


def schema_name(declared: pa.Schema) -> str:
    """The "<name>/<version>" that a schema declares; empty when it declares none."""
    return (declared.metadata or {}).get(SCHEMA_KEY, b"").decode("utf-8", "replace")


def messages_from(records: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """Messages out of the records of a MESSAGES column."""
    return tuple(Message(role=record["role"], content=record["content"]) for record in records)


def answer_record(answer: Answer) -> Record:
    """The ANSWER struct of a completion or a failure."""
    if isinstance(answer, Failure):
        failed = {"error_reason": answer.reason, "error_detail": answer.detail, "retryable": answer.retryable}
        return {**dict.fromkeys(ANSWER.names), **failed}
    first = [{"token": token, "logprob": logprob} for token, logprob in answer.first_logprobs] or None
    known = {**vars(answer), "flags": list(answer.flags), "first_logprobs": first}
    return {name: known.get(name) for name in ANSWER.names}


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
        first_logprobs=tuple((one["token"], one["logprob"]) for one in record["first_logprobs"] or ()),
        model=record["model"] or "",
        revision=record["revision"] or "",
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
