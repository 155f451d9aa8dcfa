"""Which candidates meet whom, and what the judges have made of it: pure functions of a row's answers.

A round is a set of matches that are judged side by side. All pairs is one round. A knockout has several: in each, the
unbeaten meet each other and so do those that have not won yet, until one of each is left (after PairJudge RM, arXiv
2501.13007, with a losers' bracket). Nothing here depends on how candidates are numbered: what has to be arbitrary is
drawn from the run seed, the row's id and the candidate's text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import ceil

from moaa_ray.core.candidates import CANDIDATES, distinct_candidates
from moaa_ray.core.judge_parsing import parse_criteria, parse_verdict
from moaa_ray.core.judge_prompts import FALLBACK_CRITERIA
from moaa_ray.core.ranking import Verdict, pair_results
from moaa_ray.core.seeds import seed_for
from moaa_ray.types import Answer, Completion, Row

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: the names of its passes, and the rounds before it. A round without `is_knockout` has all pairs."""

    run_seed: int
    criteria: tuple[str, ...] = ()
    """Passes that ask for criteria, attempt by attempt; each asks only where those before it were not in form."""
    assessments: tuple[str, ...] = ()
    """Passes that assess without a verdict: the proposer judges."""
    deciders: tuple[str, ...]
    """Passes that give verdicts: one, or the members of a jury."""
    is_knockout: bool = False
    earlier: "Round | None" = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The passes that decide what this round asks, beside the candidates."""
        return (*self.settled_by, *self.criteria)

    @property
    def settled_by(self) -> tuple[str, ...]:
        """The passes by which the matches of this round are known."""
        return (*self.earlier.settled_by, *self.earlier.deciders) if self.earlier else ()

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes of this round, in line order."""
        return (*self.criteria, *self.assessments, *self.deciders)

    def matches(self, row: Row) -> list[Pair]:
        """The pairs (i, j), i < j, of this round."""
        if not self.is_knockout:
            return list(combinations(sorted(distinct_candidates(row)), 2))
        return _matches(*self._brackets(row))

    def orders(self, row: Row) -> list[Pair]:
        """Every match in both orders; those with the same first candidate stand together and share their prompt."""
        return _orders(self.matches(row))

    def chosen_criteria(self, row: Row) -> dict[Pair, tuple[str, ...] | None]:
        """The criteria of every match: those that were chosen, or None where no attempt was in form."""
        matches = self.matches(row)
        chosen: dict[Pair, tuple[str, ...] | None] = dict.fromkeys(matches)
        for name in self.criteria:
            for pair, answer in zip(matches, row.answers.get(name, ()), strict=False):
                chosen[pair] = chosen[pair] or parse_criteria(answer)
        return chosen

    def used_criteria(self, row: Row) -> dict[Pair, tuple[str, ...]]:
        """What both orders of every match are judged by; nothing for judges without criteria."""
        if not self.criteria:
            return dict.fromkeys(self.matches(row), ())
        return {pair: chosen or FALLBACK_CRITERIA for pair, chosen in self.chosen_criteria(row).items()}

    def verdicts(self, row: Row, decider: str) -> list[Verdict]:
        """One decider's verdicts in the order of `orders`."""
        return _verdicts(row, decider, self.orders(row))

    def results(self, row: Row) -> dict[Pair, float | None]:
        """The result of every match for its first candidate; of a jury the majority, without those that saw a tie."""
        return self._results(row, self.matches(row))

    def all_results(self, row: Row) -> dict[Pair, float | None]:
        """The results of this round and of all before it."""
        return {**(self.earlier.all_results(row) if self.earlier else {}), **self.results(row)}

    def _results(self, row: Row, matches: list[Pair]) -> dict[Pair, float | None]:
        orders = _orders(matches)
        by_decider = [pair_results(_verdicts(row, decider, orders)) for decider in self.deciders]
        return {pair: _majority([results[pair] for results in by_decider]) for pair in matches}

    def _brackets(self, row: Row) -> tuple[list[int], list[int]]:
        """Before this round: the candidates that have not lost yet, and those that have not won yet."""
        texts = distinct_candidates(row)

        def draw(i: int, what: str) -> int:
            return seed_for(self.run_seed, what, row.id, texts[i])

        if self.earlier is None:
            everyone = sorted(texts, key=lambda i: draw(i, "bracket"))
            return everyone, everyone
        upper, lower = self.earlier._brackets(row)
        results = self.earlier._results(row, _matches(upper, lower))

        def wins(i: int, j: int) -> bool:
            result = results[min(i, j), max(i, j)]
            if result is None or result == 0.5:
                return draw(i, "coin") > draw(j, "coin")
            return (result > 0.5) == (i < j)

        return _advance(upper, wins), _advance(lower, lambda i, j: not wins(i, j))


def num_rounds(num_candidates: int) -> int:
    """Rounds of a knockout: 3 for five candidates."""
    rounds = 0
    while num_candidates > 1:
        num_candidates = ceil(num_candidates / 2)
        rounds += 1
    return rounds


def coins(run_seed: int, row: Row, num: int) -> list[int]:
    """A number per candidate, drawn from its text, for ties that nothing else breaks."""
    texts = [answer.text if isinstance(answer, Completion) else "" for answer in row.answers.get(CANDIDATES, ())]
    return [seed_for(run_seed, "coin", row.id, texts[i]) for i in range(num)]


def _meetings(bracket: list[int]) -> list[Pair]:
    return list(zip(bracket[::2], bracket[1::2], strict=False))


def _matches(upper: list[int], lower: list[int]) -> list[Pair]:
    """Who meets in these brackets; in a first round both are the same."""
    return sorted({(min(pair), max(pair)) for pair in (*_meetings(upper), *_meetings(lower))})


def _orders(matches: list[Pair]) -> list[Pair]:
    return sorted(order for i, j in matches for order in ((i, j), (j, i)))


def _advance(bracket: list[int], stays: Callable[[int, int], bool]) -> list[int]:
    """Who stays in a bracket: one of every meeting, and the odd one out, who meets somebody in the next round."""
    odd_one_out = bracket[len(bracket) - len(bracket) % 2 :]
    return odd_one_out + [i if stays(i, j) else j for i, j in _meetings(bracket)]


def _verdicts(row: Row, decider: str, orders: list[Pair]) -> list[Verdict]:
    answers = row.answers.get(decider, ())
    return [Verdict(first=i, second=j, winner=parse_verdict(_at(answers, n))) for n, (i, j) in enumerate(orders)]


def _majority(results: list[float | None]) -> float | None:
    counted = [result for result in results if result is not None]
    if not counted:
        return None
    balance = sum(result - 0.5 for result in counted)
    return 0.5 if balance == 0 else float(balance > 0)


def _at(answers: tuple[Answer, ...], number: int) -> Answer | None:
    return answers[number] if number < len(answers) else None
