import asyncio
import math
import selectors

import pytest

from moaa_ray.core.passes import CannotAskError
from moaa_ray.engines.base import EngineDeadError, EngineStartError, RequestError
from moaa_ray.generation.engine_host import EngineDiedError, EngineHost, EngineMissingError
from moaa_ray.types import Completion, Failure, Message, Request, Sampling


class ScriptedEngine:
    """Does what stands in the user's text: "error", "refuse", "die", "die late", "wait", "wait a little", or answers.

    "flaky" is an error twice, and then answered. It writes what happens to it into a log that all engines of a test
    share. Unlike FakeEngine it lets its other requests hang when it dies.
    """

    window = 100

    def __init__(self, log: list[str], *, start_errors=(), max_attempts: int = 1):
        self._log = log
        self._start_errors = start_errors
        self.max_attempts = max_attempts
        self.asked: list[Request] = []

    async def start(self):
        self._log.append("start")
        await asyncio.sleep(0)
        if self._start_errors:
            raise self._start_errors.pop(0)

    async def generate(self, request: Request) -> Completion:
        text = request.messages[-1]["content"]
        self.asked.append(request)
        match text:
            case "flaky" if len(self.asked) > 2:
                pass
            case "error" | "flaky":
                raise RequestError("too_busy", "try later", retryable=True)
            case "refuse":
                raise RequestError("bad_request", "no", retryable=False)
            case "die":
                raise EngineDeadError("out of memory")
            case "die late":
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    raise EngineDeadError("told of its end only now") from None
            case "swallow":
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    raise RequestError("aborted", retryable=True) from None
            case "wait":
                await asyncio.sleep(30)
            case "wait a little":
                await asyncio.sleep(0.05)
        return Completion(text=f"re: {text}", finish_reason="stop", prompt_tokens=7, completion_tokens=2, flags=("e",))

    def count_tokens(self, messages) -> int:
        if messages[-1]["content"] == "refuse":
            raise RequestError("template", "roles must alternate", retryable=False)
        return 7

    async def stop(self):
        self._log.append("stop")


class Deaths:
    """The on_death of a host; notes each call in the log."""

    def __init__(self, log):
        self._log = log

    async def __call__(self):
        self._log.append("death told")
        await asyncio.sleep(0)


def make_host(
    log, *, timeout_s=20.0, hang_after_s=20.0, keep_trying=False, start_errors=(), max_attempts=1
) -> EngineHost:
    errors = list(start_errors)
    return EngineHost(
        lambda: ScriptedEngine(log, start_errors=errors, max_attempts=max_attempts),
        on_death=Deaths(log),
        request_timeout_s=timeout_s,
        hang_after_s=hang_after_s,
        keep_trying=keep_trying,
        num_slots=2,
    )


def test_a_request_may_wait_for_its_turn_at_an_engine_that_bounds_its_requests_itself():
    async def run():
        host = make_host([], timeout_s=0.01, hang_after_s=math.inf)
        await host.ready()
        answer = await host.answer(ask("wait a little"))
        await host.stop()
        return answer

    assert isinstance(asyncio.run(run()), Completion)


def ask(text, *, flags=()) -> Request:
    messages = (Message(role="user", content=text),)
    return Request(id=text, row_id="r1", messages=messages, sampling=Sampling(max_tokens=8), seed=0, flags=flags)


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose sleeps take no time: when nothing is ready its clock jumps to what comes next."""

    def __init__(self):
        self.skipped_s = 0.0
        super().__init__(_SkippingSelector(self))

    def time(self) -> float:
        return super().time() + self.skipped_s


class _SkippingSelector(selectors.SelectSelector):
    def __init__(self, loop: SkippingLoop):
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        if timeout:
            self._loop.skipped_s += timeout
        return super().select(0)


def run_skipping(main) -> float:
    """Run it without waiting; the seconds that its sleeps would have taken."""
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(main)
        loop = runner.get_loop()
        assert isinstance(loop, SkippingLoop)
        return loop.skipped_s


async def started(tasks):
    """Let tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)
    return tasks


def test_a_request_is_answered_and_its_own_flags_come_first():
    async def main():
        host = make_host([])
        await host.ready()
        answer = await host.answer(ask("Hi", flags=("proposals_cut",)))
        assert answer == Completion(
            text="re: Hi", finish_reason="stop", prompt_tokens=7, completion_tokens=2, flags=("proposals_cut", "e")
        )
        unflagged = await host.answer(ask("Hi"))
        assert isinstance(unflagged, Completion)
        assert unflagged.flags == ("e",)
        assert (host.window, host.count_tokens([Message(role="user", content="Hi")])) == (100, 7)
        await host.stop()

    asyncio.run(main())


