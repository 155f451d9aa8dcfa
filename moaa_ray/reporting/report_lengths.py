"""How long the texts of a run are, by kind: one pass over the published columns that hold them, and no others."""

from collections.abc import Iterator, Mapping, Sequence
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
    written = ("completion", "finish_reason", "error")
    for table in _batches(store, "sft", messages=("role", "content"), proposals=("proposer", *written)):
        messages, proposals = _fields(table.column("messages")), _fields(table.column("proposals"))
        is_ours, chars = _is(messages["role"], "assistant"), _chars(messages["content"])
        yield "prompts: users' and system messages", chars[~is_ours], None
        yield "syntheses", chars[is_ours], None
        chars, is_cut, is_good = _written(proposals)
        for name in sorted(pc.call_function("unique", [proposals["proposer"]]).to_pylist()):
            wanted = _is(proposals["proposer"], name) & is_good
            yield f"proposals of {name}", chars[wanted], int((is_cut & wanted).sum())
    for table in _batches(store, "candidates", candidates=written):
        chars, is_cut, is_good = _written(_fields(table.column("candidates")))
        yield "candidates", chars[is_good], int((is_cut & is_good).sum())


def _written(fields: Mapping[str, pa.ChunkedArray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of completions: their lengths, whether they were cut off, and whether they are any."""
    return _chars(fields["completion"]), _is(fields["finish_reason"], "length"), _chars(fields["error"]) == 0


def _batches(store: Store, folder: str, **fields: Sequence[str]) -> Iterator[pa.Table]:
    """Batches of a published folder with these fields of its columns of structs; none where it is not published."""
    if is_published(store, folder):
        paths = [f"{column}.list.element.{name}" for column, names in fields.items() for name in names]
        yield from read_batches(store, folder, _BATCH_ROWS, paths)


def _fields(column: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """The fields of all structs in a column of lists, one struct after the other."""
    flat = pc.call_function("list_flatten", [column])
    return {flat.type.field(i).name: flat_field for i, flat_field in enumerate(flat.flatten())}


def _chars(texts: pa.ChunkedArray) -> np.ndarray:
    return _numpy(pc.call_function("utf8_length", [texts]))


def _is(texts: pa.ChunkedArray, text: str) -> np.ndarray:
    return _numpy(pc.call_function("equal", [texts, pa.scalar(text)]))


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Without nulls: an absent text is empty, an absent truth is false."""
    return pc.call_function("coalesce", [column, pa.scalar(0).cast(column.type)]).to_numpy()
