"""What the page says of one prompt, as plain values that the template lays out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moaa_ray.data.schemas import Record
from moaa_ray.reporting.choosing import NoPair, PairFacts
from moaa_ray.reporting.comparisons import (
    Meeting,
    Pair,
    Tally,
    meetings,
    result_for,
    results_of,
    score_text,
    tally,
    why_dropped,
    why_pair,
)

_WORDS = {1.0: "win", 0.0: "loss", 0.5: "tie", None: "missing"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One candidate with its place in the ranking."""

    index: int
    role: str
    """chosen, rejected or empty."""
    place: int | None
    score: str
    tally: Tally
    completion: str
    num_tokens: int | None
    finish_reason: str
    error: str
    same_as: int | None
    """An earlier candidate with the same text."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What became of one candidate, by row, against another, by column."""

    kind: str
    """win, loss, tie, missing, never or self."""
    orders: str
    """Whom the judges named with the row's candidate first, and with it second."""
    told: str
    """The same in words."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One prompt."""

    id: str
    source: str
    outcome: str
    is_pair: bool
    why: str
    detail: str
    messages: Sequence[Mapping[str, str]]
    candidates: Sequence[Candidate]
    matrix: Sequence[Sequence[Cell]]
    meetings: Sequence[Meeting]
    ratings: Sequence[Record]
    flags: Sequence[str]

    @property
    def ranked(self) -> list[Candidate]:
        """The candidates best first; those without a place come last."""
        return sorted(self.candidates, key=lambda one: (one.place is None, one.place, one.index))

    @property
    def chosen(self) -> Candidate | None:
        """The candidate chosen, where there is a pair."""
        return next((one for one in self.candidates if one.role == "chosen"), None)

    @property
    def rejected(self) -> Candidate | None:
        """The candidate rejected, where there is a pair."""
        return next((one for one in self.candidates if one.role == "rejected"), None)


def pair_card(pair: PairFacts, record: Record) -> Card:
    """A prompt that gave a pair, of its JUDGMENTS record."""
    roles = {pair.chosen: "chosen", pair.rejected: "rejected"}
    why = why_pair(record, pair.chosen, pair.rejected)
    return _judged_card(record, roles, outcome=f"margin {score_text(pair.margin)}", is_pair=True, why=why)


def no_pair_card(one: NoPair, failure: Record, record: Record | None) -> Card:
    """A prompt without a pair; its FAILURES record, and its JUDGMENTS record where it was judged, if too seldom."""
    if record is not None:
        why = why_dropped(one.reason, record) if one.status == "dropped" else f"Not ranked: {failure['detail']}."
        return _judged_card(record, {}, outcome=one.reason, is_pair=False, why=why)
    why = why_dropped(one.reason) if one.status == "dropped" else f"Not judged: {one.status}."
    return Card(
        id=one.id,
        source=failure["source"],
        outcome=one.reason,
        is_pair=False,
        why=why,
        detail=failure["detail"] if failure["detail"] != one.reason else "",
        messages=failure["messages"],
        candidates=(),
        matrix=(),
        meetings=(),
        ratings=(),
        flags=(),
    )


def candidates_of(record: Record, roles: Mapping[int, str]) -> list[Candidate]:
    """The candidates of a JUDGMENTS record by index."""
    places = {index: place for place, index in enumerate(record["ranking"], 1)}
    results = results_of(meetings(record["judgments"]))
    first: dict[str, int] = {}
    return [
        Candidate(
            index=i,
            role=roles.get(i, ""),
            place=places.get(i),
            score=score_text(record["scores"][i]),
            tally=tally(results, i),
            completion=one["completion"],
            num_tokens=one["completion_tokens"],
            finish_reason=one["finish_reason"],
            error=one["error"],
            same_as=None if one["error"] or first.setdefault(one["completion"], i) == i else first[one["completion"]],
        )
        for i, one in enumerate(record["candidates"])
    ]


def matrix_of(met: Sequence[Meeting], num: int) -> list[list[Cell]]:
    """Candidates against candidates; empty where there were no comparisons."""
    if not met:
        return []
    results, by_pair = results_of(met), {each.pair: each for each in met}
    return [[_cell(i, j, results, by_pair) for j in range(num)] for i in range(num)]


def _judged_card(record: Record, roles: Mapping[int, str], *, outcome: str, is_pair: bool, why: str) -> Card:
    met = meetings(record["judgments"])
    return Card(
        id=record["id"],
        source=record["source"],
        outcome=outcome,
        is_pair=is_pair,
        why=why,
        detail="",
        messages=record["messages"],
        candidates=candidates_of(record, roles),
        matrix=matrix_of(met, len(record["candidates"])),
        meetings=met,
        ratings=record["ratings"],
        flags=record["flags"],
    )


def _cell(i: int, j: int, results: Mapping[Pair, float | None], by_pair: Mapping[Pair, Meeting]) -> Cell:
    if i == j:
        return Cell(kind="self", orders="", told="itself")
    pair = (min(i, j), max(i, j))
    if pair not in by_pair:
        return Cell(kind="never", orders="", told=f"{i} and {j} never met")
    questions = by_pair[pair].questions
    ours = [q for q in questions if q.first == i]
    theirs = [q for q in questions if q.first == j]
    named = [", ".join("-" if q.winner is None else str(q.winner) for q in side) or "-" for side in (ours, theirs)]
    told = f"{i} against {j}: with {i} shown first the verdict is {named[0]}, with {j} shown first {named[1]}"
    letters = {q.letter for q in questions}
    if len(letters) == 1 and letters <= {"A", "B"}:
        told += f"; both times the one shown {'first' if letters == {'A'} else 'second'}"
    return Cell(kind=_WORDS[result_for(results, i, j)], orders=" | ".join(named), told=f"{told}.")
