"""Judges as passes: criteria, assessments and verdicts on pairs of candidates.

Source: MoAA (arXiv 2505.03059) sections 3.2.2 and 3.2.3. Every pair is judged in both orders, by the same criteria,
with the same seed; proposer judges see no other judge's text, the aggregator judge sees all of it. A row stays one row
with many requests, and its answers stand in the order of the round's matches or orders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moaa_ray.core.budget import DoesNotFitError, fit_proposals
from moaa_ray.core.candidates import CANDIDATES, distinct_candidates, forget_failures
from moaa_ray.core.judge_parsing import parse_criteria, parse_verdict
from moaa_ray.core.judge_prompts import assess_messages, criteria_messages, decide_messages, question_text
from moaa_ray.core.judge_rounds import Pair, Round
from moaa_ray.core.passes import NOT_ASKED, CannotAskError, Room, fill
from moaa_ray.core.templates import fence_for
from moaa_ray.types import Answer, Completion, Failure, Message, Request, Row, Sampling

NOT_NEEDED = Failure(reason="not_needed", retryable=False)
"""Stands where an earlier attempt was in form."""
NO_ASSESSMENT = Failure(reason="no_assessment", detail="no proposer judge assessed this pair")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a row's judgments have in common: the request, the candidates' texts by index, the fence around them."""

    question: str
    texts: Mapping[int, str]
    fence: str


