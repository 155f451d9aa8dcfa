"""What happens to a row between turns and between runs: a turn closed, a failed row made ready again."""

from collections.abc import Sequence
from dataclasses import replace

from moaa_ray.core.mixture import MixturePass, shown
from moaa_ray.core.passes import NOT_ASKED
from moaa_ray.types import Answer, Completion, Message, Proposal, Row


def close_turn(row: Row, passes: Sequence[MixturePass]) -> Row:
    """The row after its aggregator: proposals gathered, the synthesised answer in the conversation.

    A row with user turns to come is open again for the next one; otherwise it is ok. Rows that are
    not open keep their answers, so that a later attempt asks only for what is missing.
    """
    if row.status != "open":
        return row
    final = passes[-1]
    answer = row.answers[final.name][0]
    assert isinstance(answer, Completion)
    messages = (*row.messages, Message(role="assistant", content=answer.text))
    row = replace(row, proposals=(*row.proposals, *turn_proposals(row, passes)), messages=messages, answers={})
    if not row.later:
        return replace(row, status="ok")
    following = Message(role="user", content=row.later[0])
    return replace(row, messages=(*messages, following), later=row.later[1:], turn=row.turn + 1)


def reopen(row: Row, passes: Sequence[MixturePass]) -> Row:
    """A failed row made ready to be asked again: completions stay, the failures that made it fail are forgotten.

    A failed aggregator is asked anew on the same proposals; a row that lacked proposals asks every
    proposer that failed. Rows of any other status come back unchanged.
    """
    if row.status != "failed":
        return row
    final = passes[-1].name
    forget = [final] if final in row.answers else list(row.answers)
    answers = {
        name: tuple(a if isinstance(a, Completion) or name not in forget else NOT_ASKED for a in given)
        for name, given in row.answers.items()
    }
    return replace(row, status="open", reason="", answers=answers)


def turn_proposals(row: Row, passes: Sequence[MixturePass]) -> list[Proposal]:
    """What every pass but the aggregator answered in the present turn, in line order."""
    used = {(name, i) for p in passes if p.reads for name, i, _ in shown(row, p.reads, p.rules)}
    return [
        _proposal(row, p, answer, used=(p.name, i) in used)
        for p in passes
        if not p.is_final
        for i, answer in enumerate(row.answers.get(p.name, ()))
    ]


def _proposal(row: Row, p: MixturePass, answer: Answer, *, used: bool) -> Proposal:
    done = isinstance(answer, Completion)
    # An answer may be from before the recipe was changed, and another model's than the pass's.
    model, revision = p.speaker.model, p.speaker.revision
    if done and answer.model:
        model, revision = answer.model, answer.revision
    return Proposal(
        turn=row.turn,
        layer=p.speaker.layer,
        proposer=p.speaker.proposer,
        model=model,
        revision=revision,
        completion=answer.text if done else "",
        finish_reason=answer.finish_reason if done else "",
        prompt_tokens=answer.prompt_tokens if done else 0,
        completion_tokens=answer.completion_tokens if done else 0,
        used=used and done,
        error="" if done else answer.reason,
    )
