"""Blocks of rows between Arrow and the rows of types.py, touching only the columns a pass needs.

A block in flight has the columns of schemas.work_schema and one more, BLOCK_COLUMN, with its key.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from moaa_ray.data import schemas
from moaa_ray.types import Row

BLOCK_COLUMN = "block"
_READ_BY_PASSES = ("id", "source", "status", "reason", "flags", "turn", "messages")


def in_flight_schema(pass_names: Sequence[str]) -> pa.Schema:
    """The schema of a block between two pools."""
    return schemas.work_schema(pass_names).append(pa.field(BLOCK_COLUMN, pa.string()))


def key_of(block: pa.Table) -> str:
    """The block's key."""
    return block.column(BLOCK_COLUMN)[0].as_py()


def rows_for_passes(block: pa.Table, pass_names: Sequence[str]) -> list[Row]:
    """Rows with what passes look at: the conversation, the state, and the answers of the passes named."""
    columns = {name: block.column(name).to_pylist() for name in _READ_BY_PASSES}
    answers = {name: block.column(schemas.ANSWER_PREFIX + name).to_pylist() for name in pass_names}
    return [
        Row(
            id=columns["id"][i],
            source=columns["source"][i],
            messages=schemas.messages_from(columns["messages"][i]),
            turn=columns["turn"][i],
            status=columns["status"][i],
            reason=columns["reason"][i],
            flags=tuple(columns["flags"][i]),
            answers={
                name: tuple(schemas.answer_from(record) for record in values[i])
                for name, values in answers.items()
                if values[i] is not None
            },
        )
        for i in range(block.num_rows)
    ]


def with_answers(block: pa.Table, rows: Sequence[Row], pass_names: Sequence[str]) -> pa.Table:
    """The block with the rows' state and their answers to the passes named; all other columns as they are."""
    new: dict[str, list[Any]] = {
        "status": [row.status for row in rows],
        "reason": [row.reason for row in rows],
        "flags": [list(row.flags) for row in rows],
    }
    for name in pass_names:
        new[schemas.ANSWER_PREFIX + name] = [
            None if (answers := row.answers.get(name)) is None else [schemas.answer_record(a) for a in answers]
            for row in rows
        ]
    for name, values in new.items():
        i = block.schema.get_field_index(name)
        field = block.schema.field(i)
        block = block.set_column(i, field, pa.array(values, field.type))
    return block
