"""What a check of a judge has found, as a short text for people."""

from collections.abc import Iterator

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.generation.progress import duration
from moaa_ray.preference.check import OUTCOMES, REPORT, CheckReport, Cost
from moaa_ray.preference.check_pairs import section_of
from moaa_ray.preference.check_scores import Score, Scores

_RATES = (
    ("first_rate", "said A", "of the verdicts; 50 % without position bias"),
    ("disagreement_rate", "orders disagree", "of the pairs"),
    ("parse_failure_rate", "no verdict", "of the questions"),
)


def render_check(report: CheckReport) -> str:
    """The accuracies by section and subset with 95 % intervals over pairs, the judge's habits, the cost."""
    left_out = "".join(f", {count:,} left out ({reason})" for reason, count in report.skipped.items())
    lines = [f"judge {report.judge} on {report.scores.total.num_pairs:,} labelled pairs{left_out}; a coin gets 50 %"]
    lines += _table(report.scores)
    if any(section_of(subset) != subset for subset in report.scores.subsets) and not report.scores.is_reward_bench:
        lines.append("  not RewardBench's 2,985 pairs, whole and alone: the total does not compare with published ones")
    for name, habits in report.habits.items():
        if len(report.habits) > 1:
            lines.append(f"  {name}")
        for field, title, what in _RATES:
            if (rate := getattr(habits, field)).count:
                lines.append(f"  {title:<16} {_percent(rate)} {what}")
    length = report.length_correlation
    if length.value is not None:
        interval = f"[{length.low:+.2f}, {length.high:+.2f}]"
        lines.append(f"  {'longer wins':<16} {length.value:+6.2f} {interval} from -1 (never) to +1 (always)")
    if report.errors:
        lines.append("  lacking: " + ", ".join(f"{reason} {count:,}" for reason, count in report.errors.items()))
    lines.append(f"  cost: {_cost(report.cost)}")
    lines.append(f"  data: {report.folder}/{{{REPORT},{OUTCOMES},judgments}}")
    return "\n".join(lines)


def _table(scores: Scores) -> list[str]:
    rows = [("", "pairs", "both orders", "one order", "no verdict"), ("total", *_cells(scores.total))]
    rows += [(name, *_cells(score)) for name, score in _parts(scores)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"  {name:<{widths[0]}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    ]


def _parts(scores: Scores) -> Iterator[tuple[str, Score]]:
    """Sections, each with its subsets; what would only say the same again is left out."""
    if len(scores.subsets) == 1:
        return
    for section, score in scores.sections.items():
        yield section, score
        inside = {subset: each for subset, each in scores.subsets.items() if section_of(subset) == section}
        if list(inside) != [section]:
            yield from ((f"  {subset}", each) for subset, each in inside.items())


def _cells(score: Score) -> tuple[str, ...]:
    return (f"{score.num_pairs:,}", _percent(score.both_orders), _percent(score.one_order), f"{score.no_verdict:,}")


def _percent(rate: Estimate) -> str:
    if rate.value is None or rate.low is None or rate.high is None:
        return "n/a"
    return f"{rate.value:6.1%} [{rate.low:.1%}, {rate.high:.1%}]"


def _cost(cost: Cost) -> str:
    usd = "" if cost.usd is None else f", {cost.usd:,.2f} USD"
    gpus = f", {cost.gpu_s:,.0f} GPU-s" if cost.gpu_s else ""
    tokens = f"{cost.prompt_tokens:,} tokens in and {cost.completion_tokens:,} out"
    return f"{cost.calls:,} calls, {tokens}, {duration(cost.engine_s)} of engines{gpus}{usd}"
