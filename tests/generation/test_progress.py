import asyncio
import io
import re
from collections import Counter
from types import SimpleNamespace

from rich.console import Console

from moaa_ray.core.admission import WorkBlock
from moaa_ray.generation.coordinator import Coordinator, PoolSnapshot, Snapshot
from moaa_ray.generation.host_stats import HostStats
from moaa_ray.generation.progress import Progress, busy_fraction, diagnosis, duration, num_done, pool_state


def pool(name="l0.a", *, stats=(), rows_done=0, worker_deaths=0, num_workers=1, idle_s=0.0, pulses=()) -> PoolSnapshot:
    return PoolSnapshot(
        name=name,
        rows_done=rows_done,
        stats=list(stats),
        worker_deaths=worker_deaths,
        num_workers=num_workers,
        idle_s=idle_s,
        pulses=list(pulses),
    )


def snapshot(*pools, statuses=None, blocks=0, rows=0) -> Snapshot:
    return Snapshot(
        pools=list(pools),
        statuses=Counter(statuses or {}),
        reasons=Counter(),
        num_blocks_in_line=blocks,
        num_rows_in_line=rows,
        max_blocks_in_line=blocks,
        stop_reason="",
    )


def shown(*snapshots, total=100, warn_after_s=60.0, is_terminal=False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=160, color_system=None)
    with Progress(title="generate", total=total, warn_after_s=warn_after_s, console=console) as progress:
        for one in snapshots:
            progress.show(one)
    return out.getvalue()


def test_a_log_line_says_how_far_every_pool_is_and_what_has_failed():
    up = HostStats(state="up")
    line = shown(
        snapshot(
            pool("l0.a", stats=[up], rows_done=30),
            pool("aggregate", num_workers=0),
            statuses={"ok": 20, "failed": 2, "quarantined": 1, "open": 5},
        )
    )
    assert re.fullmatch(
        r"generate 28/100 rows, [\d.]+ rows/s, \d+s left, 2 failed, 1 quarantined \| "
        r"l0.a 30 \(up\), aggregate 0 \(waiting for GPUs or CPUs\)\n",
        line,
    )


def test_before_the_first_row_the_time_left_is_unknown():
    assert shown(snapshot(pool())).startswith("generate 0/100 rows, 0.0 rows/s, time left unknown, no failures | ")


def test_a_log_gets_no_second_line_at_once():
    assert shown(*[snapshot(pool(), statuses={"ok": n}) for n in range(5)]).count("\n") == 1


def test_a_terminal_gets_a_table_with_rates():
    """Two engines, 10 s up each, one busy half the time: 300 tokens in 10 s are 30 tokens/s, 15 of 20 s are 75 %."""
    stats = [
        HostStats(state="up", completion_tokens=200, busy_s=10, up_s=10, open_requests=3, failures=Counter(timeout=2)),
        HostStats(state="up", completion_tokens=100, busy_s=5, up_s=10, open_requests=1),
    ]
    text = shown(snapshot(pool("l0.a", stats=stats, rows_done=1234, num_workers=2)), is_terminal=True)
    assert re.search(r"pool +rows +tokens/s +busy +open +failed +engines", text)
    assert re.search(r"l0\.a +1,234 +30 +75% +4 +2 +2 up", text)


def test_a_line_that_stands_still_is_reported_with_what_each_pool_waits_on():
    still = snapshot(pool("l0.a", stats=[HostStats(state="up", open_requests=7)], idle_s=90), blocks=2, rows=32)
    text = shown(still, still, warn_after_s=0.0)
    assert (
        "nothing has moved for 0 s: 2 blocks (32 rows) are in the line; l0.a: up, 7 requests open, last row 90 s ago\n"
    ) in text
    assert "nothing has moved" not in shown(still, still, warn_after_s=60.0)


def test_the_diagnosis_names_the_pools_in_line_order():
    text = diagnosis(
        snapshot(
            pool("l0.a", stats=[HostStats(state="starting")], idle_s=12.4),
            pool("l0.b", idle_s=12.4),
            pool("aggregate", num_workers=0, idle_s=12.4),
            blocks=3,
            rows=48,
        )
    )
    assert text == (
        "3 blocks (48 rows) are in the line; l0.a: starting, 0 requests open, last row 12 s ago; "
        "l0.b: waiting for its first block, 0 requests open, last row 12 s ago; "
        "aggregate: waiting for GPUs or CPUs, 0 requests open, last row 12 s ago"
    )


