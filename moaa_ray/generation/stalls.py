"""When a line stands still for good, and when a worker of it hangs: decided from what is seen of it, by given times.

Every silence that is legal has an end or is known: an engine that starts says so, a request that is open has a limit,
a pool without a place waits for one. What is left is a fault of ours or of Ray, and asking once more mends it.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from moaa_ray.generation.coordinator import Snapshot
from moaa_ray.generation.host_stats import Pulse

_LONGEST_LOOK_S = 15.0
"""More than that between two looks is time in which the one who looks has slept too, and it counts as no more."""
_HEARD_WITHIN_S = 15.0
_STARTING = ("starting", "retrying")


class Stillness:
    """For how long nothing has moved: no row, no call, no engine that comes or goes."""

    def __init__(self) -> None:
        self._mark: Hashable = None
        self._moved_at = 0.0

    def note(self, snapshot: Snapshot | None, now: float) -> float:
        """Seconds since something was last seen to move; None: nothing could be seen."""
        mark = self._mark if snapshot is None else _mark(snapshot)
        if self._mark is None or mark != self._mark:
            self._mark = mark or ()
            self._moved_at = now
        return now - self._moved_at


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the watchdog saw: seconds without movement where these are too many, and workers that hang."""

    stalled_s: float = 0.0
    hung: tuple[Pulse, ...] = ()


class Watchdog:
    """Looks at a line again and again, and says when it stands still for good.

    A line is stalled when nothing has moved for restart_after_s in which no living worker said that its engine starts
    or tries to, and no pool waited for its first place. With requests open in a living worker it may take a whole
    request longer: each of them ends within request_timeout_s of the last movement, as none begins without one.
    A worker reports every second. It hangs when it has rows, said last that its engine is up, and has not been heard
    of for hang_after_s; it is named once. Times in seconds.
    """

    def __init__(self, *, restart_after_s: float, request_timeout_s: float, hang_after_s: float):
        self._restart_after_s = restart_after_s
        self._request_timeout_s = request_timeout_s
        self.hang_after_s = hang_after_s
        self._looked_at: float | None = None
        self._awake_s = 0.0
        self._still = Stillness()
        self._excused_at = 0.0
        self._heard: dict[tuple[str, int], tuple[int, float]] = {}
        self._named: set[tuple[str, int]] = set()

    def see(self, snapshot: Snapshot | None, now: float, *, is_placed: bool) -> Found:
        """One look. snapshot None: the coordinator did not answer; is_placed: every pool has had its least workers."""
        if self._looked_at is not None:
            self._awake_s += min(now - self._looked_at, _LONGEST_LOOK_S)
        self._looked_at = now
        pulses = [] if snapshot is None else [pulse for pool in snapshot.pools for pulse in pool.pulses]
        silent_s = {pulse: self._silent_s(pulse) for pulse in pulses}
        heard = [pulse for pulse in pulses if silent_s[pulse] < _HEARD_WITHIN_S]
        still_s = self._still.note(snapshot, self._awake_s)
        if (snapshot and not is_placed) or any(pulse.state.startswith(_STARTING) for pulse in heard):
            self._excused_at = self._awake_s
        still_s = min(still_s, self._awake_s - self._excused_at)
        is_asking = any(pulse.open_requests for pulse in heard)
        limit_s = self._restart_after_s + (self._request_timeout_s if is_asking else 0.0)
        return Found(
            stalled_s=still_s if still_s > limit_s else 0.0,
            hung=() if snapshot is None else tuple(p for p in pulses if self._hangs(p, silent_s[p])),
        )

    def _silent_s(self, pulse: Pulse) -> float:
        num_reports, heard_at = self._heard.get(pulse.life, (-1, 0.0))
        if pulse.num_reports != num_reports:
            heard_at = self._awake_s
            self._heard[pulse.life] = (pulse.num_reports, heard_at)
        return self._awake_s - heard_at

    def _hangs(self, pulse: Pulse, silent_s: float) -> bool:
        is_hung = pulse.state == "up" and pulse.num_rows > 0 and silent_s > self.hang_after_s
        if not is_hung or pulse.life in self._named:
            return False
        self._named.add(pulse.life)
        return True


def _mark(snapshot: Snapshot) -> Hashable:
    """Equal for two moments between which nothing moved."""
    pools = [
        (pool.rows_done, pool.num_workers, sum(s.calls + s.retries for s in pool.stats), *(s.state for s in pool.stats))
        for pool in snapshot.pools
    ]
    return sum(snapshot.statuses.values()), *pools
