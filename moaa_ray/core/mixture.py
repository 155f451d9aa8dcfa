"""The mixture of agents as passes: proposer layers, the aggregator's own direct answer, the aggregator.

Source: arXiv 2505.03059, section 3.1 and equation 1 (layers), equation 3 (turns). A proposer of
layer 0 sees the conversation alone; every later layer, and the aggregator, sees all proposals of the
layer before in the aggregate-and-synthesize prompt. Failed and empty proposals are left out and the
others numbered without gaps. Everything here is a pure function of the row, the seed and the settings.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moaa_ray.core.budget import DoesNotFitError, fit_proposals
from moaa_ray.core.passes import ENGINE_MISSING, CannotAskError, Room, completions, fill, open_samples
from moaa_ray.core.seeds import seed_for
from moaa_ray.core.templates import aggregate_messages, fence_for
from moaa_ray.types import CUT_SHORT, Answer, Completion, Failure, Message, Request, Row, Sampling


@dataclass(frozen=True, kw_only=True)
class MixtureRules:
    """What holds for the whole mixture."""

    run_seed: int
    min_proposals: int = 1
    shuffle_proposals: bool = False
    proposal_dropout: float = 0.0
    hide_sources: bool = False
    drop_truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """Who answers a pass, for provenance: the slot's label, the model and its revision, the layer (from 0)."""

    proposer: str
    model: str
    revision: str
    layer: int


@dataclass(frozen=True, kw_only=True)
class MixturePass:
    """One slot of the mixture over all rows.

    `reads` names the passes of the layer before, in recipe order; empty for a first layer. A final
    pass is the aggregator: its failure is the row's failure, and its answer closes the turn.
    """

    name: str
    engine: str
    speaker: Speaker
    sampling: Sampling
    rules: MixtureRules
    reads: tuple[str, ...] = ()
    num_samples: int = 1
    is_final: bool = False

    def is_open(self, row: Row) -> bool:
        """Whether a sample is still to be asked for."""
        return bool(open_samples(row, self.name, self.num_samples))

    def ask(self, row: Row, room: Room) -> list[Request]:
        """The samples still open, each with its own seed; none for a row that is not open or short of proposals."""
        if row.status != "open" or self._lack(row):
            return []
        samples = open_samples(row, self.name, self.num_samples)
        if not samples:
            return []
        messages, flags = self._prompt(row, room)
        return [
            Request(
                id=self._request_id(row, i),
                row_id=row.id,
                messages=messages,
                sampling=self.sampling,
                seed=seed_for(self.rules.run_seed, self.name, row.id, row.turn, i),
                flags=flags,
            )
            for i in samples
        ]

    def fold(self, row: Row, answers: Mapping[str, Answer]) -> Row:
        """The row with the answers; failed, dropped or flagged where the rules say so."""
        if row.status != "open":
            return row
        if lack := self._lack(row):
            return replace(row, status="failed", reason=lack)
        signed = {request_id: self._signed(answer) for request_id, answer in answers.items()}
        row = fill(row, self.name, [self._request_id(row, i) for i in range(self.num_samples)], signed)
        row = replace(row, flags=_with_flags(row, self.name))
        return self._closed(row) if self.is_final else row

    def all_failed(self, row: Row, failure: Failure) -> dict[str, Answer]:
        """The same failure as the answer to every sample still open."""
        return {self._request_id(row, i): failure for i in open_samples(row, self.name, self.num_samples)}

    def _signed(self, answer: Answer) -> Answer:
        """With who gave it: the row may go on with another recipe (--allow-changes), whose pass has another model."""
        if isinstance(answer, Failure):
            return answer
        return replace(answer, model=self.speaker.model, revision=self.speaker.revision)

    def _closed(self, row: Row) -> Row:
        answer = row.answers[self.name][0]
        if isinstance(answer, Failure):
            return replace(row, status="failed", reason=f"{self.name}: {answer.reason}: {answer.detail}".rstrip(": "))
        if answer.finish_reason in CUT_SHORT:
            # Not row.turn, which is 0 also where a dataset's own turns come first.
            turn = sum(message["role"] == "user" for message in row.messages) - 1
            row = replace(row, flags=_add(row.flags, f"truncated:{turn}"))
            if self.rules.drop_truncated:
                return replace(row, status="dropped", reason="drop_truncated")
        return row

    def _lack(self, row: Row) -> str:
        """Why this pass cannot be asked; empty when it can."""
        if not self.reads:
            return ""
        usable = sum(len(completions(row, name)) for name in self.reads)
        if usable >= self.rules.min_proposals:
            return ""
        reasons = [
            f"{name}: {answer.reason}: {answer.detail[:200]}".rstrip(": ")
            for name in self.reads
            for answer in row.answers.get(name, ())
            if isinstance(answer, Failure)
        ]
        return f"min_proposals: {usable} of {self.rules.min_proposals} needed ({'; '.join(reasons)})"

    def _prompt(self, row: Row, room: Room) -> tuple[tuple[Message, ...], tuple[str, ...]]:
        texts = [answer.text for _, _, answer in shown(row, self.reads, self.rules)]
        if not texts:
            return row.messages, ()

        def build(proposals: Sequence[str]) -> tuple[Message, ...]:
            context = [message["content"] for message in row.messages]
            fence = fence_for(self.rules.run_seed, row.id, [*context, *proposals])
            return aggregate_messages(row.messages, proposals, fence=fence, hide_sources=self.rules.hide_sources)

        prompt = build(texts)
        limit = room.window - self.sampling.max_tokens
        if not room.window or room.count_tokens(prompt) <= limit:
            return prompt, ()
        overhead = room.count_tokens(build([""] * len(texts)))
        try:
            fitted, was_cut = fit_proposals(
                texts,
                room_tokens=limit - overhead,
                count_text=lambda text: room.count_tokens([Message(role="user", content=text)]),
                fits=lambda proposals: room.count_tokens(build(proposals)) <= limit,
            )
        except DoesNotFitError as error:
            detail = f"{error}; window {room.window}, max_tokens {self.sampling.max_tokens}"
            raise CannotAskError(Failure(reason="context_length", detail=detail, retryable=False)) from error
        return build(fitted), ("proposals_cut",) if was_cut else ()

    def _request_id(self, row: Row, sample: int) -> str:
        return f"{row.id}/{row.turn}/{self.name}/{sample}"


