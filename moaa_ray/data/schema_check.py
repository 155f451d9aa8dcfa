"""Refuses a table of another schema by name."""

import pyarrow as pa

from moaa_ray.data.schemas import schema_name
from moaa_ray.errors import DataError


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
