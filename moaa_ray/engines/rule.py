"""A Python function as a judge: the last message of a request is scored by code instead of a model.

For answers that can be checked (does the number match, do the tests pass) and for tests. A function that
the recipe names is the user's own code: `start` imports it and `generate` runs it, in the worker's process
and with its rights. Nothing is shut in, and nothing a model wrote is run unless the function does so.
"""

import asyncio
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from moaa_ray.engines.base import EngineDeadError, EngineStartError, RequestError
from moaa_ray.settings.models import RuleModel
from moaa_ray.types import Completion, Message, Request

Rule = Callable[[Sequence[Message], str], float]
"""(prompt, completion) -> score; the prompt is the conversation before the completion."""

BUILT_IN: Mapping[str, Rule] = {
    "longest": lambda prompt, completion: float(len(completion)),
    "shortest": lambda prompt, completion: -float(len(completion)),
}
"""By name; lengths are in characters."""


class RuleEngine:
    """One function. See base.Engine for the contract; the completion is the score as text, sampling does not matter.

    The function is called in a thread of its own, one call at a time, so it need not be thread-safe. One that
    never returns holds its thread until the worker ends.
    """

    def __init__(self, config: RuleModel):
        self._config = config
        self._rule: Rule | None = None
        self._thread: ThreadPoolExecutor | None = None
        self.max_attempts = config.max_attempts
        self.window = 0

    async def start(self) -> None:
        self._rule = await asyncio.to_thread(find_rule, self._config.function)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rule")

    async def generate(self, request: Request) -> Completion:
        if self._rule is None or self._thread is None:
            raise EngineDeadError("it is not started")
        prompt, candidate = split_candidate(request.messages)
        loop = asyncio.get_running_loop()
        score = await loop.run_in_executor(self._thread, self._score, self._rule, prompt, candidate)
        return Completion(
            text=repr(score),
            finish_reason="stop",
            prompt_tokens=self.count_tokens(request.messages),
            completion_tokens=0,
        )

    def _score(self, rule: Rule, prompt: Sequence[Message], candidate: str) -> float:
        copies = [message.copy() for message in prompt]  # what the function does to them stays with it
        try:
            score = float(rule(copies, candidate))
        except Exception as error:  # the user's code raises anything; it concerns this one request
            said = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            raise RequestError("rule_error", f"{self._config.function} raised {said}", retryable=False) from error
        if not math.isfinite(score):
            detail = f"{self._config.function} gave {score}, which cannot be compared"
            raise RequestError("rule_error", detail, retryable=False)
        return score

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Words, as a function knows no tokens; its window is without end."""
        return sum(len(message["content"].split()) for message in messages)

    async def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False, cancel_futures=True)


def split_candidate(messages: Sequence[Message]) -> tuple[Sequence[Message], str]:
    """(prompt, completion) of a conversation to be scored. Raises RequestError when it ends with something else."""
    if not messages or messages[-1]["role"] != "assistant":
        last = messages[-1]["role"] if messages else "nothing"
        detail = f"a judge of this kind scores the assistant message at the end, and the conversation ends with {last}"
        raise RequestError("no_candidate", detail, retryable=False)
    return messages[:-1], messages[-1]["content"]


def find_rule(function: str) -> Rule:
    """The function of that name. Raises EngineStartError when it cannot be imported or called."""
    if function in BUILT_IN:
        return BUILT_IN[function]
    module, _, name = function.partition(":")
    try:
        rule: Rule = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module is the user's own code and raises anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise EngineStartError(
            f"function = {function}: cannot be imported ({said}); correct the name, and see to it that the workers "
            "have the module: install it where they run, or put its folder on their PYTHONPATH"
        ) from error
    if not callable(rule) or inspect.iscoroutinefunction(rule):
        what = "a coroutine function" if callable(rule) else f"of type {type(rule).__name__}"
        raise EngineStartError(
            f"function = {function}: is {what}; name a plain function (prompt, completion) -> float instead"
        )
    return rule
