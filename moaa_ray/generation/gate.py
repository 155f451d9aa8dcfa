"""A lock for two kinds of work: shared (many at once) and alone (one, with nothing else running)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Work that wants to be alone goes before shared work that has not begun."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._num_shared = 0
        self._num_want_alone = 0
        self._is_alone = False

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Run together with other shared work."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_alone and not self._num_want_alone)
            self._num_shared += 1
        try:
            yield
        finally:
            async with self._changed:
                self._num_shared -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Run with nothing else."""
        async with self._changed:
            self._num_want_alone += 1
            try:
                await self._changed.wait_for(lambda: not self._is_alone and not self._num_shared)
                self._is_alone = True
            finally:
                self._num_want_alone -= 1
                self._changed.notify_all()  # shared work waited for this one, which may have been cancelled
        try:
            yield
        finally:
            async with self._changed:
                self._is_alone = False
                self._changed.notify_all()
