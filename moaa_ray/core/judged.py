"""What became of a judged row: scores, ranking, and every judgment behind them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, floor
from random import Random

from moaa_ray.core.candidates import CANDIDATES, distinct_candidates
from moaa_ray.core.judge_parsing import parse_verdict
from moaa_ray.core.judge_rounds import Pair, Round, coins
from moaa_ray.core.passes import NOT_ASKED
from moaa_ray.core.ranking import Ranking, Verdict, bradley_terry, rank, rank_by_score
from moaa_ray.core.scoring import ScorePass
from moaa_ray.types import Answer, Completion, Failure, Row

_NO_VERDICT = Failure(
    reason="no_verdict", detail="answers without [[A]] or [[B]]; raise max_tokens if they are cut off, or change judges"
)
_NO_NUMBER = Failure(
    reason="no_number",
    detail="answers without a number in form; raise max_tokens if they are cut off, or change judges",
)
_COIN = tuple(
    Completion(text=f"[[{side}]]", finish_reason="stop", prompt_tokens=0, completion_tokens=0) for side in "AB"
)


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What a proposer judge said of an ordered pair."""

    judge: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """One verdict on one ordered pair, with what led to it."""

    first: int
    second: int
    judge: str
    criteria: tuple[str, ...]
    criteria_chosen: bool  # False: the fixed ones, as no answer was in form
    verdict: str  # first, second, or empty
    text: str
    error: str  # why there is no verdict
    assessments: tuple[Assessment, ...]


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One number for one candidate, with what led to it."""

    candidate: int
    aspect: str
    value: float | None
    text: str
    error: str


@dataclass(frozen=True, kw_only=True)
class JudgeWork:
    """How a judge's answers are read: the rounds of a pairwise judge, or the pass of a pointwise one."""

    run_seed: int
    max_missing_fraction: float = 0.2
    rounds: tuple[Round, ...] = ()
    scorer: ScorePass | None = None

    def close(self, row: Row) -> Row:
        """The row after judging: ok; or failed, for the next run to ask again, where too much is missing."""
        if row.status != "open":
            return row
        if len(distinct_candidates(row)) < 2:
            return replace(row, status="dropped", reason="identical_candidates")
        results = self.scorer.scores(row) if self.scorer else self.results(row)
        missing = sum(result is None for result in results.values())
        # One pair alone may not be missing, and of ten two may.
        if missing > floor(self.max_missing_fraction * len(results) + 1e-9):
            what = "candidates without a score" if self.scorer else "pairs without a verdict in both orders"
            counts = f"judge: missing_verdicts: {missing} of {len(results)} {what}"
            return replace(row, status="failed", reason=f"{counts} ({self._why_missing(row)})")
        return replace(row, status="ok")

    def reopen(self, row: Row) -> Row:
        """A failed row made ready: what failed or was not in form is asked again, everything else stays."""
        if row.status != "failed":
            return row
        row = replace(row, status="open", reason="")
        if self.scorer is None:
            return _reopened(row, self.rounds)
        known = row.answers.get(self.scorer.name, ())
        kept = tuple(NOT_ASKED if self.scorer.read(answer) is None else answer for answer in known)
        return replace(row, answers={**row.answers, self.scorer.name: kept})

    def results(self, row: Row) -> dict[Pair, float | None]:
        """The result of every match; empty for a pointwise judge."""
        return self.rounds[-1].all_results(row) if self.rounds else {}

    def ranking(self, row: Row) -> Ranking:
        """Candidates best first; one that repeats the text of an earlier one has its score and no place of its own."""
        num = len(row.answers[CANDIDATES])
        drawn = coins(self.run_seed, row, num)
        if self.scorer is not None:
            known = self.scorer.scores(row)
            ranking = rank_by_score([known.get(i) for i in range(num)], coins=drawn)
        elif len(self.rounds) == 1 and not self.rounds[0].is_knockout:
            ranking = rank(num, self.results(row), coins=drawn)
        else:
            ranking = rank_by_score(self._knockout_scores(row, num), coins=drawn)
        return replace(ranking, scores=_with_duplicates(row, ranking.scores))

    def coin_ranking(self, row: Row, rng: Random) -> Ranking:
        """The ranking that this pairwise judge would come to if its models tossed a coin for every verdict."""
        for each in self.rounds:
            num = len(each.orders(row))
            tossed = {decider: tuple(rng.choices(_COIN, k=num)) for decider in each.deciders}
            row = replace(row, answers={**row.answers, **tossed})
        return self.ranking(row)

    def judgments(self, row: Row) -> list[Judgment]:
        """Every verdict, round by round and judge by judge."""
        found = []
        for each in self.rounds:
            chosen, used = each.chosen_criteria(row), each.used_criteria(row)
            for decider in each.deciders:
                for number, verdict in enumerate(each.verdicts(row, decider)):
                    pair = (min(verdict.first, verdict.second), max(verdict.first, verdict.second))
                    one = _judgment(row, each, decider, number, verdict)
                    found.append(replace(one, criteria=used[pair], criteria_chosen=chosen[pair] is not None))
        return found

    def ratings(self, row: Row) -> list[Rating]:
        """Every number of a pointwise judge."""
        if self.scorer is None:
            return []
        answers = row.answers.get(self.scorer.name, ())
        return [
            Rating(
                candidate=i,
                aspect=aspect,
                value=self.scorer.read(answer),
                text=answer.text if isinstance(answer, Completion) else "",
                error=answer.reason if isinstance(answer, Failure) else "",
            )
            for (i, aspect), answer in zip(self.scorer.slots(row), answers, strict=False)
        ]

    def _why_missing(self, row: Row) -> str:
        """The reasons of answers that say nothing, counted, and what is known of the first of the commonest."""
        said: list[Failure] = []
        if self.scorer is not None:
            answers = row.answers.get(self.scorer.name, ())
            said = [_failure(answer, _NO_NUMBER) for answer in answers if self.scorer.read(answer) is None]
        for each in self.rounds:
            answers = [answer for decider in each.deciders for answer in row.answers.get(decider, ())]
            said += [_failure(answer, _NO_VERDICT) for answer in answers if parse_verdict(answer) is None]
        counted = Counter(failure.reason for failure in said).most_common(3)
        told = ", ".join(f"{reason} {count}" for reason, count in counted)
        detail = next((failure.detail for failure in said if failure.reason == counted[0][0]), "")
        return f"{told}: {detail}" if detail else told

    def _knockout_scores(self, row: Row, num: int) -> list[float | None]:
        """Mean chance of winning against the others, by Bradley-Terry with a weak prior over the matches played."""
        there = sorted(distinct_candidates(row))
        place = {i: n for n, i in enumerate(there)}
        results = {(place[i], place[j]): result for (i, j), result in self.results(row).items()}
        strengths = bradley_terry(len(there), results)
        scores: list[float | None] = [None] * num
        for i in there:
            chances = [1 / (1 + exp(strengths[place[j]] - strengths[place[i]])) for j in there if j != i]
            scores[i] = round(sum(chances) / len(chances), 9)  # equal strengths are equal but for the iteration
        return scores


