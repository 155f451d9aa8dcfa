"""Judges as passes: criteria, assessments and verdicts on pairs of candidates.

Source: MoAA (arXiv 2505.03059) sections 3.2.2 and 3.2.3. Every pair is judged in both orders, by the same criteria,
with the same seed; proposer judges see no other judge's text, the aggregator judge sees all of it. A row stays one row
with many requests, and its answers stand in the order of the round's matches or orders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from moaa_ray.core.budget import DoesNotFitError, fit_proposals
from moaa_ray.core.candidates import CANDIDATES, distinct_candidates
from moaa_ray.core.judge_parsing import parse_criteria
from moaa_ray.core.judge_prompts import assess_messages, criteria_messages, decide_messages, question_text
from moaa_ray.core.judge_rounds import Pair, Round
from moaa_ray.core.passes import NOT_ASKED, CannotAskError, Room, fill
from moaa_ray.core.seeds import seed_for
from moaa_ray.core.templates import fence_for
from moaa_ray.types import Answer, Completion, Failure, Message, Request, Row, Sampling

NOT_NEEDED = Failure(reason="not_needed", retryable=False)
"""Stands where an earlier attempt was in form."""

Prompt = tuple[tuple[Message, ...], tuple[str, ...]]
"""Messages, and flags for what was done to make them fit."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a row's judgments have in common: the request, the candidates' texts by index, the fence around them.

    criteria are by match, in a pass that goes by them.
    """

    question: str
    texts: Mapping[int, str]
    fence: str
    criteria: Mapping[Pair, tuple[str, ...]] = field(default_factory=dict)

    def answers(self, order: Pair) -> list[str]:
        """The texts of two candidates: answers A and B."""
        return [self.texts[i] for i in order]


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
        todo = self._open(row) if row.status == "open" else []
        if not todo:
            return []
        shared = replace(compared(row, self.round.run_seed, self.name), criteria=self.round.used_criteria(row))
        requests = []
        for number, pair in todo:
            messages, flags = self.prompt(row, number, pair, shared, room)
            requests.append(
                Request(
                    id=self._request_id(row, pair),
                    row_id=row.id,
                    messages=messages,
                    sampling=self.sampling,
                    # By the texts, so that it is the same for both orders and however candidates are numbered.
                    seed=seed_for(self.round.run_seed, self.name, row.id, *sorted(shared.answers(pair))),
                    flags=flags,
                )
            )
        return requests

    def fold(self, row: Row, answers: Mapping[str, Answer]) -> Row:
        """The row with its answers; where nothing could be asked the reason stands."""
        if row.status != "open":
            return row
        pairs = self.pairs(row)
        lacking = {
            self._request_id(row, pair): failure
            for number, pair in enumerate(pairs)
            if (failure := self.lack(row, number)) is not None
        }
        row = fill(row, self.name, [self._request_id(row, pair) for pair in pairs], {**lacking, **answers})
        told = (flag for a in row.answers[self.name] if isinstance(a, Completion) for flag in a.flags)
        flags = dict.fromkeys((*row.flags, *(f"{flag}:{self.name}" for flag in told)))
        return replace(row, flags=tuple(flags))

    def all_failed(self, row: Row, failure: Failure) -> dict[str, Answer]:
        """The same failure as the answer to every request still open."""
        return {self._request_id(row, pair): failure for _, pair in self._open(row)}

    def lack(self, row: Row, number: int) -> Failure | None:
        """Why this one cannot or need not be asked."""
        return None

    def prompt(self, row: Row, number: int, pair: Pair, shared: Comparison, room: Room) -> Prompt:
        """The prompt of one request. Raises CannotAskError."""
        raise NotImplementedError

    def _open(self, row: Row) -> list[tuple[int, Pair]]:
        known = row.answers.get(self.name, ())
        return [
            (number, pair)
            for number, pair in enumerate(self.pairs(row))
            if (number >= len(known) or known[number] == NOT_ASKED) and self.lack(row, number) is None
        ]

    def _request_id(self, row: Row, pair: Pair) -> str:
        return f"{row.id}/{self.name}/{pair[0]}-{pair[1]}"


@dataclass(frozen=True, kw_only=True)
class CriteriaPass(PairPass):
    """Three criteria for every unordered pair; a further attempt asks only where those before were not in form."""

    attempt: int = 0

    @property
    def reads(self) -> tuple[str, ...]:
        """The candidates, what the matches hang on, and the attempts before."""
        return (CANDIDATES, *self.round.settled_by, *self.round.criteria[: self.attempt])

    def pairs(self, row: Row) -> list[Pair]:
        """The matches, unordered."""
        return self.round.matches(row)

    def lack(self, row: Row, number: int) -> Failure | None:
        """Nothing is needed where an earlier attempt was in form."""
        for name in self.round.criteria[: self.attempt]:
            answers = row.answers.get(name, ())
            if number < len(answers) and parse_criteria(answers[number]) is not None:
                return NOT_NEEDED
        return None

    def prompt(self, row: Row, number: int, pair: Pair, shared: Comparison, room: Room) -> Prompt:
        """The two answers stand in the order of their texts, as the criteria are for both orders."""
        answers = sorted(shared.answers(pair))
        prompt = criteria_messages(shared.question, answers, fence=shared.fence, is_repeated=self.attempt > 0)
        return checked_fit(prompt, room, self.sampling), ()


@dataclass(frozen=True, kw_only=True)
class AssessPass(PairPass):
    """A proposer judge: an assessment of every ordered pair, without a verdict."""

    def prompt(self, row: Row, number: int, pair: Pair, shared: Comparison, room: Room) -> Prompt:
        """The first candidate of the order is answer A."""
        criteria = shared.criteria[min(pair), max(pair)]
        prompt = assess_messages(shared.question, shared.answers(pair), criteria, fence=shared.fence)
        return checked_fit(prompt, room, self.sampling), ()


@dataclass(frozen=True, kw_only=True)
class DecidePass(PairPass):
    """A judge that gives a verdict on every ordered pair; in a round with assessments, the paper's aggregator judge."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The candidates, what the round needs, and the assessments."""
        return (CANDIDATES, *self.round.reads, *self.round.assessments)

    def lack(self, row: Row, number: int) -> Failure | None:
        """The aggregator judge needs an assessment at least; without one the reasons of the proposer judges stand."""
        if not self.round.assessments or self._assessments_of(row, number):
            return None
        failed = [(name, a) for name, a in self._assessed(row, number) if isinstance(a, Failure)]
        told = "; ".join(f"{name}: {a.reason}: {a.detail}".rstrip(": ") for name, a in failed)
        detail = "no proposer judge assessed this pair" + (f" ({told})" if told else "")
        return Failure(reason="no_assessment", detail=detail)

    def prompt(self, row: Row, number: int, pair: Pair, shared: Comparison, room: Room) -> Prompt:
        """The first candidate of the order is answer A. Assessments are shortened where the window is too small."""
        answers, criteria = shared.answers(pair), shared.criteria[min(pair), max(pair)]
        given, fence = self._assessments_of(row, number), shared.fence
        if any(fence in text for text in given):
            fence = fence_for(self.round.run_seed, row.id, [fence, shared.question, *sorted(answers), *given])

        def build(assessments: Sequence[str]) -> tuple[Message, ...]:
            return decide_messages(shared.question, answers, criteria, assessments, fence=fence)

        prompt = build(given)
        limit = room.window - self.sampling.max_tokens
        if not given:
            return checked_fit(prompt, room, self.sampling), ()
        if not room.window or room.count_tokens(prompt) <= limit:
            return prompt, ()
        try:
            fitted, _ = fit_proposals(
                given,
                room_tokens=limit - room.count_tokens(build([""] * len(given))),
                count_text=lambda text: room.count_tokens([Message(role="user", content=text)]),
                fits=lambda texts: room.count_tokens(build(texts)) <= limit,
            )
        except DoesNotFitError:
            return checked_fit(prompt, room, self.sampling), ()
        return build(fitted), ("assessments_cut",)

    def _assessed(self, row: Row, number: int) -> list[tuple[str, Answer]]:
        """What each proposer judge has answered on this order, by pass."""
        given = ((name, row.answers.get(name, ())) for name in self.round.assessments)
        return [(name, answers[number]) for name, answers in given if number < len(answers)]

    def _assessments_of(self, row: Row, number: int) -> list[str]:
        return [answer.text for _, answer in self._assessed(row, number) if isinstance(answer, Completion)]


def compared(row: Row, run_seed: int, name: str) -> Comparison:
    """The parts that all judgments of a row in one pass share; how candidates are numbered makes no difference.

    Every pass has a fence of its own: who assesses sees his, and does not know the one that his text will stand in.
    """
    texts, question = distinct_candidates(row), question_text(row.messages)
    fence = fence_for(run_seed, row.id, [name, question, *sorted(texts.values())])
    return Comparison(question=question, texts=texts, fence=fence)


def checked_fit(prompt: tuple[Message, ...], room: Room, sampling: Sampling) -> tuple[Message, ...]:
    """The same prompt. Raises CannotAskError where it and max_tokens are more than the window."""
    if room.window and (size := room.count_tokens(prompt)) > room.window - sampling.max_tokens:
        detail = (
            f"a prompt of {size} tokens; window {room.window}, max_tokens {sampling.max_tokens}; sample shorter "
            "candidates, or take a judge with a larger window"
        )
        raise CannotAskError(Failure(reason="context_length", detail=detail, retryable=False))
    return prompt