def test_a_request_error_is_a_failure_with_its_reason():
    async def main():
        host = make_host([])
        await host.ready()
        assert await host.answer(ask("error")) == Failure(reason="too_busy", detail="try later", retryable=True)
        assert await host.answer(ask("refuse")) == Failure(reason="bad_request", detail="no", retryable=False)
        await host.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "max_attempts", "num_asked", "failures"),
    [
        ("flaky", 3, 3, {}),
        ("flaky", 2, 2, {"too_busy": 1}),
        ("error", 3, 3, {"too_busy": 1}),
        ("error", 1, 1, {"too_busy": 1}),
        ("refuse", 3, 1, {"bad_request": 1}),
        ("wait", 3, 1, {"timeout": 1}),
    ],
)
def test_what_may_pass_away_is_asked_again_as_it_was_and_counts_as_one_call(text, max_attempts, num_asked, failures):
    engines = []

    async def main():
        host = make_host([], timeout_s=5.0, max_attempts=max_attempts)
        await host.ready()
        engines.append(host._engine)
        assert isinstance(await host.answer(ask(text)), Failure if failures else Completion)
        assert (host.stats().calls, host.stats().failures, host.stats().retries) == (1, failures, num_asked - 1)
        await host.stop()

    skipped_s = run_skipping(main())
    assert engines[0].asked == [ask(text)] * num_asked
    if num_asked == 3:
        assert 0.75 < skipped_s < 2  # 0.5 and 1 s, each less up to half


def test_what_waits_to_be_tried_again_hears_of_the_death_too():
    """Not so, it would be with the next engine, and nobody would know that it was with the one that died."""

    async def main():
        host = make_host([], max_attempts=3)
        await host.ready()
        waiting = await started(asyncio.create_task(host.answer(ask("error"))))
        assert host.stats().open_requests == 0
        with pytest.raises(EngineDiedError):
            await host.answer(ask("die"))
        await host.ready(after=1)
        with pytest.raises(EngineDiedError) as died:
            await waiting
        assert died.value.generation == 1
        await host.stop()

    run_skipping(main())


def test_a_completion_without_text_is_counted_as_the_failure_that_it_will_be():
    async def main():
        host = make_host([])
        await host.ready()
        host._engine.generate = nothing_said  # pyright: ignore
        await host.answer(ask("Hi"))
        stats = host.stats()
        assert (stats.calls, stats.failures, stats.prompt_tokens) == (1, {"empty": 1}, 7)
        await host.stop()

    asyncio.run(main())


async def nothing_said(_request) -> Completion:
    return Completion(text=" \n", finish_reason="stop", prompt_tokens=7, completion_tokens=1)


def test_a_request_that_takes_too_long_is_a_failure_and_the_engine_lives_on():
    async def main():
        log = []
        host = make_host(log, timeout_s=0.02)
        await host.ready()
        answer = await host.answer(ask("wait"))
        assert isinstance(answer, Failure)
        assert (answer.reason, answer.retryable) == ("timeout", True)
        assert isinstance(await host.answer(ask("Hi")), Completion)
        await host.stop()
        assert log == ["start", "stop"]

    asyncio.run(main())


def test_a_prompt_that_cannot_be_counted_cannot_be_asked():
    """The passes count tokens while they build a prompt; a template's refusal there costs the row, not the worker."""

    async def main():
        host = make_host([])
        await host.ready()
        with pytest.raises(CannotAskError) as caught:
            host.count_tokens([Message(role="user", content="refuse")])
        assert caught.value.failure == Failure(reason="template", detail="roles must alternate", retryable=False)
        await host.stop()

    asyncio.run(main())


def test_all_that_were_with_a_dead_engine_hear_of_it_and_one_start_serves_them_all():
    async def main():
        log = []
        host = make_host(log)
        await host.ready()
        waiting = [asyncio.create_task(host.answer(ask("wait"))) for _ in range(5)]
        await started(waiting)
        told = await asyncio.gather(host.answer(ask("die")), *waiting, return_exceptions=True)
        assert [e.generation for e in told if isinstance(e, EngineDiedError)] == [1] * 6
        assert [task.cancelling() for task in waiting] == [0] * 5
        await asyncio.gather(*(host.ready(after=1) for _ in range(6)))
        assert log == ["start", "death told", "stop", "start"]
        assert host.generation == 2
        assert isinstance(await host.answer(ask("Hi")), Completion)
        assert host.stats().deaths == 1
        await host.stop()

    asyncio.run(main())


