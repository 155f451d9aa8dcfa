"""From a judge's verdicts on ordered pairs of candidates to one chosen and one rejected candidate.

MoAA (arXiv 2505.03059, sections 3.2 and 4.1) judges every unordered pair twice, with the order switched, and takes the
top and the bottom of the ranking. How verdicts become a ranking is not stated there; the rules here are ours. Reading
a judge's text is not done here, and neither is counting what the judge does over many prompts (judge_stats).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import log
from typing import Literal

Winner = Literal["first", "second"]
TieBreak = Literal["", "head_to_head", "sonneborn_berger", "coin"]
DropRule = Literal["identical_candidates", "unranked", "equal_scores", "min_margin", "length_ratio"]
Results = Mapping[tuple[int, int], float | None]
"""By unordered pair (i, j), i < j: the result for i in [0, 1], or None where the pair does not count."""

_MARGIN_TOLERANCE = 1e-9
"""Scores are fractions of small whole numbers: 0.7 - 0.4 has to reach a least margin of 0.3."""

_TIE_BREAKS: tuple[TieBreak, ...] = ("", "head_to_head", "sonneborn_berger", "coin")
_MAX_DENOMINATOR = 10_000
_BT_STEP = 1e-11  # largest change of a log-strength in the last iteration
_BT_LEAST_PRIOR = 0.05


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One judge's parsed answer to one ordered question about two candidates, by index.

    winner is None where the answer did not parse or never came.
    """

    first: int
    second: int
    winner: Winner | None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Candidates with a score, best first, and what decided the first and the last place.

    scores are by candidate, None for one without a counted pair; "" as a tie break means that the score decided.
    """

    order: tuple[int, ...]
    scores: tuple[float | None, ...]
    top_tie: TieBreak
    bottom_tie: TieBreak


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A preference pair by candidate index; margin is the chosen score less the rejected one, above 0 and at most 1."""

    chosen: int
    rejected: int
    margin: float


def pair_results(verdicts: Iterable[Verdict]) -> dict[tuple[int, int], float | None]:
    """The result for i of every unordered pair (i, j), i < j, on which there is a verdict.

    1.0 and 0.0 where both orders name the same candidate, 0.5 where they disagree. A pair of which one order is
    missing or did not parse is None: counting the other order alone would let a judge that always says "first" rank
    the candidates by its own parse failures. Raises ValueError on two verdicts for one order, and on i = j.
    """
    winners: dict[tuple[int, int], Winner | None] = {}
    for verdict in verdicts:
        order = (verdict.first, verdict.second)
        if verdict.first == verdict.second:
            raise ValueError(f"{verdict} compares a candidate with itself")
        if order in winners:
            raise ValueError(
                f"two verdicts on candidates {order} in this order, {winners[order]} and {verdict.winner}: "
                "combine one judge's verdicts at a time"
            )
        winners[order] = verdict.winner
    pairs = sorted({(min(order), max(order)) for order in winners})
    return {(i, j): _result(winners.get((i, j)), winners.get((j, i))) for i, j in pairs}


def _result(forward: Winner | None, backward: Winner | None) -> float | None:
    """The result for the candidate that stands first in `forward` and second in `backward`."""
    if forward is None or backward is None:
        return None
    return ((forward == "first") + (backward == "second")) / 2


def candidate_scores(num: int, results: Results) -> tuple[float | None, ...]:
    """Every candidate's mean result over the opponents with which its pair counts; None without any."""
    return tuple(None if score is None else float(score) for score in map(_mean, _table(num, results)))


def _table(num: int, results: Results) -> list[dict[int, Fraction]]:
    """By candidate and counted opponent, the candidate's result, as the small fraction that the float stands for."""
    table: list[dict[int, Fraction]] = [{} for _ in range(num)]
    for (i, j), result in results.items():
        if not 0 <= i < j < num:
            raise ValueError(f"pair {(i, j)} among {num} candidates: indices i < j below {num} are wanted")
        if result is not None:
            if not 0 <= result <= 1:
                raise ValueError(f"result {result:g} of pair {(i, j)}: a number from 0 to 1 is wanted")
            table[i][j] = Fraction(result).limit_denominator(_MAX_DENOMINATOR)
            table[j][i] = 1 - table[i][j]
    return table


def _mean(row: Mapping[int, Fraction]) -> Fraction | None:
    return sum(row.values(), Fraction()) / len(row) if row else None


def rank(num: int, results: Results, *, coins: Sequence[int]) -> Ranking:
    """Candidates by score; equal scores by head-to-head, then Sonneborn-Berger, then the higher coin.

    Head-to-head is the mean result against the others with the same score (one half where no such pair counts).
    Sonneborn-Berger is the mean over opponents of result x the opponent's score; in a complete round robin that orders
    as the usual sum does, and a missing pair costs nothing. coins[i] is a number drawn from candidate i's text, so
    that another labelling of the candidates permutes the ranking. All comparisons are exact.
    """
    if len(coins) != num:
        raise ValueError(f"{len(coins)} coins for {num} candidates: one each is wanted")
    table = _table(num, results)
    exact = [_mean(row) for row in table]
    keys: dict[int, tuple[Fraction, ...]] = {}
    for i, score in enumerate(exact):
        if score is None:
            continue
        head_to_head = _mean({j: result for j, result in table[i].items() if exact[j] == score})
        berger = _mean({j: result * (exact[j] or 0) for j, result in table[i].items()})
        assert berger is not None  # a candidate with a score has an opponent
        keys[i] = (score, Fraction(1, 2) if head_to_head is None else head_to_head, berger, Fraction(coins[i]))
    order = sorted(keys, key=lambda i: keys[i], reverse=True)
    is_contest = len(order) > 1
    return Ranking(
        order=tuple(order),
        scores=tuple(None if score is None else float(score) for score in exact),
        top_tie=_decided_by(keys[order[0]], keys[order[1]]) if is_contest else "",
        bottom_tie=_decided_by(keys[order[-2]], keys[order[-1]]) if is_contest else "",
    )