def _with_duplicates(row: Row, scores: Sequence[float | None]) -> tuple[float | None, ...]:
    first = {text: i for i, text in distinct_candidates(row).items()}
    texts = [answer.text if isinstance(answer, Completion) else None for answer in row.answers[CANDIDATES]]
    return tuple(None if text is None else scores[first[text]] for text in texts)


def _judgment(row: Row, each: Round, decider: str, number: int, verdict: Verdict) -> Judgment:
    """One verdict with its texts; criteria are not filled in."""
    answer = _at(row, decider, number)
    assessed = [(name, _at(row, name, number)) for name in each.assessments]
    return Judgment(
        first=verdict.first,
        second=verdict.second,
        judge=decider,
        criteria=(),
        criteria_chosen=False,
        verdict=verdict.winner or "",
        text=answer.text if isinstance(answer, Completion) else "",
        error="" if verdict.winner else _failure(answer, _NO_VERDICT).reason,
        assessments=tuple(Assessment(judge=name, text=a.text) for name, a in assessed if isinstance(a, Completion)),
    )


def _reopened(row: Row, rounds: Sequence[Round]) -> Row:
    """The row with what is to be asked again forgotten.

    What verdicts that stand were based on stays as it was, failures in it too: criteria and assessments must not change
    behind them. The rounds after one that is asked again are forgotten, as others may meet in them.
    """
    for number, each in enumerate(rounds):
        answers = dict(row.answers)
        undecided = {
            n
            for n in range(len(each.orders(row)))
            for name in each.deciders
            if parse_verdict(_at(row, name, n)) is None
        }
        for name in each.deciders:
            answers[name] = tuple(a if parse_verdict(a) else NOT_ASKED for a in answers.get(name, ()))
        for name in each.assessments:
            answers[name] = tuple(_again(a) if n in undecided else a for n, a in enumerate(answers.get(name, ())))
        said = [a for name in (*each.assessments, *each.deciders) for a in answers[name] if isinstance(a, Completion)]
        for name in each.criteria if not said else ():
            answers[name] = tuple(map(_again, answers.get(name, ())))
        row = replace(row, answers=answers)
        if undecided:
            gone = {name for later in rounds[number + 1 :] for name in later.passes}
            return replace(row, answers={name: given for name, given in answers.items() if name not in gone})
    return row


def _again(answer: Answer) -> Answer:
    return NOT_ASKED if isinstance(answer, Failure) else answer


def _at(row: Row, name: str, number: int) -> Answer:
    answers = row.answers.get(name, ())
    return answers[number] if number < len(answers) else NOT_ASKED


def _failure(answer: Answer, otherwise: Failure) -> Failure:
    return answer if isinstance(answer, Failure) else otherwise
