"""A row of judgments read for people: who met whom, what became of it, and why the pair is what it is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from moaa_ray.core.ranking import Verdict, pair_results
from moaa_ray.data.schemas import Record

Pair = tuple[int, int]
_PASS = re.compile(r"(decide|assess)\.(?P<judge>.*?)(\.r(?P<round>\d+))?")
_TIES = {
    "head_to_head": "by the pairs among equal scores",
    "sonneborn_berger": "by the strength of the beaten among equal scores (Sonneborn-Berger)",
    "coin": "by a coin, as everything else was equal",
}
_RULES = {
    "identical_candidates": "the texts at the top and at the bottom are the same",
    "unranked": "fewer than two candidates have a score",
    "equal_scores": "the best and the worst have the same score",
    "min_margin": "the best and the worst score are too close",
    "length_ratio": "the chosen text would be too long beside the rejected one",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One ordered question to one judge, and its answer."""

    judge: str
    first: int
    second: int
    winner: int | None
    error: str
    text: str
    assessments: Sequence[tuple[str, str]]
    """(proposer judge, what it said)."""

    @property
    def letter(self) -> str:
        """What the judge said: A is the candidate shown first."""
        return "-" if self.winner is None else "A" if self.winner == self.first else "B"


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """A pair of candidates in a round, in both orders."""

    pair: Pair
    round: int
    criteria: Sequence[str]
    is_fallback: bool
    """The criteria are the fixed ones, as nobody chose any in form."""
    questions: Sequence[Question]
    result: float | None
    """For the first of the pair: 1 won, 0 lost, 0.5 the orders disagree, None an order is missing."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """A candidate's pairs."""

    won: int
    lost: int
    tied: int
    missing: int


def meetings(judgments: Sequence[Record]) -> list[Meeting]:
    """Every meeting, round by round, pair by pair."""
    by_meeting: dict[tuple[int, Pair], list[Record]] = {}
    for one in judgments:
        pair = (min(one["first"], one["second"]), max(one["first"], one["second"]))
        by_meeting.setdefault((_round(one["judge"]), pair), []).append(one)
    return [_meeting(number, pair, records) for (number, pair), records in sorted(by_meeting.items())]


def results_of(met: Sequence[Meeting]) -> dict[Pair, float | None]:
    """The result of every pair for its first candidate; where a pair met twice, the later one."""
    return {each.pair: each.result for each in met}


def result_for(results: Mapping[Pair, float | None], one: int, other: int) -> float | None:
    """The result of a pair for `one`; None where it has none or they never met."""
    known = results.get((min(one, other), max(one, other)))
    return None if known is None else known if one < other else 1 - known


def tally(results: Mapping[Pair, float | None], candidate: int) -> Tally:
    """A candidate's pairs, counted."""
    own = [result_for(results, candidate, i + j - candidate) for i, j in results if candidate in (i, j)]
    return Tally(won=own.count(1.0), lost=own.count(0.0), tied=own.count(0.5), missing=own.count(None))


def majority(results: Sequence[float | None]) -> float | None:
    """What several judges make of a pair together; those that saw a tie do not count, and an even split is one."""
    counted = [result for result in results if result is not None]
    if not counted:
        return None
    middle = mean(counted)
    return 0.5 if middle == 0.5 else float(middle > 0.5)


def why_pair(record: Record, chosen: int, rejected: int) -> str:
    """One sentence on why one candidate was chosen over another, from a JUDGMENTS record."""
    results = results_of(meetings(record["judgments"]))
    if not results:
        num = len(record["ranking"])
        why = f"Of {num} scores candidate {chosen}'s is the highest ({score_text(record['scores'][chosen])})"
        why += f" and candidate {rejected}'s the lowest ({score_text(record['scores'][rejected])})"
    else:
        why = f"Candidate {chosen} {_record(results, chosen)}, candidate {rejected} {_record(results, rejected)}; "
        why += _direct(results, chosen, rejected)
    for place, tie in (("first", record["top_tie"]), ("last", record["bottom_tie"])):
        why += f"; {place} place {_TIES[tie]}" if tie in _TIES else ""
    return f"{why}."


def why_dropped(reason: str, record: Record | None = None) -> str:
    """One sentence on why a prompt gave no pair; its JUDGMENTS record, where it was judged, adds the two ends."""
    told = f"{_RULES[reason]} ({reason})" if reason in _RULES else reason
    if record is not None and len(record["ranking"]) > 1:
        ends = [(record["ranking"][i], record["scores"][record["ranking"][i]]) for i in (0, -1)]
        told += "; best is candidate {} with {}, worst candidate {} with {}".format(
            *(part for index, score in ends for part in (index, score_text(score)))
        )
    return f"No pair: {told}."


def score_text(score: float | None) -> str:
    """A score with as many digits as it needs."""
    return "-" if score is None else f"{score:.4g}"


def judge_name(label: str) -> str:
    """A judge as the recipe calls it."""
    found = _PASS.fullmatch(label)
    return found["judge"] if found else label


def _round(label: str) -> int:
    found = _PASS.fullmatch(label)
    return int(found["round"] or 1) if found else 1


def _meeting(number: int, pair: Pair, records: Sequence[Record]) -> Meeting:
    by_judge: dict[str, list[Verdict]] = {}
    for one in records:
        verdict = Verdict(first=one["first"], second=one["second"], winner=one["verdict"] or None)
        by_judge.setdefault(one["judge"], []).append(verdict)
    questions = [
        Question(
            judge=judge_name(one["judge"]),
            first=one["first"],
            second=one["second"],
            winner={"first": one["first"], "second": one["second"]}.get(one["verdict"]),
            error=one["error"] or "",
            text=one["text"] or "",
            assessments=[(judge_name(said["judge"]), said["text"]) for said in one["assessments"] or ()],
        )
        for one in sorted(records, key=lambda one: (one["judge"], one["first"]))
    ]
    return Meeting(
        pair=pair,
        round=number,
        criteria=records[0]["criteria"] or (),
        is_fallback=bool(records[0]["criteria"]) and not records[0]["criteria_chosen"],
        questions=questions,
        result=majority([pair_results(verdicts)[pair] for verdicts in by_judge.values()]),
    )


def _record(results: Mapping[Pair, float | None], candidate: int) -> str:
    counts = tally(results, candidate)
    text = f"won {counts.won} of {counts.won + counts.lost + counts.tied}"
    text += f" with {counts.tied} tied" if counts.tied else ""
    return text + (f" and {counts.missing} without a verdict in both orders" if counts.missing else "")


def _direct(results: Mapping[Pair, float | None], chosen: int, rejected: int) -> str:
    if (min(chosen, rejected), max(chosen, rejected)) not in results:
        return "the two never met"
    told = {
        1.0: f"face to face {chosen} won in both orders",
        0.0: f"face to face {rejected} won in both orders, against the ranking",
        0.5: "face to face the two orders disagreed",
    }
    result = result_for(results, chosen, rejected)
    return "face to face a verdict is missing" if result is None else told[result]
