from moaa_ray.data.local_store import LocalStore
from moaa_ray.generation.summary import PoolSummary
from moaa_ray.generation.usage import total_usage, write_usage


def pool(name: str, **fields) -> PoolSummary:
    usual = {
        "calls": 10,
        "prompt_tokens": 100,
        "completion_tokens": 40,
        "busy_s": 4.0,
        "tokens_per_s": 10.0,
        "busy_fraction": 0.5,
        "engine_s": 8.0,
        "gpu_s": 16.0,
        "deaths": 0,
        "failures": {},
    }
    return PoolSummary(name=name, **(usual | fields))


def test_figures_of_all_starts_are_summed_by_pool_and_rates_weighted_by_time(tmp_path):
    """40 + 10 tokens in 4 + 1 busy seconds are 10 a second; half of 8 s and all of 2 s are 0.6 of 10 s."""
    store = LocalStore(str(tmp_path))
    write_usage(store, "judge", "e000001-000", [pool("criteria"), pool("decide", failures={"timeout": 1})])
    again = pool(
        "decide", calls=3, completion_tokens=10, busy_s=1.0, busy_fraction=1.0, engine_s=2.0, failures={"timeout": 2}
    )
    write_usage(store, "judge", "e000002-000", [again])
    first, second = total_usage(store, "judge")
    assert first == pool("criteria")
    assert (second.calls, second.completion_tokens, second.engine_s) == (13, 50, 10.0)
    assert (second.tokens_per_s, second.busy_fraction) == (10.0, 0.6)
    assert second.failures == {"timeout": 3}
    assert second.cost_usd is None


def test_a_phase_that_is_written_again_counts_once(tmp_path):
    store = LocalStore(str(tmp_path))
    for calls in (4, 9):
        write_usage(store, "generate", "e000001-000", [pool("a", calls=calls, cost_usd=0.5)])
    (found,) = total_usage(store, "generate")
    assert (found.calls, found.cost_usd) == (9, 0.5)
    assert total_usage(store, "sample") == []