def test_nothing_is_asked_of_a_dead_engine_nor_of_none():
    """Rows that come while the engine is being restarted hear of the death too, and wait for the next one."""

    async def main():
        host = make_host([])
        messages = [Message(role="user", content="Hi")]
        for how in ("is gone", "died"):
            with pytest.raises(EngineDiedError, match=how):
                await host.answer(ask("Hi"))
            with pytest.raises(EngineDiedError, match=how):
                _ = host.window
            with pytest.raises(EngineDiedError, match=how):
                host.count_tokens(messages)
            if how == "is gone":
                await host.ready()
                with pytest.raises(EngineDiedError):
                    await host.answer(ask("die"))
        await host.ready(after=1)
        assert host.window == 100
        await host.stop()

    asyncio.run(main())


def test_late_news_of_an_old_engines_death_leaves_the_new_engine_alone():
    """The request ends with EngineDeadError only when it is cancelled, and by then engine 2 may run."""

    async def main():
        log = []
        host = make_host(log)
        await host.ready()
        late = asyncio.create_task(host.answer(ask("die late")))
        await started([late])
        with pytest.raises(EngineDiedError):
            await host.answer(ask("die"))
        await host.ready(after=1)
        late.cancel()
        with pytest.raises((EngineDiedError, asyncio.CancelledError)):
            await late
        assert isinstance(await host.answer(ask("Hi")), Completion)
        assert log == ["start", "death told", "stop", "start"]
        await host.stop()

    asyncio.run(main())


def test_a_hang_is_a_death_for_all_open_requests_and_cancels_nobody():
    async def main():
        log = []
        host = make_host(log, hang_after_s=0.02, timeout_s=5.0)
        await host.ready()
        tasks = [asyncio.create_task(host.answer(ask(text))) for text in ("wait", "wait", "swallow")]
        told = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 2)
        assert [type(one) for one in told] == [EngineDiedError, EngineDiedError, Failure]
        assert "hung: nothing answered" in str(told[0])
        assert [task.cancelling() for task in tasks] == [0, 0, 0]
        await host.ready(after=1)
        assert isinstance(await host.answer(ask("Hi")), Completion)
        await host.stop()

    asyncio.run(main())


def test_the_hang_limit_is_patient_at_first_and_then_follows_the_engines_own_latencies():
    """10 x 0.5 s before 20 answers are there; after 20 answers of next to nothing only the 0.5 s are left."""

    async def main():
        host = make_host([], hang_after_s=0.5, timeout_s=20.0)
        await host.ready()
        assert host.patience.limit_s == 5.0
        for _ in range(20):
            await host.answer(ask("Hi"))
        assert host.patience.limit_s == 0.5
        await host.stop()

    asyncio.run(main())


def test_an_engine_that_goes_on_answering_does_not_hang():
    """One request waits for longer than the limit while others end every 50 ms."""

    async def main():
        host = make_host([], hang_after_s=0.03, timeout_s=0.4)
        await host.ready()
        slow = asyncio.create_task(host.answer(ask("wait")))
        for _ in range(9):
            assert isinstance(await host.answer(ask("wait a little")), Completion)
        answer = await slow
        assert isinstance(answer, Failure)
        assert answer.reason == "timeout"
        assert host.stats().deaths == 0
        await host.stop()

    asyncio.run(main())


def test_a_cancellation_from_outside_stays_one():
    async def main():
        host = make_host([])
        await host.ready()
        task = asyncio.create_task(host.answer(ask("wait")))
        await started([task])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert host.stats().open_requests == 0
        assert isinstance(await host.answer(ask("Hi")), Completion)
        await host.stop()

    asyncio.run(main())


