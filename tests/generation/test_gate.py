import asyncio
from contextlib import asynccontextmanager

import pytest

from moaa_ray.generation.gate import Gate


class Log:
    """Work that writes down when it begins and ends, and ends when told."""

    def __init__(self):
        self.gate = Gate()
        self.lines: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    def start(self, name, kind) -> asyncio.Task:
        self._ends[name] = asyncio.Event()
        return asyncio.create_task(self._work(name, kind))

    def end(self, name):
        self._ends[name].set()

    async def _work(self, name, kind):
        async with self.gate.shared() if kind == "shared" else self.gate.alone():
            self.lines.append(f"{name} begins")
            await self._ends[name].wait()
            self.lines.append(f"{name} ends")


@asynccontextmanager
async def finished_at_last(*tasks):
    yield
    await asyncio.wait_for(asyncio.gather(*tasks), 2)


async def settle():
    """Let every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_shared_work_runs_together():
    async def main():
        log = Log()
        async with finished_at_last(log.start("a", "shared"), log.start("b", "shared")):
            await settle()
            assert log.lines == ["a begins", "b begins"]
            log.end("a")
            log.end("b")

    asyncio.run(main())


def test_work_alone_waits_for_shared_work_and_keeps_all_other_work_out():
    async def main():
        log = Log()
        tasks = [log.start("a", "shared"), log.start("x", "alone")]
        async with finished_at_last(*tasks):
            await settle()
            assert log.lines == ["a begins"]
            log.end("a")
            await settle()
            tasks += [log.start("b", "shared"), log.start("y", "alone")]
            await settle()
            assert log.lines == ["a begins", "a ends", "x begins"]
            for name in ("x", "y", "b"):
                log.end(name)
        await asyncio.wait_for(asyncio.gather(*tasks), 2)
        assert log.lines[3] == "x ends"

    asyncio.run(main())


def test_work_alone_goes_before_shared_work_that_came_later():
    async def main():
        log = Log()
        tasks = [log.start("a", "shared")]
        await settle()
        tasks.append(log.start("x", "alone"))
        await settle()
        tasks.append(log.start("b", "shared"))
        async with finished_at_last(*tasks):
            await settle()
            for name in ("a", "x", "b"):
                log.end(name)
        assert log.lines == ["a begins", "a ends", "x begins", "x ends", "b begins", "b ends"]

    asyncio.run(main())


def test_two_pieces_of_work_alone_come_one_after_the_other():
    async def main():
        log = Log()
        async with finished_at_last(log.start("x", "alone"), log.start("y", "alone")):
            await settle()
            assert log.lines == ["x begins"]
            log.end("x")
            await settle()
            assert log.lines == ["x begins", "x ends", "y begins"]
            log.end("y")

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["shared", "alone"])
def test_work_that_raises_lets_the_next_in(kind):
    async def main():
        gate = Gate()
        with pytest.raises(ValueError, match="broken"):
            async with gate.shared() if kind == "shared" else gate.alone():
                raise ValueError("broken")
        async with asyncio.timeout(2), gate.alone():
            pass
        async with asyncio.timeout(2), gate.shared():
            pass

    asyncio.run(main())


def test_work_that_is_cancelled_lets_the_next_in():
    async def main():
        log = Log()
        task = log.start("x", "alone")
        await settle()
        task.cancel()
        async with finished_at_last(log.start("a", "shared")):
            await settle()
            assert log.lines == ["x begins", "a begins"]
            log.end("a")

    asyncio.run(main())


def test_work_alone_that_is_cancelled_as_its_turn_comes_lets_shared_work_go_on():
    """b waits for y, then x wants to be alone; when y ends b looks first, waits for x, and x goes away."""

    async def main():
        gate = Gate()

        async def alone():
            async with gate.alone():
                pass

        async def shared():
            async with gate.shared():
                pass

        async with gate.alone():
            b = asyncio.create_task(shared())
            await settle()
            x = asyncio.create_task(alone())
            await settle()
        x.cancel()
        await asyncio.wait_for(b, 2)
        assert x.cancelled()

    asyncio.run(main())
