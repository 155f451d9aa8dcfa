from moaa_ray.generation.coordinator import Snapshot
from moaa_ray.generation.host_stats import HostStats, Pulse
from moaa_ray.generation.stalls import Found, Watchdog
from tests.generation.test_progress import pool, snapshot

RESTART_S, REQUEST_S, HANG_S = 100.0, 50.0, 30.0


def seen(
    *,
    reports: int,
    calls: int = 0,
    retries: int = 0,
    state: str = "up",
    open_requests: int = 0,
    num_rows: int = 0,
    incarnation: int = 1,
) -> Snapshot:
    """A line of one pool with one worker."""
    pulse = Pulse(
        worker="w",
        node_id="n",
        pid=7,
        incarnation=incarnation,
        num_reports=reports,
        state=state,
        open_requests=open_requests,
        num_rows=num_rows,
    )
    stats = [HostStats(state=state, calls=calls, retries=retries)]
    return snapshot(pool("p", stats=stats, pulses=[pulse]), blocks=1, rows=4)


def looks(seconds: int, at, *, step: int = 5, is_placed: bool = True) -> list[Found]:
    """What a watchdog finds that looks every `step` seconds; at(t) is what there is to see at second t."""
    dog = Watchdog(restart_after_s=RESTART_S, request_timeout_s=REQUEST_S, hang_after_s=HANG_S)
    return [dog.see(at(t), 1000.0 + t, is_placed=is_placed) for t in range(0, seconds + 1, step)]


def stalled_at(found: list[Found], *, step: int = 5) -> int | None:
    return next((i * step for i, one in enumerate(found) if one.stalled_s), None)


def test_a_line_in_which_nothing_moves_is_stalled_after_its_limit():
    found = looks(120, lambda t: seen(reports=t))
    assert stalled_at(found) == 105
    assert found[21].stalled_s == 105.0


def test_a_line_that_moves_now_and_then_is_not_stalled():
    assert stalled_at(looks(1000, lambda t: seen(reports=t, calls=t // 90))) is None
    assert stalled_at(looks(1000, lambda t: seen(reports=t, retries=t // 90))) is None


def test_an_engine_that_starts_or_tries_to_is_no_stall_as_long_as_its_worker_says_so():
    assert stalled_at(looks(1000, lambda t: seen(reports=t, state="starting"))) is None
    assert stalled_at(looks(1000, lambda t: seen(reports=t, state="retrying: no GPU"))) is None
    fell_silent = looks(300, lambda t: seen(reports=min(t, 50), state="starting"))
    assert stalled_at(fell_silent) == 165  # heard of last at 50, counted as living for 15 s, last excused at 60


def test_open_requests_may_take_a_whole_request_longer_and_no_more():
    assert stalled_at(looks(200, lambda t: seen(reports=t, open_requests=1))) == 155


def test_open_requests_of_a_worker_that_is_not_heard_of_are_no_excuse():
    assert stalled_at(looks(200, lambda t: seen(reports=min(t, 10), open_requests=1))) == 105


def test_a_coordinator_that_does_not_answer_is_a_stall():
    assert stalled_at(looks(200, lambda t: seen(reports=t, calls=t) if t < 50 else None)) == 150


def test_a_pool_that_waits_for_its_first_place_is_no_stall():
    assert stalled_at(looks(1000, lambda t: seen(reports=t), is_placed=False)) is None
    assert stalled_at(looks(200, lambda t: None, is_placed=False)) == 105


def test_time_in_which_the_watchdog_slept_itself_does_not_count():
    """Two looks, a machine that sleeps for an hour, and the line goes on: 15 s of the hour count."""
    dog = Watchdog(restart_after_s=RESTART_S, request_timeout_s=REQUEST_S, hang_after_s=HANG_S)
    for now in (0.0, 5.0, 3600.0):
        assert dog.see(seen(reports=1, num_rows=4), now, is_placed=True) == Found()


def test_a_worker_with_rows_that_falls_silent_hangs_and_is_named_once_in_each_of_its_lives():
    found = looks(90, lambda t: seen(reports=min(t, 10), num_rows=4))
    assert [i * 5 for i, one in enumerate(found) if one.hung] == [45]
    assert [pulse.pid for pulse in found[9].hung] == [7]
    twice = looks(90, lambda t: seen(reports=0, num_rows=4, incarnation=1 + (t >= 45)))
    assert [i * 5 for i, one in enumerate(twice) if one.hung] == [35, 80]


def test_a_silent_worker_without_rows_or_without_an_engine_does_not_hang():
    """A pool that is done gives its workers up, and an engine may hold the loop while it starts."""
    assert not any(one.hung for one in looks(90, lambda t: seen(reports=0)))
    assert not any(one.hung for one in looks(90, lambda t: seen(reports=0, num_rows=4, state="starting")))
