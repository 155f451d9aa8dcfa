"""The flow of one request through the mixture, with models that answer when and how the test says."""

import asyncio
import json

import pytest

from moaa_ray.core.mixture import MixturePass
from moaa_ray.core.passes import Room
from moaa_ray.lines.mixture import mixture_passes
from moaa_ray.loading import load_recipe
from moaa_ray.serving.mixture import Patience, TooFewError, propose, stripped
from moaa_ray.types import Answer, Completion, Failure, Message, Row
from tests.serving.local import recipe, run

ROOM = Room(window=0, count_tokens=lambda messages: 1)
ROW = Row(id="r", source="s", messages=(Message(role="user", content="Q"),))


class Scripted:
    """Answers after so many seconds, or with a failure, by the model's name; remembers who was cancelled."""

    def __init__(self, **behaviour: float | str):
        self.behaviour = behaviour
        self.cancelled: list[str] = []
        self.seen: dict[str, Row] = {}

    async def answer(self, p: MixturePass, row: Row) -> dict[str, Answer]:
        self.seen[p.name] = row
        how = self.behaviour.get(p.engine, 0.0)
        if isinstance(how, str):
            return p.all_failed(row, Failure(reason=how))
        try:
            await asyncio.sleep(how)
        except asyncio.CancelledError:
            self.cancelled.append(p.engine)
            raise
        return {
            request.id: Completion(text=f"{p.name}!", finish_reason="stop", prompt_tokens=1, completion_tokens=2)
            for request in p.ask(row, ROOM)
        }

    def stream(self, p, row):
        raise NotImplementedError

    async def missing(self):
        return []


def passes(tmp_path, **data):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe(**data), "prompts": {"sources": [{"path": "x.jsonl"}]}}))
    return mixture_passes(load_recipe(path).recipe)


def proposed(models: Scripted, the_passes, *, timeout_s: float = 5.0, quorum: int | None = None):
    return run(propose(the_passes, ROW, models, Patience(timeout_s=timeout_s, quorum=quorum)))


def test_all_proposers_answer_and_nobody_is_missing(tmp_path):
    done = proposed(Scripted(), passes(tmp_path))
    assert (done.num_asked, done.missing) == (3, ())
    assert [done.row.answers[f"l0.{name}"][0].text for name in "abc"] == ["l0.a!", "l0.b!", "l0.c!"]


def test_proposers_answer_side_by_side(tmp_path):
    async def timed() -> float:
        began = asyncio.get_running_loop().time()
        await propose(passes(tmp_path), ROW, Scripted(a=0.1, b=0.1, c=0.1), Patience(timeout_s=5))
        return asyncio.get_running_loop().time() - began

    assert run(timed()) < 0.25


def test_a_failed_proposer_and_a_slow_one_are_left_out_and_named(tmp_path):
    models = Scripted(a="unavailable", b=9.0)
    done = proposed(models, passes(tmp_path), timeout_s=0.05)
    assert done.missing == (("l0.a", "unavailable"), ("l0.b", "timeout"))
    assert models.cancelled == ["b"]


def test_a_quorum_goes_on_at_once_and_cancels_the_slow_ones(tmp_path):
    models = Scripted(c=9.0)
    done = proposed(models, passes(tmp_path), quorum=2)
    assert done.missing == (("l0.c", "not_waited_for"),)
    assert models.cancelled == ["c"]


def test_failures_do_not_count_for_the_quorum(tmp_path):
    done = proposed(Scripted(a="refused", c=0.02), passes(tmp_path), quorum=2)
    assert done.missing == (("l0.a", "refused"),)


def test_too_few_proposals_end_the_request_with_the_reasons(tmp_path):
    models = Scripted(a="unavailable", b="auth")
    with pytest.raises(TooFewError, match=r"1 proposals of at least 2 \(l0.a: unavailable; l0.b: auth\)"):
        proposed(models, passes(tmp_path, mixture={"min_proposals": 2}))


def test_a_second_layer_sees_the_proposals_of_the_first(tmp_path):
    data = recipe()
    layers = [{**data["mixture"]["layers"][0], "repeat": 2}]
    models = Scripted(a="refused")
    done = proposed(models, passes(tmp_path, mixture={"layers": layers}))
    assert (done.num_asked, len(done.missing)) == (6, 2)
    seen = models.seen["l1.b"].answers
    assert seen["l0.b"][0].text == "l0.b!"
    assert isinstance(seen["l0.a"][0], Failure)


def test_who_is_cancelled_cancels_the_proposers(tmp_path):
    models = Scripted(a=9.0, b=9.0, c=9.0)

    async def cancel() -> None:
        task = asyncio.create_task(propose(passes(tmp_path), ROW, models, Patience(timeout_s=9)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)

    run(cancel())
    assert sorted(models.cancelled) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["  a", " ", "b", " \n"], ["a", " b"]),
        ([" ", "\n", "x"], ["x"]),
        (["a ", " ", "b"], ["a", "  b"]),
        ([" ", " "], []),
    ],
)
def test_a_stream_is_stripped_as_a_row_is(pieces, shown):
    text = "".join(pieces)

    async def source():
        for piece in pieces:
            yield piece
        yield Completion(text=text, finish_reason="stop", prompt_tokens=1, completion_tokens=1)

    async def read():
        return [piece async for piece in stripped(source())]

    *parts, last = run(read())
    assert parts == shown
    assert isinstance(last, Completion)
    assert last.text == text.strip() == "".join(parts)