def rank_by_score(scores: Sequence[float | None], *, coins: Sequence[int]) -> Ranking:
    """Candidates by scores that say all there is; equal ones by the higher coin."""
    keys = {i: (score, coins[i]) for i, score in enumerate(scores) if score is not None}
    order = sorted(keys, key=lambda i: keys[i], reverse=True)

    def tie(a: int, b: int) -> TieBreak:
        return "coin" if keys[a][0] == keys[b][0] else ""

    is_contest = len(order) > 1
    return Ranking(
        order=tuple(order),
        scores=tuple(scores),
        top_tie=tie(order[0], order[1]) if is_contest else "",
        bottom_tie=tie(order[-2], order[-1]) if is_contest else "",
    )


def _decided_by(key: Sequence[Fraction], other: Sequence[Fraction]) -> TieBreak:
    """What sets two candidates apart. Equal coins come from equal texts, for which the order says nothing."""
    for tie_break, a, b in zip(_TIE_BREAKS, key, other, strict=True):
        if a != b:
            return tie_break
    return "coin"


def num_cycles(num: int, results: Results) -> tuple[int, int]:
    """(cyclic triads, counted triads): i beats j beats k beats i, each above one half; all three pairs count."""
    table = _table(num, results)
    cyclic = counted = 0
    for i, j, k in combinations(range(num), 3):
        if j in table[i] and k in table[j] and i in table[k]:
            around = (table[i][j], table[j][k], table[k][i])
            counted += 1
            cyclic += min(around) > Fraction(1, 2) or max(around) < Fraction(1, 2)
    return cyclic, counted


def bradley_terry(num: int, results: Results, *, prior: float = 0.5) -> tuple[float, ...]:
    """Log-strengths with mean zero: P(i beats j) = 1 / (1 + exp(s_j - s_i)).

    For schedules in which candidates meet different opponents (knockout); after a complete round robin the order is
    that of the scores. Every candidate has `prior` virtual ties against a virtual opponent of log-strength zero, so
    that one without a loss stays finite. Raises ValueError where prior < 0.05: the iteration would crawl.
    Two candidates and result 1: s = (log x, -log x) with prior (x - 1)(x^2 + 1) = 2 (x + 1); prior 0.4 gives x = 3.
    Source: Hunter 2004, MM algorithms for generalized Bradley-Terry models, Annals of Statistics 32(1).
    """
    if prior < _BT_LEAST_PRIOR:
        raise ValueError(f"prior = {prior:g} is below {_BT_LEAST_PRIOR:g}")
    table = _table(num, results)
    wins = [float(sum(row.values())) + prior / 2 for row in table]
    strengths, step = [1.0] * num, 1.0
    while step > _BT_STEP:
        before = strengths
        strengths = [
            wins[i] / (prior / (before[i] + 1) + sum(1 / (before[i] + before[j]) for j in table[i])) for i in range(num)
        ]
        step = max((abs(log(new / old)) for new, old in zip(strengths, before, strict=True)), default=0.0)
    logs = [log(strength) for strength in strengths]
    return tuple(value - sum(logs) / num for value in logs)


def choose(
    ranking: Ranking, texts: Sequence[str], *, min_margin: float, max_length_ratio: float | None
) -> Choice | DropRule:
    """Top and bottom of the ranking, or the rule that drops the prompt.

    identical_candidates: all texts are equal, or those at top and bottom are. unranked: fewer than two candidates have
    a score. equal_scores: top and bottom have the same. min_margin: their scores differ by less.
    length_ratio: len(chosen) / len(rejected), in characters, is above the cap; None for no cap.
    """
    if len(texts) > 1 and len(set(texts)) == 1:
        return "identical_candidates"
    if len(ranking.order) < 2:
        return "unranked"
    top, bottom = ranking.order[0], ranking.order[-1]
    top_score, bottom_score = ranking.scores[top], ranking.scores[bottom]
    assert top_score is not None  # an order holds only candidates with a score
    assert bottom_score is not None
    margin = top_score - bottom_score
    if margin == 0:
        return "equal_scores"
    if texts[top] == texts[bottom]:
        return "identical_candidates"
    if margin < min_margin - _MARGIN_TOLERANCE:
        return "min_margin"
    if max_length_ratio is not None and len(texts[top]) > max_length_ratio * len(texts[bottom]):
        return "length_ratio"
    return Choice(chosen=top, rejected=bottom, margin=margin)
