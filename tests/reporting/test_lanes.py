"""The timeline: hand-computed times and shares."""

import xml.etree.ElementTree as ET

import pytest

from moaa_ray.reporting.lanes import Axis, axis_of, lanes_of
from moaa_ray.reporting.report_stages import StageFacts, merged, worked_s
from tests.reporting.runs import moments, steps


def stage(*, phases=(), lines=()) -> StageFacts:
    return StageFacts(
        stage="generate", title="generate", is_done=True, at=0.0, told="", facts={}, usage=(), phases=phases,
        steps=lines,
    )  # fmt: skip


def rects(lane, kind: str) -> list[tuple[float, float, float]]:
    """(from, to, height) of the rectangles of a kind, in columns of 240 and a lane of 24."""
    found = [rect.attrib for rect in ET.fromstring(lane.picture).iter("rect") if rect.attrib["class"] == kind]
    return [(float(r["x"]), float(r["x"]) + float(r["width"]), float(r["height"])) for r in found]


def test_a_pool_is_drawn_as_high_as_it_was_busy():
    """Starting for 10 s, then busy for 5 of 10 s, then for 10 of 10 s: thirds of 240 columns."""
    phase = moments(begin=1000.0, pools={"a": [(0, -1), (0, 0), (5, 10), (15, 20)]})
    one = stage(phases=[phase])
    axis = axis_of([one])
    assert axis is not None
    (lane,) = lanes_of(one, axis)
    assert rects(lane, "starting") == [(0, 80, 7)]
    assert rects(lane, "idle") == [(80, 240, 24)]
    assert rects(lane, "bar") == [(80, 160, 12), (160, 240, 24)]
    assert lane.told == "15 rows, 20 tokens/s, busy 75% of the 20s that it was up"
    assert axis.ticks() == ["0s", "7s", "15s", "22s", "30s"]


def test_an_engine_that_died_and_counts_anew_breaks_nothing():
    one = stage(phases=[moments(begin=0.0, pools={"a": [(8, 10), (2, 5), (7, 15)]})])
    axis = axis_of([one])
    assert axis is not None
    (lane,) = lanes_of(one, axis)
    assert rects(lane, "bar") == [(120, 240, 12)]


def test_the_steps_of_training_are_one_piece_as_long_as_they_took():
    one = stage(lines=steps(10, begin=50.0))
    axis = axis_of([one])
    assert axis is not None
    (lane,) = lanes_of(one, axis)
    assert rects(lane, "bar") == [(0, 240, 24)]
    assert lane.told == "10 steps, 50 tokens/s"


def test_a_long_time_without_work_is_cut_out_of_the_axis():
    """Two starts of 100 s, a day apart: the cut is 1.2 % of 200 s = 2.4 s wide, so the second begins at 102.4/202.4."""
    axis = Axis(shown=[(0.0, 100.0), (86400.0, 86500.0)], gap_s=2.4, total_s=202.4)
    assert axis.at(0.0) == 0.0
    assert axis.at(100.0) == pytest.approx(100 / 202.4)
    assert axis.at(86400.0) == pytest.approx(102.4 / 202.4)
    assert axis.at(86500.0) == pytest.approx(1.0)
    assert axis.cuts() == [pytest.approx(101.2 / 202.4)]
    assert [axis.time(axis.at(time)) for time in (0.0, 50.0, 86450.0)] == pytest.approx([0.0, 50.0, 86450.0])
    assert axis.ticks()[-1] == "24h01m"


def test_short_pauses_stay_on_the_axis_and_long_ones_do_not():
    near = [moments(begin=begin, pools={"a": [(0, 0), (10, 10)] * 5}) for begin in (0.0, 95.0)]
    axis = axis_of([stage(phases=near)])
    assert axis is not None
    assert axis.shown == [(0.0, 185.0)]
    far = axis_of([stage(phases=[near[0], moments(begin=5000.0, pools={"a": [(0, 0), (10, 10)]})])])
    assert far is not None
    assert far.shown == [(0.0, 90.0), (5000.0, 5010.0)]
    assert axis_of([stage()]) is None


def test_times_that_overlap_count_once():
    assert merged([(5.0, 9.0), (0.0, 6.0), (20.0, 21.0)]) == [(0.0, 9.0), (20.0, 21.0)]
    assert merged([(0.0, 9.0), (2.0, 3.0), (10.0, 11.0)], gap_s=1.0) == [(0.0, 11.0)]
    assert worked_s([(0.0, 6.0), (5.0, 9.0), (20.0, 21.0)]) == 10.0


def test_a_pool_that_has_ended_is_not_drawn_on_and_one_that_tells_late_has_no_gaps():
    """Counters come at 0, 1, 2 and 3 s, the one of 2 s too late to be seen; then, to 12 s, nothing more comes."""
    phase = [
        {"at": float(at), "pools": {"a": {"workers": 1, "starting": 0, "up": 1, "rows": 0, "completion_tokens": 0,
                                          "busy_s": float(up_s), "up_s": float(up_s)}}}
        for at, up_s in ((0, 0), (1, 1), (2, 1), (3, 3), (4, 3), (8, 3), (12, 3))
    ]  # fmt: skip
    one = stage(phases=[phase])
    axis = axis_of([one])
    assert axis is not None
    (lane,) = lanes_of(one, axis)
    assert rects(lane, "bar") == [(0, 60, 24)]
    assert rects(lane, "starting") == []
