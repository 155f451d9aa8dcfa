"""The pool worker by itself, with a coordinator that only listens. Whole lines on Ray stand in test_generate.py."""

import asyncio
import threading
from types import SimpleNamespace

import pyarrow as pa

from moaa_ray.core.mixture import MixturePass, MixtureRules, Speaker
from moaa_ray.data import schemas
from moaa_ray.engines.base import EngineStartError
from moaa_ray.generation import worker
from moaa_ray.generation.host_stats import HostStats
from moaa_ray.generation.worker import PassWorker, PoolWork
from moaa_ray.types import Message, Row, Sampling


class Done:
    """What a call returns: nothing, at once."""

    def __await__(self):
        return iter(())


class Listener:
    """Stands for the coordinator actor: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.reports: list[HostStats] = []

    def __getattr__(self, method: str):
        def remote(*args) -> Done:
            self.told.append(method)
            self.reports += [one for one in args if method == "report" and isinstance(one, HostStats)]
            return Done()

        return SimpleNamespace(remote=remote)


class Engine:
    def __init__(self, is_up: threading.Event):
        self._is_up = is_up

    async def start(self) -> None:
        self._is_up.set()


def test_the_engine_starts_without_waiting_for_a_block(monkeypatch):
    """As Ray Data does it: the worker is made in a thread whose event loop then runs all calls."""
    here = SimpleNamespace(get_actor_id=lambda: "a", get_node_id=lambda: "n", get_worker_id=lambda: "w")
    monkeypatch.setattr(worker.ray, "get_runtime_context", lambda: here)
    is_up, listener = threading.Event(), Listener()
    work = PoolWork(
        name="l0.a",
        passes=(),
        make_engine=lambda: Engine(is_up),  # pyright: ignore[reportArgumentType]: it is only started
        request_timeout_s=60,
        hang_after_s=60,
        num_slots=1,
        on_missing="fail",
    )
    loops: list[asyncio.AbstractEventLoop] = []

    def actor() -> None:
        PassWorker(work, listener, None, None)
        loops.append(asyncio.get_event_loop())
        loops[0].run_forever()

    thread = threading.Thread(target=actor, daemon=True)
    thread.start()
    assert is_up.wait(10)
    loops[0].call_soon_threadsafe(loops[0].stop)
    thread.join(10)
    assert listener.told[:2] == ["placed", "join"]


def test_without_an_engine_every_request_is_counted_as_one_that_failed(monkeypatch):
    """Two rows, of which a pool asks two samples and one: six failures."""
    here = SimpleNamespace(get_actor_id=lambda: "a", get_node_id=lambda: "n", get_worker_id=lambda: "w")
    monkeypatch.setattr(worker.ray, "get_runtime_context", lambda: here)

    class Missing(Engine):
        async def start(self) -> None:
            raise EngineStartError("no such model")

    passes = tuple(
        MixturePass(
            name=f"l0.{name}",
            engine="m",
            speaker=Speaker(proposer=name, model="m", revision="", layer=0),
            sampling=Sampling(max_tokens=8),
            rules=MixtureRules(run_seed=0),
            num_samples=num_samples,
        )
        for name, num_samples in (("twice", 2), ("once", 1))
    )
    work = PoolWork(
        name="l0.twice+l0.once",
        passes=passes,
        make_engine=lambda: Missing(threading.Event()),  # pyright: ignore[reportArgumentType]: it is only started
        request_timeout_s=60,
        hang_after_s=60,
        num_slots=1,
        on_missing="continue",
    )
    names = [p.name for p in passes]
    rows = [Row(id=i, source="s", messages=(Message(role="user", content="q"),)) for i in "ab"]
    records = [schemas.row_record(row, pass_names=names) for row in rows]
    block = pa.Table.from_pylist(records, schema=schemas.work_schema(names))
    listener = Listener()
    pool = PassWorker(work, listener, None, None)
    loop = asyncio.get_event_loop()
    assert loop.run_until_complete(pool(block)).num_rows == 2
    assert listener.reports[-1].failures == {"engine_missing": 6}
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
