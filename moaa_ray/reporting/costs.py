"""What a run has cost, stage by stage and model by model, over all its starts; the shape of the paper's appendix C."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moaa_ray.data.store import open_store
from moaa_ray.run_record import read_summary


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One model slot in one stage; of training, its steps and tokens."""

    stage: str
    slot: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    gpu_s: float
    cost_usd: float | None


def costs_of(run_dir: str, stage: str, *, title: str) -> list[Cost]:
    """The slots of a stage, by summary.json of its directory; title is what the stage is called."""
    return costs_in(read_summary(open_store(run_dir)).get(stage, {}), title=title)


def costs_in(facts: Mapping[str, Any], *, title: str) -> list[Cost]:
    """The slots of a stage, by its facts as in summary.json."""
    if "num_steps" in facts:
        return [
            Cost(
                stage=title,
                slot=f"{facts['num_workers']} worker{'s' * (facts['num_workers'] != 1)}",
                calls=facts["num_steps"],
                prompt_tokens=facts["trained_tokens"],
                completion_tokens=0,
                gpu_s=facts["gpu_s"],
                cost_usd=facts.get("cost_usd"),
            )
        ]
    return [
        Cost(
            stage=title,
            slot=pool["name"],
            calls=pool["calls"],
            prompt_tokens=pool["prompt_tokens"],
            completion_tokens=pool["completion_tokens"],
            gpu_s=pool["gpu_s"],
            cost_usd=pool.get("cost_usd"),
        )
        for pool in facts.get("usage", [])
    ]


def cost_rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """A row of titles, one for every slot and one of sums; the column of money only where a price is known."""
    has_price = any(cost.cost_usd is not None for cost in costs)
    titles = ("stage", "slot", "calls", "tokens in", "tokens out", "GPU-h", *["USD"] * has_price)
    return [titles, *(_row(cost, has_price=has_price) for cost in [*costs, total_cost(costs)])]


def render_costs(costs: Sequence[Cost]) -> str:
    """The same as text."""
    rows = cost_rows(costs)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def total_cost(costs: Sequence[Cost]) -> Cost:
    """The sums; what has no price is not in the money."""
    known = [cost.cost_usd for cost in costs if cost.cost_usd is not None]
    return Cost(
        stage="in all",
        slot="",
        calls=sum(cost.calls for cost in costs),
        prompt_tokens=sum(cost.prompt_tokens for cost in costs),
        completion_tokens=sum(cost.completion_tokens for cost in costs),
        gpu_s=sum(cost.gpu_s for cost in costs),
        cost_usd=sum(known) if known else None,
    )


def _row(cost: Cost, *, has_price: bool) -> tuple[str, ...]:
    money = "" if cost.cost_usd is None else f"{cost.cost_usd:,.2f}"
    tokens = (f"{cost.prompt_tokens:,}", f"{cost.completion_tokens:,}")
    return (cost.stage, cost.slot, f"{cost.calls:,}", *tokens, f"{cost.gpu_s / 3600:,.2f}", *[money] * has_price)
