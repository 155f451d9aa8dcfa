"""Functions as judges: what they are given, what becomes of their numbers, and which are refused."""

import asyncio
import sys
import threading

import pytest
from pydantic import ValidationError

from moaa_ray.engines.base import Engine, EngineDeadError, EngineStartError, RequestError
from moaa_ray.engines.build import build_engine
from moaa_ray.engines.rule import BUILT_IN
from moaa_ray.settings.models import BUILT_IN_RULES, RuleModel
from moaa_ray.types import Completion, Message, Request, Sampling

MODULE = """
import threading
import time

calls = []

def number(prompt, completion):
    calls.append((prompt, completion))
    return int(completion) + len(prompt)

def spoil(prompt, completion):
    prompt[0]["content"] = "spoiled"
    return 1.0

def thread(prompt, completion):
    time.sleep(0.005)
    calls.append(threading.get_ident())
    return 0.5

def infinite(prompt, completion):
    return float("inf")

def nothing(prompt, completion):
    return None

async def later(prompt, completion):
    return 1.0

answer = 42
"""


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """The module `my_rules` as the workers would find it."""
    (tmp_path / "my_rules.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_rules  # pyright: ignore

    yield my_rules
    del sys.modules["my_rules"]


def conversation(candidate: str, *, role: str = "assistant") -> Request:
    messages = (Message(role="user", content="How many is it?"), Message(role=role, content=candidate))
    return Request(id=candidate, row_id="r", messages=messages, sampling=Sampling(max_tokens=1), seed=1)


def scored(function: str, *requests: Request) -> list[Completion]:
    async def run() -> list[Completion]:
        engine = await started(function)
        try:
            return list(await asyncio.gather(*map(engine.generate, requests)))
        finally:
            await engine.stop()

    return asyncio.run(run())


async def started(function: str) -> Engine:
    engine = build_engine(RuleModel(engine="rule", function=function))
    await engine.start()
    return engine


def test_longest_and_shortest_count_characters():
    assert [c.text for c in scored("longest", conversation("four"), conversation("eleven"))] == ["4.0", "6.0"]
    assert [c.text for c in scored("shortest", conversation("four"), conversation("eleven"))] == ["-4.0", "-6.0"]


def test_the_built_in_rules_are_those_the_recipe_takes():
    assert set(BUILT_IN) == set(BUILT_IN_RULES)


def test_a_function_gets_the_prompt_and_the_completion(rules):
    [completion] = scored("my_rules:number", conversation("41"))
    assert rules.calls == [([Message(role="user", content="How many is it?")], "41")]
    assert completion == Completion(text="42.0", finish_reason="stop", prompt_tokens=5, completion_tokens=0)


def test_a_function_cannot_change_the_request(rules):
    request = conversation("x")
    scored("my_rules:spoil", request)
    assert request == conversation("x")


def test_functions_are_called_one_at_a_time_beside_the_event_loop(rules):
    assert len(scored("my_rules:thread", *map(conversation, "abcdef"))) == 6
    assert len(set(rules.calls)) == 1
    assert rules.calls[0] != threading.get_ident()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("my_rules:number", "my_rules:number raised ValueError: invalid literal for int"),
        ("my_rules:infinite", "my_rules:infinite gave inf, which cannot be compared"),
        ("my_rules:nothing", "raised TypeError"),
    ],
)
def test_an_exception_and_what_is_no_finite_number_fail_the_request_for_good(rules, function, said):
    with pytest.raises(RequestError, match="rule_error") as raised:
        scored(function, conversation("seven"))
    assert said in raised.value.detail
    assert raised.value.retryable is False


def test_a_conversation_must_end_with_the_completion_to_be_scored():
    with pytest.raises(RequestError, match=r"no_candidate: .* ends with user") as raised:
        scored("longest", conversation("Well?", role="user"))
    assert raised.value.retryable is False


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no_such_module:f", "cannot be imported .*no_such_module.* PYTHONPATH"),
        ("my_rules:missing", "cannot be imported .*missing"),
        ("my_rules:answer", "is of type int; name a plain function"),
        ("my_rules:later", "is a coroutine function; name a plain function"),
    ],
)
def test_what_cannot_be_imported_or_called_is_refused_at_the_start(rules, function, said):
    with pytest.raises(EngineStartError, match=f"function = {function}: {said}"):
        asyncio.run(started(function))


def test_a_module_that_raises_is_refused_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "broken_rules.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineStartError, match="ZeroDivisionError"):
        asyncio.run(started("broken_rules:f"))


def test_a_stopped_engine_answers_nothing():
    async def run() -> None:
        engine = await started("longest")
        await engine.stop()
        await engine.stop()
        await engine.generate(conversation("x"))

    with pytest.raises(EngineDeadError):
        asyncio.run(run())


@pytest.mark.parametrize("function", ["my_module:f", "a.b.c:f_1", "longest", "shortest"])
def test_names_of_functions_pass_and_stand_for_the_model(function):
    assert RuleModel(engine="rule", function=function).model == function


@pytest.mark.parametrize(
    "function", ["", "f", "widest", "m:", ":f", "m:f:g", "m.:f", "m:f()", "os.path", "m:1f", "m:f\n"]
)
def test_other_forms_of_a_function_are_refused_by_the_recipe(function):
    with pytest.raises(ValidationError, match=r"is not longest, shortest or of the form package.module:function"):
        RuleModel(engine="rule", function=function)
