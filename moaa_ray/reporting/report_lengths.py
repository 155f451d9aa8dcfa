"""How long the texts of a run are, by kind: one pass over the published columns that hold them, and no others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from moaa_ray.data.publish import read_batches
from moaa_ray.data.store import Store
from moaa_ray.reporting import pictures
from moaa_ray.reporting.lookup import is_published

_BATCH_ROWS = 4096
_BINS_A_POWER = 8
_ITEM = "list.element"
TITLES = ("kind of text", "texts", "5 %", "median", "95 %", "longest", "cut off", "histogram")


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Texts of one kind."""

    kind: str
    chars: np.ndarray
    """Characters of every text."""
    cut_off: float | None
    """The part that ended at its longest allowed; None where that is not written down."""


@dataclass(frozen=True, kw_only=True)
class LengthRow:
    """A kind of text for the table: cells as in TITLES, but for the last, which is the picture."""

    cells: Sequence[str]
    picture: Markup


def lengths_of(store: Store) -> list[Lengths]:
    """All kinds of texts in a run directory's sft/ and candidates/."""
    found: dict[str, list[tuple[np.ndarray, int | None]]] = {}
    for kind, chars, num_cut in _texts(store):
        found.setdefault(kind, []).append((chars, num_cut))
    lengths = []
    for kind, parts in found.items():
        chars = np.concatenate([part for part, _ in parts])
        counts = [num_cut for _, num_cut in parts if num_cut is not None]
        if len(chars):
            lengths.append(Lengths(kind=kind, chars=chars, cut_off=sum(counts) / len(chars) if counts else None))
    return lengths


def length_rows(lengths: Sequence[Lengths]) -> tuple[list[LengthRow], str]:
    """The rows of the table, whose histograms share one logarithmic axis, and that axis in words."""
    if not lengths:
        return [], ""
    low = min(int(np.log10(max(1, one.chars.min()))) for one in lengths)
    high = max(int(np.ceil(np.log10(max(10, one.chars.max())))) for one in lengths)
    edges = np.logspace(low, high, _BINS_A_POWER * (high - low) + 1)
    return [_row(one, edges) for one in lengths], f"from {10**low:,} to {10**high:,} characters, logarithmic"


def _row(one: Lengths, edges: np.ndarray) -> LengthRow:
    five, middle, most = np.percentile(one.chars, [5, 50, 95])
    counts, _ = np.histogram(np.clip(one.chars, edges[0], edges[-1]), edges)
    numbers = [f"{value:,.0f}" for value in (len(one.chars), five, middle, most, one.chars.max())]
    cut_off = "-" if one.cut_off is None else f"{one.cut_off:.1%}"
    told = f"Histogram of {len(one.chars):,} lengths, {one.kind}: median {middle:,.0f}, 90 % from {five:,.0f} to "
    return LengthRow(
        cells=[one.kind, *numbers, cut_off], picture=pictures.small_histogram(counts.tolist(), f"{told}{most:,.0f}")
    )


def _texts(store: Store) -> Iterator[tuple[str, np.ndarray, int | None]]:
    """(kind, lengths, how many of them were cut off) of every batch."""
    for table in _batches(store, "sft", ["messages", "proposals"], ("role", "content"), _PROPOSED):
        messages = table.column("messages")
        is_ours = pc.call_function("equal", [_field(messages, "role"), pa.scalar("assistant")])
        chars = _chars(_field(messages, "content"))
        yield "prompts: users' and system messages", chars[~_numpy(is_ours)], None
        yield "syntheses", chars[_numpy(is_ours)], None
        yield from _proposals(table.column("proposals"))
    for table in _batches(store, "candidates", ["candidates"], ("completion", "finish_reason", "error")):
        candidates = table.column("candidates")
        is_good = _is_empty(_field(candidates, "error"))
        yield "candidates", *_counted(candidates, is_good)


_PROPOSED = ("proposer", "completion", "finish_reason", "error")


def _proposals(column: pa.ChunkedArray) -> Iterator[tuple[str, np.ndarray, int]]:
    names = _field(column, "proposer")
    is_good = _is_empty(_field(column, "error"))
    for name in sorted(pc.call_function("unique", [names]).to_pylist()):
        is_its = _numpy(pc.call_function("equal", [names, pa.scalar(name)]))
        yield f"proposals of {name}", *_counted(column, is_its & is_good)


def _counted(column: pa.ChunkedArray, wanted: np.ndarray) -> tuple[np.ndarray, int]:
    is_cut = _numpy(pc.call_function("equal", [_field(column, "finish_reason"), pa.scalar("length")]))
    return _chars(_field(column, "completion"))[wanted], int((is_cut & wanted).sum())


def _batches(store: Store, folder: str, columns: Sequence[str], *fields: Sequence[str]) -> Iterator[pa.Table]:
    """Batches of a published folder with some fields of some columns of structs; none where it is not published."""
    if is_published(store, folder):
        paths = [f"{column}.{_ITEM}.{field}" for column, of in zip(columns, fields, strict=True) for field in of]
        yield from read_batches(store, folder, _BATCH_ROWS, paths)


def _field(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A field of all structs in a column of lists, one after the other."""
    flat = pc.call_function("list_flatten", [column])
    place = flat.type.get_field_index(name)
    return pc.call_function("struct_field", [flat], pc.StructFieldOptions(indices=[place]))


def _chars(texts: pa.ChunkedArray) -> np.ndarray:
    return _numpy(pc.call_function("utf8_length", [texts]))


def _is_empty(texts: pa.ChunkedArray) -> np.ndarray:
    return _chars(texts) == 0


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Without nulls: an absent text is empty, an absent truth is false."""
    return pc.call_function("coalesce", [column, pa.scalar(0).cast(column.type)]).to_numpy()
