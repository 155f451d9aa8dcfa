"""What Prometheus is told of a stage of rows: the counts of the summary, from a real scrape of a real run."""

import json
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from moaa_ray.generation.host_stats import HostStats
from moaa_ray.generation.telling import tell
from moaa_ray.telemetry import METRICS
from tests.generation import runs
from tests.generation.test_progress import pool, snapshot
from tests.telling import Heard


def test_a_phase_is_told_by_the_counts_of_its_snapshots():
    heard = Heard()
    busy = HostStats(
        calls=4, prompt_tokens=70, completion_tokens=30, failures=Counter(timeout=1), busy_s=2.0, up_s=5.0,
        open_requests=3, state="up",
    )  # fmt: skip
    dead = HostStats(calls=2, prompt_tokens=5, failures=Counter(timeout=1, empty=1), deaths=1, state="waiting")
    first = snapshot(pool("l0.a", stats=[busy, dead], rows_done=5, worker_deaths=1), statuses={"open": 4}, blocks=2)
    tell(heard, first, total=20)
    tell(heard, first, total=20)
    last = snapshot(pool("l0.a", stats=[busy, dead], rows_done=9), statuses={"open": 4, "ok": 3, "failed": 1})
    last.reasons.update({"aggregate: timeout": 1})
    tell(heard, last, total=20)
    assert heard.last() == {
        ("moaa_stage_active",): 1,
        ("moaa_rows_left",): 12,
        ("moaa_blocks_in_line",): 0,
        ("moaa_rows_total", "open"): 4,
        ("moaa_rows_total", "ok"): 3,
        ("moaa_rows_total", "failed"): 1,
        ("moaa_row_failures_total", "aggregate: timeout"): 1,
        ("moaa_open_requests", "l0.a"): 3,
        ("moaa_engines_up", "l0.a"): 1,
        ("moaa_calls_total", "l0.a"): 6,
        ("moaa_call_failures_total", "l0.a", "timeout"): 2,
        ("moaa_call_failures_total", "l0.a", "empty"): 1,
        ("moaa_prompt_tokens_total", "l0.a"): 75,
        ("moaa_completion_tokens_total", "l0.a"): 30,
        ("moaa_engine_busy_seconds_total", "l0.a"): 2.0,
        ("moaa_engine_up_seconds_total", "l0.a"): 5.0,
        ("moaa_engine_deaths_total", "l0.a"): 2,
    }


FAULTS = """
    a: {engine: fake, tokens_per_s: 2000, faults: {"Question 1.?": error}}
    b: {engine: fake, faults: {"Question 21?": dead}}
    agg: {engine: fake, faults: {"Question 31?": error, "Question 41?": empty}}
"""


@pytest.mark.long
def test_a_scrape_of_a_real_run_says_what_the_summary_says(tmp_path: Path):
    """One Ray in this process, as on a cluster: the run ends, Ray and its agents stay."""
    ray = pytest.importorskip("ray")
    from moaa_ray.generation.stage import generate
    from moaa_ray.loading import load_recipe

    runs.write_prompts(tmp_path / "prompts.jsonl", 200, turns=lambda i: 1 + (i % 5 == 0))
    recipe = runs.write_recipe(tmp_path, models=FAULTS, generate=", max_failed_fraction: 0.1")
    with ray.init(address="local", num_cpus=8, log_to_driver=False) as context:
        session = Path(context.address_info["session_dir"])
        summary = generate(load_recipe(recipe))
        scraped = scrape_until(session, lambda found: value(found, "rows_total", status="ok") == summary.statuses["ok"])
        scrape_until(session, lambda found: "ray_moaa_stage_active" not in {name for name, _, _ in found})
    statuses = {labels["status"]: count for name, labels, count in scraped if name == "ray_moaa_rows_total"}
    assert 38 <= statuses.pop("open") <= 40  # the first turns of those with two
    assert statuses == {status: count for status, count in summary.statuses.items() if count}
    assert (summary.statuses["failed"], summary.statuses["quarantined"]) == (2, 1)
    reasons = {labels["reason"]: count for name, labels, count in scraped if name == "ray_moaa_row_failures_total"}
    assert reasons == summary.failures
    for facts in summary.pools:
        assert value(scraped, "calls_total", pool=facts.name) == facts.calls
        assert value(scraped, "prompt_tokens_total", pool=facts.name) == facts.prompt_tokens
        assert value(scraped, "completion_tokens_total", pool=facts.name) == facts.completion_tokens
        assert value(scraped, "engine_busy_seconds_total", pool=facts.name) == pytest.approx(facts.busy_s)
        failures = {
            labels["reason"]: count
            for name, labels, count in scraped
            if name == "ray_moaa_call_failures_total" and labels["pool"] == facts.name
        }
        assert failures == facts.failures
    (deaths,) = (count for name, _, count in scraped if name == "ray_moaa_engine_deaths_total" and count)
    assert deaths == sum(facts.deaths for facts in summary.pools) > 0
    assert {name for name, _, _ in scraped} <= {metric.exported for metric in METRICS}
    assert {(labels["run"], labels["stage"]) for _, labels, _ in scraped} == {("run", "generate")}


Sample = tuple[str, dict[str, str], float]


def scrape(session: Path) -> list[Sample]:
    """Our samples at this moment, from all targets that the service discovery of Prometheus would read."""
    parser = pytest.importorskip("prometheus_client.parser")
    path = session / "prom_metrics_service_discovery.json"
    targets = json.loads(path.read_text())[0]["targets"] if path.exists() else []  # of the dashboard; nodes come later
    found: list[Sample] = []
    for target in targets:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        samples = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
        found += [(s.name, s.labels, s.value) for s in samples if s.name.startswith("ray_moaa_")]
    return found


def scrape_until(session: Path, is_enough, *, timeout_s: float = 30) -> list[Sample]:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if is_enough(found := scrape(session)):
            return found
        time.sleep(0.5)
    raise AssertionError(scrape(session))


def value(found: list[Sample], name: str, **labels: str) -> float:
    return sum(v for n, have, v in found if n == f"ray_moaa_{name}" and labels.items() <= have.items())
