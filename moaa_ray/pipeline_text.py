"""A whole run as text: which step begins, and at the end what each has done."""

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console

from moaa_ray.generation.progress import duration
from moaa_ray.pipeline import Done, Step
from moaa_ray.reporting.costs import costs_of, render_costs


class Announcer:
    """Tells on the console which step begins."""

    def __init__(self, console: Console):
        self._console = console

    def __call__(self, step: Step, number: int, total: int) -> None:
        self._console.rule(f"{number} of {total}: {step.title}", align="left", style="dim")


def render_run(done: Sequence[Done], run_dir: str) -> str:
    """What every step has said, the time that each took, and where the models are."""
    parts = [f"{one.step.title} ({duration(one.seconds)})\n{_indented(one.text)}" for one in done]
    total = duration(sum(one.seconds for one in done))
    models = [f"{one.step.run_dir}/models/{one.step.stage}" for one in done if one.step.stage in ("sft", "dpo")]
    ends = [f"whole run: {total}, in {run_dir}", *(f"  model: {model}" for model in models[-1:])]
    ends[1:1] = [f"  {line}" for line in handovers(done)]
    costs = [cost for one in done for cost in costs_of(one.step.run_dir, one.step.stage, title=one.step.title)]
    return "\n\n".join([*parts, render_costs(costs), "\n".join(ends)])


def handover_seconds(done: Sequence[Done]) -> dict[str, float]:
    """By step, the time from the last work of the one before to its own first: engines, processes, models, Ray."""
    worked = [(one.step.title, one.worked) for one in done if one.worked]
    return {title: max(0.0, first - before) for (_, (_, before)), (title, (first, _)) in pairwise(worked)}


def handovers(done: Sequence[Done]) -> list[str]:
    """The same as a line of text; none where nothing has worked."""
    gaps = handover_seconds(done)
    if not gaps:
        return []
    told = ", ".join(f"{title} {duration(seconds)}" for title, seconds in gaps.items())
    return [f"of it {duration(sum(gaps.values()))} between stages, until the next one worked: {told}"]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