def test_a_pools_state_counts_its_engines_and_their_deaths():
    stats = [HostStats(state="up", deaths=2), HostStats(state="up"), HostStats(state="retrying: no GPU")]
    assert pool_state(pool(stats=stats, worker_deaths=1)) == "2 up, retrying: no GPU, 3 deaths"


def test_an_engine_that_went_with_its_worker_is_none_of_the_pool_s_and_its_counts_stay():
    coordinator = Coordinator([], pool_names=["p"], num_credits=1, block_rows=1, max_failed=0, stage="generate")

    async def restarted() -> PoolSnapshot:
        await coordinator.placed("p", "actor")
        await coordinator.join("p", "actor", "node", "first", 1)
        await coordinator.report("p", "actor", HostStats(state="up", calls=7, open_requests=3))
        await coordinator.join("p", "actor", "node", "second", 2)
        await coordinator.report("p", "actor", HostStats(state="up", calls=1, open_requests=2))
        (found,) = (await coordinator.snapshot()).pools
        return found

    found = asyncio.run(restarted())
    assert pool_state(found) == "up, 1 deaths"
    assert sum(stats.calls for stats in found.stats) == 8
    assert sum(stats.open_requests for stats in found.stats) == 2


def test_a_stage_that_too_many_failures_stop_says_what_one_of_them_was():
    block = WorkBlock(key="k", turn=0, refs=[("file", 0), ("file", 1)])
    coordinator = Coordinator([block], pool_names=["p"], num_credits=1, block_rows=2, max_failed=0, stage="generate")
    reasons = Counter({f"agg: http_4xx: HTTP 400: no max_tokens (id {i})": 1 for i in (1, 2)})

    async def stopped() -> str:
        await coordinator.next_block(0)
        await coordinator.committed("k", 1, [], Counter(failed=2), reasons)
        return (await coordinator.snapshot()).stop_reason

    said = asyncio.run(stopped())
    assert "agg: http_4xx (2); of the commonest the first is agg: http_4xx: HTTP 400: no max_tokens (id 1)" in said


def test_the_busy_part_is_that_of_the_engines_lifetime_and_nothing_without_engines():
    assert busy_fraction(pool(stats=[HostStats(busy_s=3, up_s=4), HostStats(busy_s=0, up_s=8)])) == 0.25
    assert busy_fraction(pool()) == 0.0


def test_the_state_can_be_described_before_anything_was_shown():
    progress = Progress(title="generate", total=100, warn_after_s=60, console=Console(file=io.StringIO()))
    assert progress.describe(snapshot(pool())).startswith("generate 0/100 rows, 0.0 rows/s, time left unknown, no")


def test_rows_of_every_status_are_done():
    assert num_done({"ok": 3, "open": 2, "failed": 1}) == 6


def test_durations_are_short():
    given = (0, 59.9, 60, 3599, 3600, 90061)
    assert [duration(s) for s in given] == ["0s", "59s", "1m00s", "59m59s", "1h00m", "25h01m"]


def shown_at(monkeypatch, *given: tuple[float, HostStats]) -> tuple[Progress, str]:
    """The progress that has shown one engine at these seconds, and what it wrote."""
    clock, out = [0.0], io.StringIO()
    now = SimpleNamespace(monotonic=lambda: clock[0], time=lambda: 1000 + clock[0])
    monkeypatch.setattr("moaa_ray.generation.progress.time", now)
    progress = Progress(title="t", total=1, warn_after_s=60, console=Console(file=out, width=160, color_system=None))
    for clock[0], stats in given:
        progress.show(snapshot(pool(stats=[stats])))
    return progress, out.getvalue()


def test_an_engine_that_comes_up_has_moved_though_no_row_has(monkeypatch):
    up = HostStats(state="up")
    calm, text = shown_at(monkeypatch, (0, HostStats(state="starting")), (100, up), (150, up))
    assert "nothing has moved" not in text
    assert calm.worked is None
    assert "nothing has moved for 61 s" in shown_at(monkeypatch, (0, up), (61, up))[1]


def test_work_is_from_the_first_to_the_last_time_that_a_row_was_seen_to_move(monkeypatch):
    calls = ((0, 0), (10, 0), (20, 3), (30, 5), (40, 5))
    progress, _ = shown_at(monkeypatch, *((at, HostStats(state="up", calls=num)) for at, num in calls))
    assert progress.worked == (1020, 1030)
