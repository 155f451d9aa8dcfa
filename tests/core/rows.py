"""Rows, answers and passes for the tests of core/, written out."""

from functools import partial

from moaa_ray.core.mixture import MixturePass, MixtureRules, Speaker
from moaa_ray.core.passes import Room, StageWork
from moaa_ray.core.turns import close_turn, reopen
from moaa_ray.types import Completion, Message, Row, Sampling

UNLIMITED = Room(window=0, count_tokens=lambda messages: 0)


def count_words(messages) -> int:
    return sum(len(message["content"].split()) for message in messages)


def row(row_id="r1", text="What is 2 + 2?", **fields) -> Row:
    return Row(id=row_id, source="s", messages=(Message(role="user", content=text),), **fields)


def said(text, finish_reason="stop", **fields) -> Completion:
    return Completion(text=text, finish_reason=finish_reason, prompt_tokens=5, completion_tokens=3, **fields)


def proposer(label, *, layer=0, reads=(), num_samples=1, rules=None, max_tokens=64) -> MixturePass:
    return MixturePass(
        name=f"l{layer}.{label}",
        engine=label,
        speaker=Speaker(proposer=label, model=f"org/{label}", revision="", layer=layer),
        sampling=Sampling(max_tokens=max_tokens),
        rules=rules or MixtureRules(run_seed=0),
        reads=reads,
        num_samples=num_samples,
    )


def aggregator(reads, *, rules=None, max_tokens=64) -> MixturePass:
    return MixturePass(
        name="aggregate",
        engine="big",
        speaker=Speaker(proposer="aggregator", model="org/big", revision="", layer=1),
        sampling=Sampling(max_tokens=max_tokens),
        rules=rules or MixtureRules(run_seed=0),
        reads=reads,
        is_final=True,
    )


def run_pass(p, row, answer, room=UNLIMITED) -> Row:
    """One pass over one row; `answer` is called with each request."""
    return p.fold(row, {request.id: answer(request) for request in p.ask(row, room)})


def work_of(*passes: MixturePass) -> StageWork:
    """These passes as a generate stage."""
    close, again = partial(close_turn, passes=passes), partial(reopen, passes=passes)
    return StageWork(stage="generate", passes=passes, close=close, reopen=again)