@dataclass(frozen=True, kw_only=True)
class PairPass:
    """A pass with one request per match or order of a round; the kinds below say what is asked."""

    name: str
    engine: str
    sampling: Sampling
    round: Round
    is_final: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The candidates, and what the round needs."""
        return (CANDIDATES, *self.round.reads)

    def pairs(self, row: Row) -> list[Pair]:
        """What is asked about, in the order of the answers."""
        return self.round.orders(row)

    def is_open(self, row: Row) -> bool:
        """Whether there is something still to ask of this row."""
        return bool(self._open(row))

    def ask(self, row: Row, room: Room) -> list[Request]:
        """The requests still open; those for which something is lacking are left out."""
        if row.status != "open":
            return []
        todo = self._open(row)
        if not todo:
            return []
        shared = compared(row, self.round.run_seed)
        return [
            Request(
                id=self._request_id(row, pair),
                row_id=row.id,
                messages=self.messages(row, number, pair, shared, room),
                sampling=self.sampling,
                seed=self.round.seed_of(row, pair, self.name),
            )
            for number, pair in todo
        ]

    def fold(self, row: Row, answers: Mapping[str, Answer]) -> Row:
        """The row with its answers; where nothing could be asked the reason stands."""
        if row.status != "open":
            return row
        pairs = self.pairs(row)
        lacking = {
            self._request_id(row, pair): failure
            for number, pair in enumerate(pairs)
            if (failure := self.lack(row, number, pair)) is not None
        }
        return fill(row, self.name, [self._request_id(row, pair) for pair in pairs], {**lacking, **answers})

    def all_failed(self, row: Row, failure: Failure) -> dict[str, Answer]:
        """The same failure as the answer to every request still open."""
        return {self._request_id(row, pair): failure for _, pair in self._open(row)}

    def lack(self, row: Row, number: int, pair: Pair) -> Failure | None:
        """Why this one cannot or need not be asked."""
        return None

    def messages(self, row: Row, number: int, pair: Pair, shared: Comparison, room: Room) -> tuple[Message, ...]:
        """The prompt of one request. Raises CannotAskError."""
        raise NotImplementedError

    def _open(self, row: Row) -> list[tuple[int, Pair]]:
        known = row.answers.get(self.name, ())
        return [
            (number, pair)
            for number, pair in enumerate(self.pairs(row))
            if (number >= len(known) or known[number] == NOT_ASKED) and self.lack(row, number, pair) is None
        ]

    def _request_id(self, row: Row, pair: Pair) -> str:
        return f"{row.id}/{self.name}/{pair[0]}-{pair[1]}"

    def _fitting(self, prompt: tuple[Message, ...], room: Room) -> tuple[Message, ...]:
        limit = room.window - self.sampling.max_tokens
        if room.window and (size := room.count_tokens(prompt)) > limit:
            detail = (
                f"a comparison of {size} tokens; window {room.window}, max_tokens {self.sampling.max_tokens}; sample "
                "shorter candidates, or take a judge with a larger window"
            )
            raise CannotAskError(Failure(reason="context_length", detail=detail, retryable=False))
        return prompt


@dataclass(frozen=True, kw_only=True)
class CriteriaPass(PairPass):
    """Three criteria for every unordered pair; a further attempt asks only where those before were not in form."""

    attempt: int = 0

    def pairs(self, row: Row) -> list[Pair]:
        """The matches, unordered."""
        return self.round.matches(row)

    def lack(self, row: Row, number: int, pair: Pair) -> Failure | None:
        """Nothing is needed where an earlier attempt was in form."""
        for name in self.round.criteria[: self.attempt]:
            answers = row.answers.get(name, ())
            if number < len(answers) and parse_criteria(answers[number]) is not None:
                return NOT_NEEDED
        return None

    def messages(self, row: Row, number: int, pair: Pair, shared: Comparison, room: Room) -> tuple[Message, ...]:
        """The two answers stand in the order of their texts, as the criteria are for both orders."""
        answers = sorted((shared.texts[pair[0]], shared.texts[pair[1]]))
        prompt = criteria_messages(shared.question, answers, fence=shared.fence, is_repeated=self.attempt > 0)
        return self._fitting(prompt, room)


@dataclass(frozen=True, kw_only=True)
class AssessPass(PairPass):
    """A proposer judge: an assessment of every ordered pair, without a verdict."""

    def messages(self, row: Row, number: int, pair: Pair, shared: Comparison, room: Room) -> tuple[Message, ...]:
        """The first candidate of the order is answer A."""
        answers = [shared.texts[i] for i in pair]
        criteria = self.round.criteria_for(row, pair)
        return self._fitting(assess_messages(shared.question, answers, criteria, fence=shared.fence), room)


@dataclass(frozen=True, kw_only=True)
class DecidePass(PairPass):
    """A judge that gives a verdict on every ordered pair; in a round with assessments, the paper's aggregator judge."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The candidates, what the round needs, and the assessments."""
        return (CANDIDATES, *self.round.reads, *self.round.assessments)

    def lack(self, row: Row, number: int, pair: Pair) -> Failure | None:
        """The aggregator judge needs an assessment at least."""
        return NO_ASSESSMENT if self.round.assessments and not self._assessments_of(row, number) else None

    def messages(self, row: Row, number: int, pair: Pair, shared: Comparison, room: Room) -> tuple[Message, ...]:
        """The first candidate of the order is answer A. Assessments are shortened where the window is too small."""
        answers = [shared.texts[i] for i in pair]
        criteria = self.round.criteria_for(row, pair)
        given = self._assessments_of(row, number)
        inner = fence_for(self.round.run_seed, row.id, [shared.question, *answers, *given])

        def build(assessments: Sequence[str]) -> tuple[Message, ...]:
            return decide_messages(
                shared.question, answers, criteria, assessments, fence=shared.fence, inner=inner
            )  # fmt: skip

        prompt = build(given)
        limit = room.window - self.sampling.max_tokens
        if not given or not room.window or room.count_tokens(prompt) <= limit:
            return self._fitting(prompt, room)
        try:
            fitted, _ = fit_proposals(
                given,
                room_tokens=limit - room.count_tokens(build([""] * len(given))),
                count_text=lambda text: room.count_tokens([Message(role="user", content=text)]),
                fits=lambda texts: room.count_tokens(build(texts)) <= limit,
            )
        except DoesNotFitError:
            return self._fitting(prompt, room)
        return build(fitted)

    def _assessments_of(self, row: Row, number: int) -> list[str]:
        given = (row.answers.get(name, ()) for name in self.round.assessments)
        answers = (a[number] for a in given if number < len(a))
        return [answer.text for answer in answers if isinstance(answer, Completion)]


def compared(row: Row, run_seed: int) -> Comparison:
    """The parts that all judgments of a row share; the fence does not depend on how candidates are numbered."""
    texts, question = distinct_candidates(row), question_text(row.messages)
    return Comparison(
        question=question, texts=texts, fence=fence_for(run_seed, row.id, [question, *sorted(texts.values())])
    )


def reopen_judged(row: Row, *, rounds: Sequence[Round]) -> Row:
    """A failed row made ready: what failed or was not in form is forgotten, and with it the rounds that hang on it."""
    if row.status != "failed":
        return row
    answers = dict(forget_failures(row).answers)
    row = replace(row, status="open", reason="")
    for number, each in enumerate(rounds):
        for decider in each.deciders:
            given = answers.get(decider, ())
            answers[decider] = tuple(a if parse_verdict(a) else NOT_ASKED for a in given)
        row = replace(row, answers=answers)
        if any(NOT_ASKED in answers[decider] for decider in each.deciders):
            later = rounds[number + 1 :]
            gone = {name for each in later for name in each.passes}
            return replace(row, answers={name: given for name, given in answers.items() if name not in gone})
    return row
