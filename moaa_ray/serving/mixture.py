"""One request through the mixture: proposers side by side, layer by layer, up to the aggregator's turn.

The passes are those of the generate stage (core/mixture.py), so prompts, fences, shortening and seeds are
the same, and so is the answer where no proposer is left out. Knows neither Ray nor HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from moaa_ray.core.mixture import MixturePass
from moaa_ray.core.passes import completions
from moaa_ray.types import Answer, Completion, Failure, Row

Pieces = AsyncGenerator[str | Answer, None]


class Models(Protocol):
    """What answers: the models of a run, by the engine that a pass names."""

    async def answer(self, p: MixturePass, row: Row) -> dict[str, Answer]:
        """The answers to what the pass asks of the row, by request id. Whatever goes wrong is a Failure in it."""
        ...

    def stream(self, p: MixturePass, row: Row) -> Pieces:
        """The completion of a pass with one sample, in pieces; last the whole of it, or the Failure that ended it."""
        ...

    async def missing(self) -> list[str]:
        """The engines that cannot answer at present."""
        ...


class TooFewError(Exception):
    """A layer has fewer proposals than the mixture needs; reasons are those of its failures."""

    def __init__(self, num: int, least: int, missing: Sequence[tuple[str, str]]):
        named = "; ".join(f"{name}: {reason}" for name, reason in missing)
        super().__init__(f"{num} proposals of at least {least} ({named})")
        self.reasons = {reason for _, reason in missing}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a layer waits for its proposers, and how many proposals are enough (None: wait for all)."""

    timeout_s: float
    quorum: int | None = None


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A row whose proposers have answered, and who is missing in it: names of passes with the reason."""

    row: Row
    num_asked: int
    missing: tuple[tuple[str, str], ...]


async def propose(passes: Sequence[MixturePass], row: Row, models: Models, patience: Patience) -> Proposed:
    """The row with all proposals. A layer that is short of min_proposals raises TooFewError.

    Proposers that are not waited for any longer are cancelled; so are all where the caller is.
    """
    layers = _layers(passes)
    for layer in layers:
        row = await _with_layer(layer, row, models, patience)
        least = layer[0].rules.min_proposals
        usable = sum(len(completions(row, p.name)) for p in layer)
        if usable < least:
            raise TooFewError(usable, least, _missing(layer, row))
    asked = [p for layer in layers for p in layer]
    return Proposed(row=row, num_asked=len(asked), missing=tuple(_missing(asked, row)))


def _layers(passes: Sequence[MixturePass]) -> list[list[MixturePass]]:
    """The proposers layer by layer, as the last pass reads them; a pass that nobody reads is left out."""
    by_name = {p.name: p for p in passes}
    layers, reads = [], passes[-1].reads
    while reads:
        layers.insert(0, [by_name[name] for name in reads])
        reads = layers[0][0].reads
    return layers


async def _with_layer(layer: Sequence[MixturePass], row: Row, models: Models, patience: Patience) -> Row:
    tasks = {asyncio.create_task(models.answer(p, row)): p for p in layer}
    ends = asyncio.get_running_loop().time() + patience.timeout_s
    waiting, given = set(tasks), {}
    reason = "timeout"
    try:
        while waiting:
            left = max(0.0, ends - asyncio.get_running_loop().time())
            done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            given |= {tasks[task].name: task.result() for task in done}
            num = sum(isinstance(answer, Completion) for each in given.values() for answer in each.values())
            if patience.quorum is not None and num >= patience.quorum:
                reason = "not_waited_for"
                break
            if not done:
                break
    finally:
        for task in waiting:
            task.cancel()
    for p in layer:
        answers = given.get(p.name)
        row = p.fold(row, p.all_failed(row, Failure(reason=reason)) if answers is None else answers)
    return row


def _missing(passes: Sequence[MixturePass], row: Row) -> list[tuple[str, str]]:
    """The passes without a completion, each with the reason of its first failure."""
    return [
        (p.name, next((a.reason for a in row.answers[p.name] if isinstance(a, Failure)), "unknown"))
        for p in passes
        if not completions(row, p.name)
    ]


async def stripped(pieces: Pieces) -> Pieces:
    """The same pieces and the same completion without blanks at both ends, as a row's answers are kept."""
    held, has_begun = "", False
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Completion):
                yield replace(piece, text=piece.text.strip())
            elif isinstance(piece, Failure):
                yield piece
            else:
                text = held + piece if has_begun else piece.lstrip()
                shown = text.rstrip()
                held, has_begun = text[len(shown) :], has_begun or bool(shown)
                if shown:
                    yield shown
