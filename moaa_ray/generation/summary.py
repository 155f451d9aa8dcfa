"""What a stage did, as facts for summary.json and as a short table for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moaa_ray.generation.coordinator import PoolSnapshot
from moaa_ray.generation.host_stats import PassTokens, sum_of_passes
from moaa_ray.generation.progress import busy_fraction, duration


@dataclass(frozen=True, kw_only=True)
class PoolSummary:
    """One pool over the whole session; seconds are summed over its engines."""

    name: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    tokens_per_s: float
    busy_fraction: float
    engine_s: float
    gpu_s: float
    deaths: int
    failures: Mapping[str, int]
    busy_s: float = 0.0
    """With at least one request."""
    slot_s: float = 0.0
    """Summed over the slots that had a request."""
    num_slots: int = 0
    """Requests that one engine works on at a time."""
    start_s: float = 0.0
    num_starts: int = 0
    passes: Mapping[str, PassTokens] = field(default_factory=dict)
    """Completions and their tokens by pass."""
    setup: Mapping[str, Any] = field(default_factory=dict)
    """What decides an engine's speed: the model, how it is split, the GPU type. Empty: several kinds, or not noted."""
    cached_tokens: int = 0
    """Of prompt_tokens, those that the engine had read before for another request."""
    cost_usd: float | None = None
    """GPU-seconds of engines starting or up, or tokens, at the recipe's price; None: no price there."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What the planner expected of a start, to be compared with what happened."""

    seconds: float
    tokens: int
    gpu_hours: float
    cost_usd: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The generate stage: every prompt accounted for, and what this session did."""

    run_dir: str
    num_prompts: int
    statuses: Mapping[str, int]
    """Rows by final status; rows dropped while reading the prompts are among the dropped."""
    dropped: Mapping[str, int]
    """Dropped rows by rule."""
    failures: Mapping[str, int]
    """Failed and quarantined rows by reason."""
    flags: Mapping[str, int]
    pools: Sequence[PoolSummary] = field(default_factory=list)
    """In this session."""
    usage: Sequence[PoolSummary] = field(default_factory=list)
    """Over all sessions, killed ones included."""
    planned: Planned | None = None
    """For this session; None where nothing was left to do."""
    worked: tuple[float, float] | None = None
    """Unix times of the first and the last work of this session; None where nothing was left to do."""
    seconds: float = 0.0
    rows_done_now: int = 0
    rows_redone: int = 0
    """Rows asked again because an engine or its worker died with them, once for each such death."""
    max_blocks_in_line: int = 0
    line_restarts: int = 0
    """How often a line in which nothing moved any more was started again."""

    @property
    def cost_usd(self) -> float | None:
        """What the pools with a price have cost in all sessions; None where none has one."""
        costs = [pool.cost_usd for pool in self.usage or self.pools if pool.cost_usd is not None]
        return sum(costs) if costs else None

    @property
    def is_conserved(self) -> bool:
        """Rows in = ok + failed + quarantined + dropped, by counting both sides."""
        return self.num_prompts == sum(self.statuses.values())


def pool_summary(
    pool: PoolSnapshot,
    *,
    num_gpus: int,
    num_slots: int = 0,
    setup: Mapping[str, Any] | None = None,
    gpu_hour_usd: float | None = None,
    million_tokens_usd: float | None = None,
) -> PoolSummary:
    """The facts of one pool. num_gpus is what one engine holds; a price of tokens counts where GPUs have none."""
    stats = pool.stats
    up_s = sum(s.up_s for s in stats)
    tokens = sum(s.completion_tokens for s in stats)
    prompt_tokens = sum(s.prompt_tokens for s in stats)
    engine_s = up_s + sum(s.start_s for s in stats)
    cost_usd = None
    if num_gpus and gpu_hour_usd is not None:
        cost_usd = engine_s * num_gpus / 3600 * gpu_hour_usd
    elif million_tokens_usd is not None:
        cost_usd = (prompt_tokens + tokens) / 1e6 * million_tokens_usd
    failures: Counter = Counter()
    for s in stats:
        failures.update(s.failures)
    return PoolSummary(
        name=pool.name,
        calls=sum(s.calls for s in stats),
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(s.cached_tokens for s in stats),
        completion_tokens=tokens,
        tokens_per_s=tokens / max(1e-9, sum(s.busy_s for s in stats)),
        busy_s=sum(s.busy_s for s in stats),
        slot_s=sum(s.slot_s for s in stats),
        num_slots=num_slots,
        start_s=sum(s.start_s for s in stats),
        num_starts=sum(s.num_starts for s in stats),
        passes=sum_of_passes(s.passes for s in stats),
        setup=setup or {},
        busy_fraction=busy_fraction(pool),
        engine_s=engine_s,
        gpu_s=engine_s * num_gpus,
        deaths=sum(s.deaths for s in stats) + pool.worker_deaths,
        failures=dict(failures),
        cost_usd=cost_usd,
    )


def render(summary: Summary) -> str:
    """The summary as plain text, within 100 columns as long as names and numbers are short."""
    counts = ", ".join(f"{n:,} {status}" for status, n in summary.statuses.items() if n)
    equal = "=" if summary.is_conserved else "DOES NOT EQUAL"
    lines = [f"{summary.num_prompts:,} prompts {equal} {counts or 'none'}   ({duration(summary.seconds)})"]
    for title, counted in (("dropped", summary.dropped), ("failed", summary.failures), ("flags", summary.flags)):
        if counted:
            lines.append(f"  {title}: " + ", ".join(f"{reason} {n:,}" for reason, n in counted.items()))
    if summary.line_restarts:
        lines.append(f"  the line stood still and was started again: {summary.line_restarts} times")
    if summary.cost_usd is not None:
        lines.append(f"  cost: {summary.cost_usd:,.2f} USD for the engines, at the recipe's prices")
    if summary.planned is not None and summary.rows_done_now:
        tokens = sum(pool.prompt_tokens + pool.completion_tokens for pool in summary.pools)
        lines.append(
            f"  planned: {duration(summary.planned.seconds)} and {summary.planned.tokens:,} tokens; "
            f"took {duration(summary.seconds)} and {tokens:,}"
        )
    if shown := summary.usage or summary.pools:
        lines += _pool_table(shown)
    return "\n".join(lines)


def _pool_table(pools: Sequence[PoolSummary]) -> list[str]:
    """A line of names and one per pool; a column grows with its longest number."""
    table = [("pool", "calls", "tokens in", "tokens out", "tok/s", "busy", "engine", "GPU-s", "failures")]
    for p in pools:
        failed = ", ".join(f"{reason} {n}" for reason, n in p.failures.items())
        deaths = f"{p.deaths} engine deaths" if p.deaths else ""
        trouble = "; ".join(text for text in (failed, deaths) if text)
        counts = (f"{p.calls:,}", f"{p.prompt_tokens:,}", f"{p.completion_tokens:,}", f"{p.tokens_per_s:,.0f}")
        times = (f"{p.busy_fraction:.0%}", duration(p.engine_s), f"{p.gpu_s:,.0f}")
        table.append((p.name, *counts, *times, trouble))
    usual = (22, 8, 12, 12, 8, 6, 8, 8)
    widths = [max(w, 2 + max(map(len, column))) for w, column in zip(usual, zip(*table, strict=True), strict=False)]
    return [
        f"  {name:<{widths[0]}}{''.join(f'{n:>{w}}' for n, w in zip(numbers, widths[1:], strict=True))}  {trouble}"
        for name, *numbers, trouble in table
    ]
