import itertools
from collections import Counter

from moaa_ray.data.local_store import LocalStore
from moaa_ray.generation.coordinator import PoolSnapshot, Snapshot
from moaa_ray.generation.host_stats import HostStats
from moaa_ray.generation.timeline import Timeline, read_timelines


def snapshot(rows: int, *states: str) -> Snapshot:
    stats = [HostStats(state=state, calls=rows, busy_s=0.5 * rows, up_s=float(rows)) for state in states]
    pool = PoolSnapshot(name="a", rows_done=rows, stats=stats, worker_deaths=0, num_workers=2, idle_s=0.0)
    return Snapshot(
        pools=[pool],
        statuses=Counter(),
        reasons=Counter(),
        num_blocks_in_line=0,
        num_rows_in_line=0,
        max_blocks_in_line=0,
        stop_reason="",
    )


def test_a_moment_holds_the_sums_over_a_pools_engines(tmp_path):
    store = LocalStore(str(tmp_path))
    Timeline(store, "generate", "e000001-000").note(snapshot(4, "up", "starting"), now=100.0, is_last=True)
    ((moment,),) = read_timelines(store, "generate")
    assert moment["at"] == 100.0
    assert moment["pools"]["a"] == {
        "workers": 2, "starting": 1, "up": 1, "rows": 4, "calls": 8, "prompt_tokens": 0, "completion_tokens": 0,
        "busy_s": 4.0, "up_s": 8.0,
    }  # fmt: skip


def test_a_long_phase_gets_coarser_instead_of_longer_and_keeps_both_ends(tmp_path):
    """Two moments a second for an hour: one each second at first, then every 2, 4, 8, 16 s."""
    store = LocalStore(str(tmp_path))
    timeline = Timeline(store, "sample", "e000001-000")
    for half_second in range(7201):
        timeline.note(snapshot(half_second), now=half_second / 2, is_last=half_second == 7200)
    (phase,) = read_timelines(store, "sample")
    times = [moment["at"] for moment in phase]
    assert 120 <= len(times) <= 240
    assert (times[0], times[-1]) == (0.0, 3600.0)
    assert {after - before for before, after in itertools.pairwise(times)} == {16.0}


def test_what_was_seen_is_written_before_the_phase_ends(tmp_path):
    store = LocalStore(str(tmp_path))
    timeline = Timeline(store, "judge", "e000001-000")
    for second in range(13):
        timeline.note(snapshot(second), now=float(second))
    assert [moment["at"] for moment in read_timelines(store, "judge")[0]] == [float(i) for i in range(11)]


def test_the_phases_of_all_starts_come_in_order(tmp_path):
    store = LocalStore(str(tmp_path))
    for part, now in (("e000002-000", 9.0), ("e000001-001", 5.0), ("e000001-000", 1.0)):
        Timeline(store, "generate", part).note(snapshot(1), now=now, is_last=True)
    assert [phase[0]["at"] for phase in read_timelines(store, "generate")] == [1.0, 5.0, 9.0]
    assert read_timelines(store, "sample") == []
