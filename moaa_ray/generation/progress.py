"""What a stage looks like while it runs: a table that refreshes on a terminal, a few plain lines in a log file."""

import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from moaa_ray.generation.coordinator import PoolSnapshot, Snapshot
from moaa_ray.generation.host_stats import GONE
from moaa_ray.generation.stalls import Stillness

_LOG_EVERY_S = 15.0
_RATE_WINDOW_S = 30.0
_START_PATIENCE = 5


class Progress:
    """Shows snapshots of a phase. total counts row-turns: every row once for each of its user turns."""

    def __init__(self, *, title: str, total: int, warn_after_s: float, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False)
        self._title = title
        self._total = total
        self._warn_after_s = warn_after_s
        self._began = time.monotonic()
        self._last_log = 0.0
        self._still = Stillness()
        self._warned_at = 0.0
        self._history: list[tuple[float, int, dict[str, int]]] = []
        self.worked: tuple[float, float] | None = None
        """Unix times at which rows were first and last seen to move."""
        is_live = self._console.is_terminal
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if is_live else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Draw the present state; a log gets a line every quarter of a minute."""
        now = time.monotonic()
        done = num_done(snapshot.statuses)
        moved = {pool.name: pool.rows_done + sum(s.calls for s in pool.stats) for pool in snapshot.pools}
        if any(moved.values()) and (not self._history or self._history[-1][1:] != (done, moved)):
            self.worked = (self.worked[0] if self.worked else time.time(), time.time())
        self._history.append((now, done, moved))
        self._history = [entry for entry in self._history if entry[0] > now - _RATE_WINDOW_S]
        if self._live:
            self._live.update(self._table(snapshot, done, now), refresh=True)
        elif now - self._last_log >= _LOG_EVERY_S:
            self._last_log = now
            self._console.print(self._line(snapshot, done, now), soft_wrap=True)
        self._warn(snapshot, now, still_s=self._still.note(snapshot, now))

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, soft_wrap=True)

    def describe(self, snapshot: Snapshot) -> str:
        """The present state in one line."""
        return self._line(snapshot, num_done(snapshot.statuses), time.monotonic())

    def _warn(self, snapshot: Snapshot, now: float, *, still_s: float) -> None:
        is_starting = any(stats.state == "starting" for pool in snapshot.pools for stats in pool.stats)
        limit_s = self._warn_after_s * (_START_PATIENCE if is_starting else 1)
        if still_s < limit_s or now - self._warned_at < self._warn_after_s:
            return
        self._warned_at = now
        self.note(f"nothing has moved for {still_s:.0f} s: {diagnosis(snapshot)}")

    def _line(self, snapshot: Snapshot, done: int, now: float) -> str:
        pools = ", ".join(f"{p.name} {p.rows_done} ({pool_state(p)})" for p in snapshot.pools)
        return f"{self._head(snapshot, done, now)} | {pools}"

    def _head(self, snapshot: Snapshot, done: int, now: float) -> str:
        rate = self._rate(done, now)
        left = f"{duration((self._total - done) / rate)} left" if rate > 0 else "time left unknown"
        bad = {s: n for s, n in snapshot.statuses.items() if s in ("failed", "quarantined", "dropped") and n}
        trouble = ", ".join(f"{n} {status}" for status, n in sorted(bad.items())) or "no failures"
        return f"{self._title} {done}/{self._total} rows, {rate:.1f} rows/s, {left}, {trouble}"

    def _rate(self, done: int, now: float) -> float:
        if not self._history:  # asked for before anything was shown
            return 0.0
        began, first, _ = self._history[0]
        if now - began < 5:
            began, first = self._began, 0
        return (done - first) / max(now - began, 1e-6)

    def _table(self, snapshot: Snapshot, done: int, now: float) -> Table:
        table = Table(title=self._head(snapshot, done, now), title_justify="left", box=None, pad_edge=False)
        for column in ("pool", "rows", "tokens/s", "busy", "open", "failed", "engines"):
            table.add_column(column, justify="left" if column in ("pool", "engines") else "right")
        for pool in snapshot.pools:
            busy = busy_fraction(pool)
            failed = sum(sum(stats.failures.values()) for stats in pool.stats)
            tokens = sum(stats.completion_tokens for stats in pool.stats)
            up_s = sum(stats.up_s for stats in pool.stats) / max(1, pool.num_workers)
            table.add_row(
                pool.name,
                f"{pool.rows_done:,}",
                f"{tokens / up_s:,.0f}" if up_s > 1 else "-",
                f"{busy:.0%}",
                f"{sum(stats.open_requests for stats in pool.stats)}",
                f"{failed}",
                pool_state(pool),
            )
        return table


def num_done(statuses: Mapping[str, int]) -> int:
    """Row-turns that are committed."""
    return sum(statuses.values())


def busy_fraction(pool: PoolSnapshot) -> float:
    """Part of its engines' lifetime in which they had at least one request."""
    return sum(stats.busy_s for stats in pool.stats) / max(1e-9, sum(stats.up_s for stats in pool.stats))


def pool_state(pool: PoolSnapshot) -> str:
    """The engines of a pool in a few words."""
    states = Counter(stats.state for stats in pool.stats if stats.state != GONE)
    if not states:
        return "waiting for its first block" if pool.num_workers else "waiting for GPUs or CPUs"
    text = ", ".join(f"{n} {state}" if n > 1 else state for state, n in states.most_common())
    deaths = sum(stats.deaths for stats in pool.stats) + pool.worker_deaths
    return text + (f", {deaths} deaths" if deaths else "")


def diagnosis(snapshot: Snapshot) -> str:
    """Which pool waits on what, in line order."""
    told = []
    for pool in snapshot.pools:
        open_requests = sum(stats.open_requests for stats in pool.stats)
        told.append(f"{pool.name}: {pool_state(pool)}, {open_requests} requests open, last row {pool.idle_s:.0f} s ago")
    return f"{snapshot.num_blocks_in_line} blocks ({snapshot.num_rows_in_line} rows) are in the line; " + "; ".join(
        told
    )


def duration(seconds: float) -> str:
    """Seconds in words short enough for a status line."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
