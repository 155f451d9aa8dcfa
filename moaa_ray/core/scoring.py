"""Pointwise judges as passes: every candidate is scored alone, by a reward model, a rule, or an LLM's ratings."""

from collections.abc import Mapping
from dataclasses import dataclass

from moaa_ray.core.candidates import CANDIDATES, distinct_candidates
from moaa_ray.core.judge_parsing import parse_rating, parse_score
from moaa_ray.core.judge_prompts import rate_messages
from moaa_ray.core.judging import Comparison, checked_fit, compared
from moaa_ray.core.passes import NOT_ASKED, Room, fill
from moaa_ray.core.seeds import seed_for
from moaa_ray.types import Answer, Failure, Message, Request, Row, Sampling


@dataclass(frozen=True, kw_only=True)
class ScorePass:
    """One request per candidate, or per candidate and aspect where an LLM rates.

    Without aspects the request is the conversation with the candidate as its last message, and the engine's text is
    the score. With aspects (UltraFeedback, arXiv 2310.01377) it asks for [[1]] to [[5]] in each of them.
    """

    name: str
    engine: str
    sampling: Sampling
    run_seed: int
    aspects: tuple[str, ...] = ()
    is_final: bool = True
    reads: tuple[str, ...] = (CANDIDATES,)

    def slots(self, row: Row) -> list[tuple[int, str]]:
        """(candidate, aspect) in the order of the answers; equal candidates are scored once."""
        return [(i, aspect) for i in sorted(distinct_candidates(row)) for aspect in self.aspects or ("",)]

    def is_open(self, row: Row) -> bool:
        """Whether there is something still to ask of this row."""
        return bool(self._open(row))

    def ask(self, row: Row, room: Room) -> list[Request]:
        """The requests still open."""
        todo = self._open(row) if row.status == "open" else []
        if not todo:
            return []
        shared = compared(row, self.run_seed, self.name)
        return [
            Request(
                id=self._request_id(row, i, aspect),
                row_id=row.id,
                messages=self._messages(row, shared, i, aspect, room),
                sampling=self.sampling,
                seed=seed_for(self.run_seed, self.name, row.id, shared.texts[i], aspect),
            )
            for i, aspect in todo
        ]

    def fold(self, row: Row, answers: Mapping[str, Answer]) -> Row:
        """The row with its answers."""
        if row.status != "open":
            return row
        return fill(row, self.name, [self._request_id(row, *slot) for slot in self.slots(row)], answers)

    def all_failed(self, row: Row, failure: Failure) -> dict[str, Answer]:
        """The same failure as the answer to every request still open."""
        return {self._request_id(row, *slot): failure for slot in self._open(row)}

    def scores(self, row: Row) -> dict[int, float | None]:
        """By candidate its score: the number, or the mean rating where at least half of the aspects have one."""
        found: dict[int, list[float]] = {}
        for (i, _), answer in zip(self.slots(row), row.answers.get(self.name, ()), strict=False):
            value = self.read(answer)
            found.setdefault(i, []).extend([] if value is None else [value])
        needed = max(1, (len(self.aspects) + 1) // 2)
        return {
            i: sum(found[i]) / len(found[i]) if len(found.get(i, ())) >= needed else None
            for i in distinct_candidates(row)
        }

    def read(self, answer: Answer | None) -> float | None:
        """The number in one answer; None without one."""
        return parse_rating(answer) if self.aspects else parse_score(answer)

    def _messages(self, row: Row, shared: Comparison, i: int, aspect: str, room: Room) -> tuple[Message, ...]:
        if not aspect:
            return (*row.messages, Message(role="assistant", content=shared.texts[i]))
        prompt = rate_messages(shared.question, shared.texts[i], aspect, fence=shared.fence)
        return checked_fit(prompt, room, self.sampling)

    def _open(self, row: Row) -> list[tuple[int, str]]:
        known = row.answers.get(self.name, ())
        return [slot for n, slot in enumerate(self.slots(row)) if n >= len(known) or known[n] == NOT_ASKED]

    def _request_id(self, row: Row, candidate: int, aspect: str) -> str:
        return f"{row.id}/{self.name}/{candidate}" + (f"/{aspect}" if aspect else "")
