"""What the coordinator knows of a phase, told to Prometheus: the counts of the display, nothing counted anew."""

from collections import Counter

from moaa_ray import telemetry
from moaa_ray.generation.coordinator import PoolSnapshot, Snapshot
from moaa_ray.generation.progress import num_done
from moaa_ray.telemetry import Metric, Telemetry


def tell(told: Telemetry, snapshot: Snapshot, *, total: int) -> None:
    """Tell how a phase stands. total counts row-turns, as the display does."""
    told.show(telemetry.STAGE_ACTIVE, 1)
    told.show(telemetry.ROWS_LEFT, max(0, total - num_done(snapshot.statuses)))
    told.show(telemetry.BLOCKS_IN_LINE, snapshot.num_blocks_in_line)
    for status, num in snapshot.statuses.items():
        told.count(telemetry.ROWS, num, status=status)
    for code, num in _by_code(told, telemetry.ROW_FAILURES, snapshot.reasons).items():
        told.count(telemetry.ROW_FAILURES, num, reason=code)
    for pool in snapshot.pools:
        _tell_pool(told, pool)


def _tell_pool(told: Telemetry, pool: PoolSnapshot) -> None:
    stats, name = pool.stats, pool.name
    told.show(telemetry.OPEN_REQUESTS, sum(s.open_requests for s in stats), pool=name)
    told.show(telemetry.ENGINES_UP, sum(s.state == "up" for s in stats), pool=name)
    told.count(telemetry.CALLS, sum(s.calls for s in stats), pool=name)
    told.count(telemetry.PROMPT_TOKENS, sum(s.prompt_tokens for s in stats), pool=name)
    told.count(telemetry.COMPLETION_TOKENS, sum(s.completion_tokens for s in stats), pool=name)
    told.count(telemetry.BUSY_SECONDS, sum(s.busy_s for s in stats), pool=name)
    told.count(telemetry.UP_SECONDS, sum(s.up_s for s in stats), pool=name)
    told.count(telemetry.ENGINE_DEATHS, sum(s.deaths for s in stats) + pool.worker_deaths, pool=name)
    failures: Counter[str] = sum((s.failures for s in stats), Counter())
    for code, num in _by_code(told, telemetry.CALL_FAILURES, failures).items():
        told.count(telemetry.CALL_FAILURES, num, pool=name, reason=code)


def _by_code(told: Telemetry, metric: Metric, reasons: Counter[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for reason, num in reasons.items():
        found[told.code(metric, reason)] += num
    return found
