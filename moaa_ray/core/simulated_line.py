"""One phase of a plan played through: what a pool's engines do with blocks, and how blocks go from pool to pool."""

from collections import deque
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import ceil
from random import Random

from moaa_ray.core.planning import PHASE_START_S, Phase, PlannedPool
from moaa_ray.core.ramp import LONGEST
from moaa_ray.core.seeds import seed_for
from moaa_ray.errors import ConfigError

HOP_S = 0.004
"""Seconds of the driver for one block in one pool: Ray Data takes about 17 ms for a block through four (performance.md
1.3)."""

_LOST, _BACK = -1, -2
"""Stand for a block in events that befall an engine."""

_MAX_REDONE = 100
"""Times that a pool may make every block again before the simulation gives up."""

_NUM_LENGTHS = 8192
"""Lengths are drawn once, and every pool goes through them from another place."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the plan does not say."""

    seed: int = 0
    length_sigma: float | None = None
    """Spread of the logarithm of answer lengths; 0: all alike; None: of every pool its own."""
    longest: float = LONGEST
    """Where max_tokens ends an answer, in mean lengths."""
    hours_between_losses: float | None = None
    """Mean hours until an engine is lost (its process, GPU or spot node); None: none is."""
    away_s: float = 60.0
    """Seconds until a lost engine is started again; it loads its weights anew."""


@dataclass(frozen=True, kw_only=True)
class SimulatedPool:
    """What one pool did."""

    name: str
    num_engines: int
    num_gpus: int  # of all its engines
    busy_fraction: float  # of its engines' slots, from the start of the phase to its end
    first_s: float  # its first block began, in seconds from the start of the run
    last_s: float  # its last block ended
    num_redone: int  # blocks that were lost with their engine and made again
    work: tuple[tuple[float, float, float], ...] = field(repr=False)
    """(began, ended, engine-seconds) of every block."""


@dataclass(frozen=True, kw_only=True)
class SimulatedPhase:
    """Pools that stood together."""

    start_s: float
    end_s: float
    pools: tuple[SimulatedPool, ...]


class _Pool:
    """One pool's engines, and the blocks that wait for them."""

    def __init__(self, planned: PlannedPool, conditions: Conditions, *, index: int, ready_s: float, block_rows: int):
        spec = planned.spec
        self.planned, self.spec, self.index = planned, spec, index
        self.waiting: deque[int] = deque()
        count = planned.replicas
        self.running = spec.running(count)
        self.slots = [[ready_s] * self.running for _ in range(count)]
        self.held: list[dict[int, tuple[float, float, float]]] = [{} for _ in range(count)]
        self.free = [(0, engine) for engine in range(count)]  # a heap, with entries that are out of date
        self.gone: set[int] = set()
        # More than once, so that the rows of any block are one slice.
        sigma = spec.length_sigma if conditions.length_sigma is None else conditions.length_sigma
        self.lengths = _slot_lengths(conditions, spec.slot_s(count), sigma) * (1 + ceil(block_rows / _NUM_LENGTHS))
        self.next_length = seed_for(conditions.seed, "pool", spec.name) % _NUM_LENGTHS
        self.work: list[tuple[float, float, float]] = []
        self.num_redone = 0

    def take(self) -> int | None:
        """The engine with the fewest blocks, if it is there and has room for one more."""
        while self.free:
            num, engine = self.free[0]
            if num == len(self.held[engine]) < self.planned.blocks_in_flight and engine not in self.gone:
                return engine
            heappop(self.free)
        return None

    def changed(self, engine: int) -> None:
        heappush(self.free, (len(self.held[engine]), engine))

    def begin(self, engine: int, block: int, num_rows: int, now: float) -> float:
        """Put a block's rows into the engine's slots, in order; when the last of them is done."""
        slots, lengths = self.slots[engine], self.lengths[self.next_length : self.next_length + num_rows]
        began, ended = max(now, slots[0]), now
        rows = iter(lengths)
        if slots[0] < now:
            for length in rows:
                end = now + length
                heapreplace(slots, end)
                if end > ended:
                    ended = end
                if slots[0] >= now:
                    break
        # The earliest slot only ever becomes later, so that from here on each row begins when a slot is free.
        for length in rows:
            end = slots[0] + length
            heapreplace(slots, end)
            if end > ended:
                ended = end
        self.next_length = (self.next_length + num_rows) % _NUM_LENGTHS
        self.held[engine][block] = (began, ended, sum(lengths) / self.running)
        return ended

    def finish(self, engine: int, block: int) -> None:
        self.work.append(self.held[engine].pop(block))
        self.changed(engine)

    def lose(self, engine: int, back_s: float) -> list[int]:
        """The engine is gone until back_s, and takes none before; its blocks, which are to be made again."""
        lost = list(self.held[engine])
        self.held[engine] = {}
        self.gone.add(engine)
        self.slots[engine] = [back_s] * self.running
        self.num_redone += len(lost)
        return lost

    def result(self, start_s: float, end_s: float) -> SimulatedPool:
        busy_s = sum(seconds for _, _, seconds in self.work)
        return SimulatedPool(
            name=self.spec.name,
            num_engines=self.planned.replicas,
            num_gpus=self.planned.replicas * self.spec.num_gpus,
            busy_fraction=busy_s / (self.planned.replicas * (end_s - start_s)) if end_s > start_s else 0.0,
            first_s=min(began for began, _, _ in self.work),
            last_s=max(ended for _, ended, _ in self.work),
            num_redone=self.num_redone,
            work=tuple(self.work),
        )


