"""What became of a judged row: scores, ranking, and every judgment behind them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, floor

from moaa_ray.core.candidates import CANDIDATES, distinct_candidates
from moaa_ray.core.judge_rounds import Pair, Round, coins
from moaa_ray.core.ranking import Ranking, bradley_terry, rank, rank_by_score
from moaa_ray.core.scoring import ScorePass
from moaa_ray.types import Completion, Failure, Row


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
    assessments: tuple[str, ...]


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
        missing, total, reasons = self._missing(row)
        # One pair alone may not be missing, and of ten two may.
        if missing > floor(self.max_missing_fraction * total + 1e-9):
            what = "pairs without a verdict in both orders" if self.rounds else "candidates without a score"
            told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(3))
            return replace(
                row, status="failed", reason=f"judge: missing_verdicts: {missing} of {total} {what} ({told})"
            )
        return replace(row, status="ok")

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

    def judgments(self, row: Row) -> list[Judgment]:
        """Every verdict, round by round and judge by judge."""
        found = []
        for each in self.rounds:
            chosen = each.chosen_criteria(row) if each.criteria else {}
            for decider in each.deciders:
                found += [_judgment(row, each, decider, n, order, chosen) for n, order in enumerate(each.orders(row))]
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

    def _missing(self, row: Row) -> tuple[int, int, Counter[str]]:
        """How many pairs (candidates) have no result, of how many, and why."""
        if self.scorer is not None:
            scores = self.scorer.scores(row)
            reasons = Counter(r.error or "no_number" for r in self.ratings(row) if r.value is None)
            return sum(score is None for score in scores.values()), len(scores), reasons
        results = self.results(row)
        reasons = Counter(j.error for j in self.judgments(row) if j.error)
        return sum(result is None for result in results.values()), len(results), reasons

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


def _judgment(row: Row, each: Round, decider: str, number: int, order: Pair, chosen: dict) -> Judgment:
    verdict = each.verdicts(row, decider)[number]
    answers = row.answers.get(decider, ())
    answer = answers[number] if number < len(answers) else Failure(reason="not_asked")
    given = [row.answers.get(name, ()) for name in each.assessments]
    assessed = [a[number] for a in given if number < len(a)]
    pair = (min(order), max(order))
    return Judgment(
        first=order[0],
        second=order[1],
        judge=decider,
        criteria=each.criteria_for(row, order),
        criteria_chosen=chosen.get(pair) is not None,
        verdict=verdict.winner or "",
        text=answer.text if isinstance(answer, Completion) else "",
        error="" if verdict.winner else answer.reason if isinstance(answer, Failure) else "no_verdict",
        assessments=tuple(a.text for a in assessed if isinstance(a, Completion)),
    )
