"""What the judge stage did, as a short text for people."""

from moaa_ray.core.judge_stats import Estimate, JudgeStats
from moaa_ray.generation.summary import render
from moaa_ray.preference.judge import JudgeSummary

_RATES = (
    ("first_rate", "said A", "of the verdicts; 50 % without position bias"),
    ("disagreement_rate", "orders disagree", "of the pairs, which counts as a tie"),
    ("parse_failure_rate", "no verdict", "of the questions on judged prompts"),
    ("cycle_rate", "cycles", "of the triples: i beats j beats k beats i"),
)


def render_judge(summary: JudgeSummary) -> str:
    """The rows, the pairs by rule, and the judge's habits with 95 % intervals over prompts."""
    pairs = summary.pairs
    lines = [render(summary.rows)]
    dropped = "".join(f", {rule} {n:,}" for rule, n in pairs.dropped.items())
    lines.append(
        f"{pairs.num_pairs:,} pairs of {pairs.num_judged:,} judged prompts{dropped}; margin {pairs.mean_margin:.2f}, "
        f"chosen {pairs.mean_chosen_chars:,.0f} and rejected {pairs.mean_rejected_chars:,.0f} characters on average"
    )
    for name, stats in summary.stats.items():
        lines += _habits(name if len(summary.stats) > 1 else "", stats)
    any_stats = next(iter(summary.stats.values()), None)
    length = any_stats.length_correlation if any_stats else None
    if length is not None and length.value is not None:
        interval = "" if length.low is None or length.high is None else f"[{length.low:+.2f}, {length.high:+.2f}]"
        lines.append(f"  {'length':<16} {length.value:+6.2f} {interval} correlation with the score within a prompt")
    if any_stats is not None and pairs.coin_kept_rate is not None:
        chance = f"a judge that tosses a coin would keep about {pairs.coin_kept_rate:.0%}, filters aside"
        lines.append(f"  {'kept':<16} {_percent(any_stats.kept_rate)} of the prompts; {chance}")
    usage = summary.rows.usage
    if cached := sum(pool.cached_tokens for pool in usage):
        part = cached / sum(pool.prompt_tokens for pool in usage)
        lines.append(f"  {'prefix cache':<16} {part:6.1%} of the prompt tokens had been read before")
    lines.append(f"  data: {summary.folder}   every verdict: {summary.rows.run_dir}/judgments")
    return "\n".join(lines)


def _habits(name: str, stats: JudgeStats) -> list[str]:
    """A model's position bias and the like, where it gives verdicts."""
    lines = [f"  {name}"] if name else []
    for field, title, what in _RATES:
        if (rate := getattr(stats, field)).count:
            lines.append(f"  {title:<16} {_percent(rate)} {what}")
    return lines


def _percent(rate: Estimate) -> str:
    if rate.value is None:
        return "  n/a"
    interval = "" if rate.low is None or rate.high is None else f" [{rate.low:.1%}, {rate.high:.1%}]"
    return f"{rate.value:6.1%}{interval}"
