"""A pass: one model over all rows, as two pure functions around an engine.

`ask` says what a row asks of the engine, `fold` puts the answers back. One row in, one row out, same
id. A row that is not open passes through; a completion that is already there is never asked for again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from moaa_ray.types import Answer, Completion, Failure, Message, Request, Row, Sampling


@dataclass(frozen=True, kw_only=True)
class Room:
    """How much an engine can read: its context window in tokens (0: unknown) and its count of a prompt's tokens."""

    window: int
    count_tokens: Callable[[Sequence[Message]], int]


class CannotAskError(Exception):
    """The row cannot be put to this pass; the failure says why."""

    def __init__(self, failure: Failure):
        super().__init__(failure.reason)
        self.failure = failure


class Pass(Protocol):
    """What the pool worker runs."""

    @property
    def name(self) -> str:
        """Unique within the stage; names the pass's column."""
        ...

    @property
    def engine(self) -> str:
        """The model that answers, by its name in the recipe."""
        ...

    @property
    def sampling(self) -> Sampling: ...

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of earlier passes whose answers `ask` looks at."""
        ...

    @property
    def is_final(self) -> bool:
        """Whether a row fails with this pass."""
        ...

    def is_open(self, row: Row) -> bool:
        """Whether there is something still to ask of this row."""
        ...

    def ask(self, row: Row, room: Room) -> list[Request]:
        """The requests still open for this row. Raises CannotAskError."""
        ...

    def fold(self, row: Row, answers: Mapping[str, Answer]) -> Row:
        """The row with its answers, by request id; missing ids are those that `ask` did not list."""
        ...

    def all_failed(self, row: Row, failure: Failure) -> dict[str, Answer]:
        """The same failure as the answer to every request still open."""
        ...


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """What a stage does to its rows: the passes in line order, and what becomes of a row after the last of them."""

    stage: str
    passes: tuple[Pass, ...]
    close: Callable[[Row], Row]
    """The row after the last pass: ok, failed, dropped, or open again for its next turn."""
    reopen: Callable[[Row], Row]
    """A failed row made ready to be asked again."""
    inputs: tuple[str, ...] = ()
    """Columns of answers that rows bring along from an earlier stage."""

    @property
    def columns(self) -> list[str]:
        """Every column of answers of a row in flight."""
        return [*self.inputs, *(p.name for p in self.passes)]

    def first_open_pass(self, row: Row) -> int:
        """Index of the first pass that still has something to ask of this row; len(passes) when none has."""
        return next((i for i, p in enumerate(self.passes) if p.is_open(row)), len(self.passes))


ENGINE_MISSING = "engine_missing"
"""Reason of a failure, and flag of a row, when a pool's engine could not be had for the whole run."""

EMPTY = "empty"
"""Reason of a failure: a completion without text."""

NOT_ASKED = Failure(reason="not_asked")
"""Stands for a completion that is still to be asked for."""


def fill(row: Row, name: str, ids: Sequence[str], answers: Mapping[str, Answer]) -> Row:
    """The row with pass `name` answered: new answers where there are any, earlier ones elsewhere."""
    known = row.answers.get(name, ())
    merged = []
    for i, request_id in enumerate(ids):
        before = known[i] if i < len(known) else NOT_ASKED
        merged.append(_checked(answers.get(request_id, before)))
    return replace(row, answers={**row.answers, name: tuple(merged)})


def open_samples(row: Row, name: str, num_samples: int) -> list[int]:
    """Which samples of a pass are still to be asked for."""
    known = row.answers.get(name, ())
    return [i for i in range(num_samples) if i >= len(known) or known[i] == NOT_ASKED]


def is_empty(completion: Completion) -> bool:
    """Whether it has no text, which makes it a failure."""
    return not completion.text.strip()


def _checked(answer: Answer) -> Answer:
    """An answer as it is kept: text stripped, and an empty one is a failure."""
    if isinstance(answer, Failure):
        return answer
    if is_empty(answer):
        return Failure(reason=EMPTY, detail=f"empty text, finish_reason {answer.finish_reason}", retryable=False)
    text = answer.text.strip()
    return answer if text == answer.text else replace(answer, text=text)


def kind_of(reason: str) -> str:
    """Why a row failed without the details, so that equal ones are counted together."""
    return ": ".join(reason.split(": ")[:2]).split(" (")[0]


def completions(row: Row, name: str) -> list[Completion]:
    """The completions of one pass, failures left out."""
    return [answer for answer in row.answers.get(name, ()) if isinstance(answer, Completion)]
