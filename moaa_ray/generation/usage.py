"""What the engines of a stage have done over all its starts, killed ones included: calls, tokens, seconds, cost.

Every start writes its figures into files of its own, again every few seconds, so that a kill loses little of them.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

from moaa_ray.data.store import Store
from moaa_ray.generation.host_stats import PassTokens, sum_of_passes
from moaa_ray.generation.summary import PoolSummary


def write_usage(store: Store, stage: str, part: str, pools: Iterable[PoolSummary]) -> None:
    """Keep the figures of one phase of one start; part is its name, the same each time."""
    text = json.dumps([asdict(pool) for pool in pools], indent=1)
    store.put(f"{_folder(stage)}/{part}.json", text.encode())


def total_usage(store: Store, stage: str) -> list[PoolSummary]:
    """By pool, in the order in which they first ran, the sums over all starts."""
    by_name: dict[str, list[PoolSummary]] = {}
    for path in sorted(store.list(_folder(stage))):
        for record in json.loads(store.read(path)):
            passes = {name: PassTokens(**tokens) for name, tokens in record.get("passes", {}).items()}
            pool = PoolSummary(**{**record, "passes": passes})
            by_name.setdefault(pool.name, []).append(pool)
    return [_sum(pools) for pools in by_name.values()]


def _sum(pools: list[PoolSummary]) -> PoolSummary:
    failures: Counter[str] = Counter()
    for pool in pools:
        failures.update(pool.failures)
    engine_s = sum(pool.engine_s for pool in pools)
    busy_s = sum(pool.busy_s for pool in pools)
    tokens = sum(pool.completion_tokens for pool in pools)
    costs = [pool.cost_usd for pool in pools if pool.cost_usd is not None]
    return PoolSummary(
        name=pools[0].name,
        calls=sum(pool.calls for pool in pools),
        prompt_tokens=sum(pool.prompt_tokens for pool in pools),
        cached_tokens=sum(pool.cached_tokens for pool in pools),
        completion_tokens=tokens,
        busy_s=busy_s,
        slot_s=sum(pool.slot_s for pool in pools),
        num_slots=max(pool.num_slots for pool in pools),
        start_s=sum(pool.start_s for pool in pools),
        num_starts=sum(pool.num_starts for pool in pools),
        passes=sum_of_passes(dict(pool.passes) for pool in pools),
        setup=pools[0].setup if all(pool.setup == pools[0].setup for pool in pools) else {},
        tokens_per_s=tokens / max(1e-9, busy_s),
        busy_fraction=sum(pool.busy_fraction * pool.engine_s for pool in pools) / max(1e-9, engine_s),
        engine_s=engine_s,
        gpu_s=sum(pool.gpu_s for pool in pools),
        deaths=sum(pool.deaths for pool in pools),
        failures=dict(failures),
        cost_usd=sum(costs) if costs else None,
    )


def _folder(stage: str) -> str:
    return f"metrics/usage/{stage}"
