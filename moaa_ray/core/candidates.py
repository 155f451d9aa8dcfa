"""The student's candidates: n completions of one prompt, each with its own seed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moaa_ray.core.passes import NOT_ASKED, Room, fill, open_samples
from moaa_ray.core.seeds import seed_for
from moaa_ray.types import Answer, Completion, Failure, Request, Row, Sampling

CANDIDATES = "candidates"
"""The column of answers that sampling leaves and judging reads."""


@dataclass(frozen=True, kw_only=True)
class CandidatePass:
    """n samples of the student for every row. MoAA section 4.1: five at temperature 0.8 from the SFT model."""

    engine: str
    sampling: Sampling
    run_seed: int
    num_candidates: int
    name: str = CANDIDATES
    reads: tuple[str, ...] = ()
    is_final: bool = True

    def is_open(self, row: Row) -> bool:
        """Whether a sample is still to be asked for."""
        return bool(open_samples(row, self.name, self.num_candidates))

    def ask(self, row: Row, room: Room) -> list[Request]:
        """The samples still open."""
        if row.status != "open":
            return []
        return [
            Request(
                id=_request_id(row, i),
                row_id=row.id,
                messages=row.messages,
                sampling=self.sampling,
                seed=seed_for(self.run_seed, self.name, row.id, i),
            )
            for i in open_samples(row, self.name, self.num_candidates)
        ]

    def fold(self, row: Row, answers: Mapping[str, Answer]) -> Row:
        """The row with its candidates."""
        if row.status != "open":
            return row
        return fill(row, self.name, [_request_id(row, i) for i in range(self.num_candidates)], answers)

    def all_failed(self, row: Row, failure: Failure) -> dict[str, Answer]:
        """The same failure as the answer to every sample still open."""
        return {_request_id(row, i): failure for i in open_samples(row, self.name, self.num_candidates)}


def close_candidates(row: Row, *, min_candidates: int) -> Row:
    """The row after sampling: ok, failed for want of candidates, or dropped where all are the same text.

    A failure that may pass away fails the row, so that the next run asks for that candidate again and the others stay;
    one that never will only leaves its candidate out.
    """
    if row.status != "open":
        return row
    given = row.answers[CANDIDATES]
    usable = [answer for answer in given if isinstance(answer, Completion)]
    failures = [answer for answer in given if isinstance(answer, Failure)]
    passing = [failure for failure in failures if failure.retryable]
    if passing or len(usable) < min_candidates:
        first = (passing or failures)[0]
        detail = f": {first.detail}" if first.detail else ""
        reason = f"{CANDIDATES}: {first.reason}: {len(usable)} of {len(given)} came{detail}"
        return replace(row, status="failed", reason=reason)
    texts = [answer.text for answer in usable]
    if len(set(texts)) == 1:
        return replace(row, status="dropped", reason="identical_candidates")
    if len(set(texts)) < len(texts):
        row = replace(row, flags=(*row.flags, "duplicate_candidates"))
    return replace(row, status="ok")


def distinct_candidates(row: Row) -> dict[int, str]:
    """The first candidate of every distinct text, by index."""
    found: dict[str, int] = {}
    for i, answer in enumerate(row.answers.get(CANDIDATES, ())):
        if isinstance(answer, Completion):
            found.setdefault(answer.text, i)
    return {i: text for text, i in found.items()}


def forget_failures(row: Row) -> Row:
    """A failed row made ready to be asked again: completions stay, failures are forgotten."""
    if row.status != "failed":
        return row
    answers = {
        name: tuple(answer if isinstance(answer, Completion) else NOT_ASKED for answer in given)
        for name, given in row.answers.items()
    }
    return replace(row, status="open", reason="", answers=answers)


def _request_id(row: Row, sample: int) -> str:
    return f"{row.id}/{CANDIDATES}/{sample}"
