"""The pool worker by itself, with a coordinator that only listens. Whole lines on Ray stand in test_generate.py."""

import asyncio
import threading
from types import SimpleNamespace

from moaa_ray.generation import worker
from moaa_ray.generation.worker import PassWorker, PoolWork


class Done:
    """What a call returns: nothing, at once."""

    def __await__(self):
        return iter(())


class Listener:
    """Stands for the coordinator actor: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, method: str):
        def remote(*_args) -> Done:
            self.told.append(method)
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
