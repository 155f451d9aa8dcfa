"""Some rows of a run for report.html, drawn by a seed: prompt, proposals, synthesis, pair, or why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from moaa_ray.core.seeds import seed_for
from moaa_ray.data.manifest import open_shard, read_batches
from moaa_ray.data.schemas import Record
from moaa_ray.data.store import Store
from moaa_ray.reporting.comparisons import score_text
from moaa_ray.reporting.lookup import find_in_file, find_rows, is_published

_BATCH_ROWS = 8192
_FAILED_PART = 6
"""At most one in so many rows is one that has failed or was dropped."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text beside others."""

    title: str
    about: str
    role: str
    """chosen, rejected or empty."""
    content: str


@dataclass(frozen=True, kw_only=True)
class RowCard:
    """One row."""

    id: str
    source: str
    outcome: str
    """In a few words."""
    is_kept: bool
    """It stands in the data, not among the failures."""
    detail: str
    messages: Sequence[Record]
    """What was asked; in a conversation of several turns also what was answered before."""
    texts: Sequence[Text]


def row_cards(store: Store, num: int, *, seed: int) -> list[RowCard]:
    """At most num rows of a run directory, the same every time: of its pairs, of its syntheses, and of its failures."""
    failures = sorted(path for path in store.list("failures") if path.endswith(".parquet"))
    failed = {path: _ids_in_file(store, path) for path in failures}
    num_failed = min(num // _FAILED_PART, sum(map(len, failed.values())))
    pairs, synthesised = (_ids(store, folder) for folder in ("pairs", "sft"))
    half = (num - num_failed) // 2 if pairs and synthesised else num - num_failed
    drawn_pairs = _drawn(pairs, half, seed, "pairs")
    drawn = _drawn(synthesised, num - num_failed - len(drawn_pairs), seed, "sft")
    ids = list(dict.fromkeys([*drawn, *drawn_pairs]))
    syntheses, judged = (_records(store, folder, ids) for folder in ("sft", "pairs"))
    cards = [_card(syntheses.get(row_id), judged.get(row_id)) for row_id in ids]
    for path, known in failed.items():
        wanted = _drawn(known, -(-num_failed // len(failed)), seed, path)
        stage = path.rsplit("/", 1)[-1].removesuffix(".parquet")
        cards += [_failed_card(stage, found.record) for found in find_in_file(store, path, wanted)]
    return cards[:num]


def _card(synthesis: Record | None, pair: Record | None) -> RowCard:
    """A row that stands in sft/, in pairs/ or in both."""
    texts: list[Text] = []
    messages: Sequence[Record] = []
    outcome = []
    if synthesis is not None:
        *messages, last = synthesis["messages"]
        outcome.append("synthesis")
        texts.append(Text(title="Synthesis", about=_chars(last["content"]), role="", content=last["content"]))
        texts += _proposed(synthesis["proposals"], turn=max((one["turn"] for one in synthesis["proposals"]), default=0))
    if pair is not None:
        messages = messages or pair["prompt"]
        outcome.append(f"pair, margin {score_text(pair['margin'])}")
        for role in ("chosen", "rejected"):
            content, score = pair[role][-1]["content"], pair["scores"][pair[f"{role}_index"]]
            about = f"{_chars(content)}, score {score_text(score)}"
            texts.append(Text(title=role.capitalize(), about=about, role=role, content=content))
    row = synthesis or pair or {}
    return RowCard(
        id=row["id"],
        source=row["source"],
        outcome=", ".join(outcome),
        is_kept=True,
        detail=f"flags: {', '.join(row['flags'])}" if row["flags"] else "",
        messages=messages,
        texts=texts,
    )


def _failed_card(stage: str, failure: Record) -> RowCard:
    return RowCard(
        id=failure["id"],
        source=failure["source"],
        outcome=f"{stage}: {failure['status']}",
        is_kept=False,
        detail=failure["detail"] or failure["reason"],
        messages=failure["messages"],
        texts=_proposed(failure["proposals"], turn=max((one["turn"] for one in failure["proposals"]), default=0)),
    )


def _proposed(proposals: Sequence[Record], *, turn: int) -> list[Text]:
    return [
        Text(
            title=f"Proposal of {one['proposer']}" + (f", layer {one['layer']}" if one["layer"] else ""),
            about=one["error"] or f"{_chars(one['completion'])}, {one['model']}",
            role="",
            content=one["completion"] or "",
        )
        for one in proposals
        if one["turn"] == turn
    ]


def _chars(text: str) -> str:
    return f"{len(text):,} characters"


def _ids(store: Store, folder: str) -> list[str]:
    tables = read_batches(store, folder, _BATCH_ROWS, ["id"]) if is_published(store, folder) else ()
    return [row_id for table in tables for row_id in table.column("id").to_pylist()]


def _ids_in_file(store: Store, path: str) -> list[str]:
    with open_shard(store, path) as parquet:
        return parquet.read(columns=["id"]).column("id").to_pylist()


def _drawn(ids: Sequence[str], num: int, seed: int, name: str) -> list[str]:
    return list(ids) if len(ids) <= num else Random(seed_for(seed, "report", name)).sample(ids, num)


def _records(store: Store, folder: str, ids: Sequence[str]) -> dict[str, Record]:
    found = find_rows(store, folder, ids) if is_published(store, folder) and ids else ()
    return {each.record["id"]: each.record for each in found}