class SimulatedLine:
    """One phase: blocks are admitted as credits allow, go from pool to pool, and are committed at the end."""

    def __init__(self, phase: Phase, start_s: float, num_rows: int, conditions: Conditions, number: int):
        self.phase, self.start_s, self.conditions = phase, start_s, conditions
        up_s = start_s + PHASE_START_S
        self.pools = [
            _Pool(pool, conditions, index=i, ready_s=up_s + pool.spec.load_s, block_rows=phase.block_rows)
            for i, pool in enumerate(phase.pools)
        ]
        self.sizes = _block_sizes(num_rows, phase.block_rows)
        self.driver_free_s = up_s
        self.num_done = self.num_admitted = 0
        self.events: list[tuple[float, int, int, int]] = []  # (time, pool, engine, block, or what befalls the engine)
        self.losses = Random(seed_for(conditions.seed, "losses", number))
        if conditions.hours_between_losses:
            self.events = [
                (up_s + pool.spec.load_s + self._until_lost(), pool.index, engine, _LOST)
                for pool in self.pools
                for engine in range(pool.planned.replicas)
            ]
            heapify(self.events)

    def run(self) -> SimulatedPhase:
        """Until every block is committed."""
        now = self.driver_free_s
        self._admit(now)
        while self.num_done < len(self.sizes):
            now, index, engine, block = heappop(self.events)
            pool = self.pools[index]
            if block == _LOST:
                self._lose(pool, engine, now)
            elif block == _BACK:
                pool.gone.remove(engine)
                pool.changed(engine)
            elif pool.held[engine].get(block, (0.0, -1.0, 0.0))[1] != now:
                continue  # it was lost with its engine
            else:
                pool.finish(engine, block)
                self._pass_on(index + 1, block, now)
            self._dispatch(pool, now)
        return SimulatedPhase(
            start_s=self.start_s, end_s=now, pools=tuple(pool.result(self.start_s, now) for pool in self.pools)
        )

    def _lose(self, pool: _Pool, engine: int, now: float) -> None:
        back_s = now + self.conditions.away_s + pool.spec.load_s
        pool.waiting.extendleft(reversed(pool.lose(engine, back_s)))
        heappush(self.events, (back_s, pool.index, engine, _BACK))
        heappush(self.events, (back_s + self._until_lost(), pool.index, engine, _LOST))
        if pool.num_redone > _MAX_REDONE * len(self.sizes):
            raise ConfigError(
                f"hours_between_losses = {self.conditions.hours_between_losses:g}: {pool.spec.name} loses its engines "
                "before they can finish a block, so that no run would end; raise it, or make blocks smaller"
            )

    def _admit(self, now: float) -> None:
        while self.num_admitted < min(len(self.sizes), self.num_done + self.phase.credits):
            self.num_admitted += 1
            self._pass_on(0, self.num_admitted - 1, now)

    def _pass_on(self, index: int, block: int, now: float) -> None:
        if index == len(self.pools):
            self.num_done += 1
            self._admit(now)
            return
        self.pools[index].waiting.append(block)
        self._dispatch(self.pools[index], now)

    def _dispatch(self, pool: _Pool, now: float) -> None:
        while pool.waiting and (engine := pool.take()) is not None:
            block = pool.waiting.popleft()
            self.driver_free_s = max(self.driver_free_s, now) + HOP_S
            ended = pool.begin(engine, block, self.sizes[block], self.driver_free_s)
            heappush(self.events, (ended, pool.index, engine, block))
            pool.changed(engine)

    def _until_lost(self) -> float:
        return self.losses.expovariate(1.0) * 3600 * (self.conditions.hours_between_losses or 1)


def _block_sizes(num_rows: int, block_rows: int) -> list[int]:
    return [min(block_rows, num_rows - start) for start in range(0, num_rows, block_rows)]


def _slot_lengths(conditions: Conditions, mean_s: float, sigma: float) -> list[float]:
    """Seconds that rows hold a slot, of exactly this mean."""
    draws = Random(seed_for(conditions.seed, "lengths"))
    drawn = (draws.lognormvariate(-sigma * sigma / 2, sigma) for _ in range(_NUM_LENGTHS))
    lengths = [min(length, conditions.longest) for length in drawn]
    scale = mean_s * len(lengths) / sum(lengths)
    return [length * scale for length in lengths]
