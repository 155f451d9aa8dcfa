"""The judge's passes over what models have answered: a request for each game, and once more where it cannot be read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moaa_ray.core.judging import checked_fit
from moaa_ray.core.passes import NOT_ASKED, CannotAskError, Room, fill
from moaa_ray.core.seeds import seed_for
from moaa_ray.core.templates import fence_for
from moaa_ray.evaluation.protocols import (
    BASELINE,
    MODEL,
    REFERENCES,
    JudgeProtocol,
    Reading,
    by_benchmark,
    texts,
)
from moaa_ray.types import Answer, Completion, Failure, Request, Row, Sampling

VERDICT, REPEAT = "verdict", "repeat"
INPUTS = (MODEL, BASELINE, REFERENCES)
NO_LOGPROBS = Failure(
    reason="no_logprobs (the judge says none of its first token; take one that does, or set "
    "evaluate.alpaca_eval.preference=verdict)",
    retryable=False,
)
_TOO_LONG = Failure(reason="context_length", retryable=False)
_FINAL = ("context_length", "empty")
"""Failures that come again however often the judge is asked: the game has no verdict, and the row is done."""


@dataclass(frozen=True, kw_only=True)
class VerdictPass:
    """The judge's replies to every game of a row, or, the second time, to those whose first reply cannot be read."""

    name: str
    engine: str
    sampling: Sampling
    run_seed: int
    protocols: Mapping[str, JudgeProtocol]
    """By benchmark."""
    is_final: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """What is judged; the second time also the first replies."""
        return INPUTS if self.name == VERDICT else (*INPUTS, VERDICT)

    def is_open(self, row: Row) -> bool:
        """Whether a game is still to be asked about."""
        return bool(self._open(row))

    def ask(self, row: Row, room: Room) -> list[Request]:
        """The games still open, without those that are too long. Raises CannotAskError where all of them are."""
        games = self._open(row) if row.status == "open" else []
        if not games:
            return []
        protocol = by_benchmark(self.protocols, row)
        said = [message["content"] for message in row.messages]
        fence = fence_for(self.run_seed, row.id, [*said, *(text for name in INPUTS for text in texts(row, name))])
        asked: list[Request] = []
        too_long: CannotAskError | None = None
        for game in games:
            messages = protocol.messages(row, game, fence=fence, is_repeated=self.name == REPEAT)
            try:
                messages = checked_fit(messages, room, protocol.sampling)
            except CannotAskError as error:
                too_long = error
                continue
            seed = seed_for(self.run_seed, self.name, row.id, game)
            request_id = self._request_id(row, game)
            asked.append(
                Request(id=request_id, row_id=row.id, messages=messages, sampling=protocol.sampling, seed=seed)
            )  # fmt: skip
        if too_long is not None and not asked:
            raise too_long
        return asked

    def fold(self, row: Row, answers: Mapping[str, Answer]) -> Row:
        """The row with the judge's replies; an open game without one was too long to be asked about."""
        if row.status != "open":
            return row
        protocol = by_benchmark(self.protocols, row)
        ids = [self._request_id(row, game) for game in range(protocol.num_games(row))]
        needs_logprobs = protocol.sampling.logprobs > 0
        kept = {key: _with_logprobs(answer) if needs_logprobs else answer for key, answer in answers.items()}
        return fill(row, self.name, ids, {**self.all_failed(row, _TOO_LONG), **kept})

    def all_failed(self, row: Row, failure: Failure) -> dict[str, Answer]:
        """The same failure as the reply to every game still open."""
        return {self._request_id(row, game): failure for game in self._open(row)}

    def _open(self, row: Row) -> list[int]:
        protocol = by_benchmark(self.protocols, row)
        games = range(protocol.num_games(row))
        if self.name == REPEAT:
            games = [game for game in games if _is_unread(protocol, row, game)]
        known = row.answers.get(self.name, ())
        return [game for game in games if game >= len(known) or known[game] == NOT_ASKED]

    def _request_id(self, row: Row, game: int) -> str:
        return f"{row.id}/{self.name}/{game}"


def judge_passes(engine: str, protocols: Mapping[str, JudgeProtocol], *, run_seed: int) -> tuple[VerdictPass, ...]:
    """Both passes of a judge; they share its engines."""
    sampling = max((protocol.sampling for protocol in protocols.values()), key=lambda each: each.max_tokens)
    return tuple(
        VerdictPass(
            name=name,
            engine=engine,
            sampling=sampling,
            run_seed=run_seed,
            protocols=protocols,
            is_final=name == REPEAT,
        )
        for name in (VERDICT, REPEAT)
    )


def close_judged(row: Row) -> Row:
    """The row after its judge: ok, or failed where the judge could not be asked. What cannot be read is no failure."""
    if row.status != "open":
        return row
    failures = [answer for answer in replies(row) if isinstance(answer, Failure) and answer.reason not in _FINAL]
    if failures:
        detail = f": {failures[0].detail}" if failures[0].detail else ""
        return replace(row, status="failed", reason=f"{VERDICT}: {failures[0].reason}{detail}")
    return replace(row, status="ok")


def replies(row: Row) -> list[Answer]:
    """The reply that counts of every game: the second where there is one."""
    second = row.answers.get(REPEAT, ())
    return [
        second[game] if game < len(second) and second[game] != NOT_ASKED else answer
        for game, answer in enumerate(row.answers.get(VERDICT, ()))
    ]


def readings(protocol: JudgeProtocol, row: Row) -> list[tuple[Reading, Answer]]:
    """Every game of a row, and the reply it was read from."""
    return [(protocol.read(row, game, answer), answer) for game, answer in enumerate(replies(row))]


def _is_unread(protocol: JudgeProtocol, row: Row, game: int) -> bool:
    first = row.answers.get(VERDICT, ())
    answer = first[game] if game < len(first) else None
    return protocol.is_repeated and isinstance(answer, Completion) and not protocol.read(row, game, answer).is_read


def _with_logprobs(answer: Answer) -> Answer:
    """A reply that is read by its logprobs: without any it is a failure, and white space is a reply like any other."""
    if isinstance(answer, Failure):
        return answer
    if not answer.first_logprobs:
        return NO_LOGPROBS
    return answer if answer.text.strip() else replace(answer, text="(white space)")
