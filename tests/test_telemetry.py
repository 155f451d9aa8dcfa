"""What Prometheus is told, and that telling it costs a run nothing."""

import re

import pytest

from moaa_ray.telemetry import METRICS, OTHER, ROW_FAILURES, ROWS, ROWS_LEFT, STAGE_ERRORS, Metric
from tests.telling import Heard


def test_names_follow_the_rules_of_prometheus():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"moaa_[a-z]+(_[a-z]+)*", metric.name)
        assert not re.search(r"_(ms|minutes|percent|mib|gib)(_|$)", metric.name), "base units only"
        assert not {"run", "stage", "id", "row"} & set(metric.labels)


def test_a_counter_is_given_what_is_new_and_never_goes_back():
    heard = Heard()
    for total in (3, 3, 2, 10):
        heard.count(ROWS, total, status="ok")
    heard.count(ROWS, 4, status="failed")
    assert heard.said == [
        ("moaa_rows_total", 3, {"status": "ok"}),
        ("moaa_rows_total", 7, {"status": "ok"}),
        ("moaa_rows_total", 4, {"status": "failed"}),
    ]


def test_reasons_lose_their_details_and_are_so_many_and_no_more():
    heard = Heard()
    assert heard.code(ROW_FAILURES, "l0.a: too_long (5000 > 4096)") == "l0.a: too_long"
    codes = {heard.code(ROW_FAILURES, f"reason {i}") for i in range(1000)}
    assert len(codes) == 24
    assert OTHER in codes
    assert heard.code(ROW_FAILURES, "l0.a: too_long") == "l0.a: too_long"


def test_the_error_that_ends_a_stage_is_counted_by_its_kind_and_goes_on_up():
    heard = Heard()
    with pytest.raises(ValueError, match="some text"), heard:
        raise ValueError("some text")
    assert heard.said == [("moaa_stage_errors_total", 1, {"error": "ValueError"})]
    assert STAGE_ERRORS.is_counter
    assert not ROWS_LEFT.is_counter


def test_metrics_that_break_are_given_up_and_break_nothing(caplog):
    """A label that the metric does not have is what Ray refuses."""
    from moaa_ray.telemetry import Telemetry

    told = Telemetry(run="r", stage="s")
    broken = Metric(name="moaa_broken", labels=("pool",), text="never told")
    told.show(broken, 1.0)
    told.show(broken, 2.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Missing value for tag" in caplog.text
