"""Which prompts the page shows: a spread over margins, and some of those that gave no pair. The same every time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from moaa_ray.data.manifest import open_shard, read_batches
from moaa_ray.reporting.judge_files import JudgeFiles

T = TypeVar("T")
_BATCH_ROWS = 1024
_DROPPED_PART = 5
"""One in so many prompts is one without a pair, as far as there are any."""


@dataclass(frozen=True, kw_only=True)
class PairFacts:
    """A pair without its texts."""

    id: str
    margin: float
    chosen: int
    rejected: int
    chosen_chars: int
    rejected_chars: int


@dataclass(frozen=True, kw_only=True)
class NoPair:
    """A prompt that gave no pair."""

    id: str
    status: str
    reason: str


def pair_facts(files: JudgeFiles) -> list[PairFacts]:
    """All pairs of a judge, in their order."""
    found: list[PairFacts] = []
    names = ("id", "margin", "chosen_index", "rejected_index")
    for table in read_batches(files.pairs, "pairs", _BATCH_ROWS, [*names, "chosen", "rejected"]):
        columns = [table.column(name).to_pylist() for name in names]
        lengths = [_chars(table.column(name)) for name in ("chosen", "rejected")]
        found += [
            PairFacts(id=i, margin=margin, chosen=chosen, rejected=rejected, chosen_chars=a, rejected_chars=b)
            for i, margin, chosen, rejected, a, b in zip(*columns, *lengths, strict=True)
        ]
    return found


def no_pairs(files: JudgeFiles) -> list[NoPair]:
    """All prompts that the judge saw, or should have seen, and that gave no pair."""
    path = f"failures/{files.failures}.parquet"
    if not files.pairs.exists(path):
        return []
    with open_shard(files.pairs, path) as parquet:
        table = parquet.read(columns=["id", "status", "reason"])
    return [NoPair(**record) for record in table.to_pylist()]


def choose_prompts(
    pairs: Sequence[PairFacts], others: Sequence[NoPair], num: int
) -> tuple[list[PairFacts], list[NoPair]]:
    """At most num prompts: pairs by quantiles of the margin, widest first; and, reason by reason, some without."""
    wanted = max(num // _DROPPED_PART, num - len(pairs), 1 if num > 1 else 0)
    dropped = _by_reason(others, min(wanted, num))
    by_margin = sorted(pairs, key=lambda pair: (-pair.margin, pair.id))
    return spread(by_margin, num - len(dropped)), dropped


def spread(things: Sequence[T], num: int) -> list[T]:
    """num of the things (all, where there are fewer), evenly from the first to the last."""
    if len(things) <= num:
        return list(things)
    if num < 2:
        return list(things[len(things) // 2 :][:num])
    return [things[round(i * (len(things) - 1) / (num - 1))] for i in range(num)]


def _by_reason(others: Sequence[NoPair], num: int) -> list[NoPair]:
    """Every reason gets its turn, the frequent ones first, until there are num."""
    groups: dict[str, list[NoPair]] = {}
    for one in others:
        groups.setdefault(one.reason.split(" (")[0], []).append(one)
    order = sorted(groups, key=lambda reason: (-len(groups[reason]), reason))
    counts = dict.fromkeys(order, 0)
    for _ in range(min(num, len(others))):
        reason = min((r for r in order if counts[r] < len(groups[r])), key=lambda r: (counts[r], order.index(r)))
        counts[reason] += 1
    return [one for reason in order for one in spread(groups[reason], counts[reason])]


def _chars(messages: pa.ChunkedArray) -> list[int]:
    """Characters of the first message of every row."""
    first = pc.call_function("list_element", [messages, 0])
    content = pc.call_function("struct_field", [first], pc.StructFieldOptions(indices=["content"]))
    return pc.call_function("utf8_length", [content]).to_pylist()
