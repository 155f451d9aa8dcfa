import re
from collections import Counter

from moaa_ray.generation.coordinator import PoolSnapshot
from moaa_ray.generation.host_stats import HostStats
from moaa_ray.generation.summary import PoolSummary, Summary, pool_summary, render


def facts(name="l0.a", **fields) -> PoolSummary:
    usual = {
        "calls": 10,
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "tokens_per_s": 25.0,
        "busy_fraction": 0.5,
        "engine_s": 60.0,
        "gpu_s": 120.0,
        "deaths": 0,
        "failures": {},
    }
    return PoolSummary(name=name, **(usual | fields))


def summary(**fields) -> Summary:
    usual = {
        "run_dir": "runs/x",
        "num_prompts": 12,
        "statuses": {"ok": 9, "failed": 2, "quarantined": 0, "dropped": 1},
        "dropped": {"too_long": 1},
        "failures": {"aggregate: timeout": 2},
        "flags": {"proposals_cut:aggregate": 3},
        "seconds": 75.0,
    }
    return Summary(**(usual | fields))


def test_a_pools_facts_are_sums_over_its_engines():
    """(30 + 10) tokens in (6 + 2) busy seconds are 5 per second; (10 + 6) s up and (3 + 1) s starting are 20 s."""
    one = HostStats(
        calls=4,
        prompt_tokens=70,
        completion_tokens=30,
        failures=Counter(timeout=1),
        busy_s=6,
        up_s=10,
        start_s=3,
        deaths=1,
    )
    other = HostStats(
        calls=2, prompt_tokens=20, completion_tokens=10, failures=Counter(timeout=2), busy_s=2, up_s=6, start_s=1
    )
    pool = PoolSnapshot(name="l0.a", rows_done=6, stats=[one, other], worker_deaths=2, num_workers=1, idle_s=0)
    assert pool_summary(pool, num_gpus=4) == PoolSummary(
        name="l0.a",
        calls=6,
        prompt_tokens=90,
        completion_tokens=40,
        tokens_per_s=5.0,
        busy_s=8,
        start_s=4,
        busy_fraction=0.5,
        engine_s=20,
        gpu_s=80,
        deaths=3,
        failures={"timeout": 3},
    )


def test_a_pool_costs_its_gpu_seconds_or_its_tokens_where_gpus_have_no_price():
    """4 GPUs for 900 s at 2 USD an hour are 2 USD; 2.5 million tokens at 0.4 USD a million are 1 USD."""
    stats = [HostStats(prompt_tokens=2_000_000, completion_tokens=500_000, up_s=840, start_s=60)]
    pool = PoolSnapshot(name="l0.a", rows_done=1, stats=stats, worker_deaths=0, num_workers=1, idle_s=0)
    prices = {"gpu_hour_usd": 2.0, "million_tokens_usd": 0.4}
    assert pool_summary(pool, num_gpus=4, **prices).cost_usd == 2.0
    assert pool_summary(pool, num_gpus=4, million_tokens_usd=0.4).cost_usd == 1.0
    assert pool_summary(pool, num_gpus=0, **prices).cost_usd == 1.0
    assert pool_summary(pool, num_gpus=0, gpu_hour_usd=2.0).cost_usd is None
    assert pool_summary(pool, num_gpus=4).cost_usd is None


def test_the_summary_tells_what_is_known_of_the_cost_and_nothing_where_no_price_is():
    known = summary(pools=[facts(cost_usd=1.5), facts("l0.b"), facts("aggregate", cost_usd=0.25)])
    assert known.cost_usd == 1.75
    assert "  cost: 1.75 USD for the engines, at the recipe's prices" in render(known).splitlines()
    assert summary(pools=[facts()]).cost_usd is None
    assert "cost" not in render(summary(pools=[facts()]))


def test_a_pool_that_never_had_an_engine_has_zeros():
    pool = PoolSnapshot(name="l0.a", rows_done=0, stats=[], worker_deaths=0, num_workers=0, idle_s=0)
    found = pool_summary(pool, num_gpus=1)
    assert (found.calls, found.tokens_per_s, found.busy_fraction, found.gpu_s) == (0, 0.0, 0.0, 0.0)


def test_the_summary_says_that_the_rows_add_up():
    lines = render(summary()).splitlines()
    assert lines == [
        "12 prompts = 9 ok, 2 failed, 1 dropped   (1m15s)",
        "  dropped: too_long 1",
        "  failed: aggregate: timeout 2",
        "  flags: proposals_cut:aggregate 3",
    ]


def test_the_summary_says_that_the_rows_do_not_add_up():
    lost = summary(num_prompts=13)
    assert not lost.is_conserved
    assert render(lost).startswith("13 prompts DOES NOT EQUAL 9 ok, 2 failed, 1 dropped ")


def test_a_run_without_prompts_has_none():
    empty = summary(num_prompts=0, statuses={}, dropped={}, failures={}, flags={}, seconds=0.0)
    assert render(empty) == "0 prompts = none   (0s)"


def test_pools_say_what_went_wrong_with_them():
    text = render(summary(pools=[facts(failures={"timeout": 3, "bad_request": 1}, deaths=2)]))
    assert text.endswith("  timeout 3, bad_request 1; 2 engine deaths")


def test_the_columns_of_the_pools_stand_under_their_names():
    pools = [facts("l0.a"), facts("aggregate", calls=999_999, prompt_tokens=99_999_999, tokens_per_s=12_345.0)]
    head, *lines = render(summary(pools=pools)).splitlines()[4:]
    ends = [found.end() for found in re.finditer(r"calls|tokens in|tokens out|tok/s|busy|engine|GPU-s", head)]
    assert [ends] * 2 == [
        [found.end() for found in re.finditer(r"(?<= )[\d,]+%?(m\d\ds)?(?= )", line)][:7] for line in lines
    ]


def test_a_million_calls_of_a_pool_with_a_long_name_still_stand_apart():
    name = "l0.a-proposer-with-a-long-name"
    big = facts(name, calls=12_345_678, prompt_tokens=123_456_789_012, completion_tokens=12_345_678_901)
    line = render(summary(pools=[facts(), big])).splitlines()[-1]
    assert line.split()[:4] == [name, "12,345,678", "123,456,789,012", "12,345,678,901"]