def shown(row: Row, reads: Sequence[str], rules: MixtureRules) -> list[tuple[str, int, Completion]]:
    """The proposals that the next layer sees, as (pass, sample, completion), in the order in which it sees them.

    Recipe order, unless the rules shuffle; with dropout each is left out by a chance of its own, but
    never so many that fewer than min_proposals stay.
    """
    usable = [
        (name, i, answer)
        for name in reads
        for i, answer in enumerate(row.answers.get(name, ()))
        if isinstance(answer, Completion)
    ]
    if not usable or not (rules.shuffle_proposals or rules.proposal_dropout):
        return usable
    layer = "|".join(reads)
    if rules.proposal_dropout:
        chances = {
            (name, i): random.Random(seed_for(rules.run_seed, "dropout", row.id, row.turn, layer, name, i)).random()
            for name, i, _ in usable
        }
        keep = sorted(usable, key=lambda u: -chances[u[0], u[1]])
        num_kept = max(rules.min_proposals, sum(c >= rules.proposal_dropout for c in chances.values()))
        kept = {(name, i) for name, i, _ in keep[:num_kept]}
        usable = [u for u in usable if (u[0], u[1]) in kept]
    if rules.shuffle_proposals:
        random.Random(seed_for(rules.run_seed, "shuffle", row.id, row.turn, layer)).shuffle(usable)
    return usable


def _with_flags(row: Row, name: str) -> tuple[str, ...]:
    flags = row.flags
    for answer in row.answers[name]:
        told = answer.flags if isinstance(answer, Completion) else (ENGINE_MISSING,) * (answer.reason == ENGINE_MISSING)
        for flag in told:
            flags = _add(flags, f"{flag}:{name}")
    return flags


def _add(flags: tuple[str, ...], flag: str) -> tuple[str, ...]:
    return flags if flag in flags else (*flags, flag)