def test_a_cancellation_from_outside_stays_one_when_the_engine_dies_at_the_same_time():
    async def main():
        host = make_host([])
        await host.ready()
        task = asyncio.create_task(host.answer(ask("wait")))
        await started([task])
        with pytest.raises(EngineDiedError):
            await host.answer(ask("die"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await host.stop()

    asyncio.run(main())


def test_an_engine_that_can_never_start_is_missing_at_once():
    async def main():
        log = []
        host = make_host(log, start_errors=[EngineStartError("no such model; check its name")])
        with pytest.raises(EngineMissingError, match="no such model; check its name"):
            await host.ready()
        with pytest.raises(EngineMissingError, match="no such model"):
            await host.ready()
        assert log == ["start", "stop"]
        assert host.stats().state == "missing"

    assert run_skipping(main()) < 1


def test_any_other_trouble_at_the_start_is_tried_once_more():
    async def main():
        log = []
        host = make_host(log, start_errors=[OSError("port taken")])
        await host.ready()
        assert log == ["start", "stop", "start"]
        assert host.stats().state == "up"
        await host.stop()

    assert run_skipping(main()) == pytest.approx(2, abs=0.1)


def test_trouble_at_the_start_twice_is_a_missing_engine():
    async def main():
        log = []
        host = make_host(log, start_errors=[OSError("port taken"), RuntimeError("CUDA:\n  out of memory")])
        with pytest.raises(EngineMissingError, match="RuntimeError: CUDA: out of memory"):
            await host.ready()
        assert log == ["start", "stop"] * 2

    run_skipping(main())


def test_a_host_that_keeps_trying_outlasts_any_number_of_failed_starts():
    """Pauses of 2, 4, 8, 16, 32 and then 60 s: 62 + 1095 * 60 = 65762 s, about 18 hours."""

    async def main():
        log = []
        errors = [EngineStartError("no GPU yet"), *(OSError("no GPU yet") for _ in range(1099))]
        host = make_host(log, keep_trying=True, start_errors=errors)
        await host.ready()
        assert log.count("start") == 1101
        await host.stop()

    assert run_skipping(main()) == pytest.approx(65762, abs=1)


def test_an_engine_that_only_dies_is_given_up_after_twenty_one_deaths():
    async def main():
        log = []
        host = make_host(log)
        await host.ready()
        for generation in range(1, 21):
            with pytest.raises(EngineDiedError):
                await host.answer(ask("die"))
            await host.ready(after=generation)
        with pytest.raises(EngineDiedError):
            await host.answer(ask("die"))
        with pytest.raises(EngineMissingError, match="died 21 times without one answer between"):
            await host.ready(after=21)
        with pytest.raises(EngineMissingError, match="21 times"):
            await host.ready()
        assert (log.count("start"), log.count("death told"), log.count("stop")) == (21, 21, 21)
        assert host.stats().state == "missing"

    asyncio.run(main())


def test_an_answer_between_deaths_starts_the_count_anew():
    async def main():
        host = make_host([])
        await host.ready()
        for generation in range(1, 26):
            await host.answer(ask("Hi"))
            with pytest.raises(EngineDiedError):
                await host.answer(ask("die"))
            await host.ready(after=generation)
        assert host.stats().deaths == 25
        await host.stop()

    asyncio.run(main())


def test_stats_count_calls_tokens_failures_and_time():
    """Two answers of 7 + 2 tokens, two failures; two requests at once for 50 ms are 50 ms busy, not 100."""

    async def main():
        host = make_host([])
        assert host.stats().state == "waiting"
        await host.ready()
        await asyncio.gather(host.answer(ask("wait a little")), host.answer(ask("wait a little")))
        await host.answer(ask("error"))
        await host.answer(ask("refuse"))
        await asyncio.sleep(0.05)
        stats = host.stats()
        assert (stats.calls, stats.prompt_tokens, stats.completion_tokens) == (4, 14, 4)
        assert stats.failures == {"too_busy": 1, "bad_request": 1}
        assert stats.open_requests == 0
        assert 0.045 < stats.busy_s < stats.up_s - 0.045
        assert 1.8 * stats.busy_s < stats.slot_s <= 2 * stats.busy_s
        assert stats.num_starts == 1
        stats.failures["mine"] += 1
        assert "mine" not in host.stats().failures
        await host.stop()
        assert host.stats().up_s >= stats.up_s

    asyncio.run(main())


def test_open_requests_are_in_the_stats_while_they_run():
    async def main():
        host = make_host([])
        await host.ready()
        task = asyncio.create_task(host.answer(ask("wait")))
        await asyncio.sleep(0.02)
        stats = host.stats()
        assert stats.open_requests == 1
        assert stats.busy_s >= 0.015
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await host.stop()

    asyncio.run(main())
