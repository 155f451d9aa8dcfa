"""What a judge did in numbers and tables, for the pages, out of summary.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number with its name, and what it means."""

    name: str
    value: str
    about: str


def headline(stage: Mapping[str, Any]) -> str:
    """One sentence."""
    pairs = stage["pairs"]
    text = f"{stage['num_prompts']:,} prompts went to the judge; {pairs['num_judged']:,} were judged and gave "
    return text + f"{pairs['num_pairs']:,} pairs. Intervals in brackets are 95 % over prompts."


def facts(stage: Mapping[str, Any]) -> list[Fact]:
    """What the judge did, from the judge stage of summary.json."""
    stats, pairs = main_stats(stage), stage["pairs"]
    chance = pairs.get("coin_kept_rate")
    coin = "" if chance is None else f"; a judge that tosses a coin keeps about {chance:.0%}, filters aside"
    kept = f"of the judged prompts gave a pair{coin}"
    found = [
        Fact(name="Kept", value=_percent(stats["kept_rate"]), about=_with_interval(stats["kept_rate"], kept)),
        Fact(name="Mean margin", value=f"{pairs['mean_margin']:.3g}", about="chosen score less rejected score"),
        Fact(
            name="Mean length",
            value=f"{pairs['mean_chosen_chars']:,.0f} / {pairs['mean_rejected_chars']:,.0f}",
            about="characters of the chosen and of the rejected",
        ),
        Fact(
            name="Length and score",
            value=_correlation(stats["length_correlation"]),
            about=_with_interval(stats["length_correlation"], "mean correlation within a prompt", is_rate=False),
        ),
    ]
    for field, name, about in (
        ("first_rate", "Said A", "of the verdicts name the one shown first; 50 % without position bias"),
        ("disagreement_rate", "Orders disagree", "of the pairs, which counts as a tie"),
        ("cycle_rate", "Cycles", "of the triples: i beats j beats k beats i; 3.1 % by a coin"),
        ("parse_failure_rate", "No verdict", "of the questions had no answer in form"),
    ):
        if stats[field]["count"]:
            found.append(Fact(name=name, value=_percent(stats[field]), about=_with_interval(stats[field], about)))
    return found


def main_stats(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    """The habits of the model that decides; of a jury its first member's, beside a table of all."""
    return next(iter(stage["judge_stats"].values()))


def _member_rows(members: Mapping[str, Mapping[str, Any]]) -> list[Sequence[str]]:
    fields = ("first_rate", "disagreement_rate", "cycle_rate", "parse_failure_rate")
    rows = [[name, *(_percent(stats[field]) for field in fields)] for name, stats in members.items()]
    return [["", "said A", "orders disagree", "cycles", "no verdict"], *rows]


def tables(stage: Mapping[str, Any]) -> list[tuple[str, list[Sequence[str]]]]:
    """Tables with their titles, each below a row of column names; those that are not empty."""
    counts = (
        ("Rows by status", stage["statuses"]),
        ("Dropped, by rule", {**stage.get("dropped", {}), **stage["pairs"]["dropped"]}),
        ("Failed, by reason", stage.get("failures", {})),
    )
    found: list[tuple[str, list[Sequence[str]]]] = [
        (title, [["", "rows"], *([name, f"{n:,}"] for name, n in known.items() if n)])
        for title, known in counts
        if any(known.values())
    ]
    if len(stage["judge_stats"]) > 1:
        found.append(("The members of the jury", _member_rows(stage["judge_stats"])))
    found.append(("What decided the places", _tie_rows(stage)))
    pools = pool_rows(stage.get("usage") or [])
    return [*found, ("What it has cost, over all starts of the stage", pools)] if pools else found


def position_parts(stats: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Shares of the verdicts for the one shown first and for the other; [] where no verdict was asked for."""
    first = stats["first_rate"]["value"]
    return [] if first is None else [("said A", first), ("said B", 1 - first)]


def order_parts(stats: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Shares of the pairs whose orders agree, and of those in which both say A, or both B."""
    both = [stats[name]["value"] for name in ("both_first_rate", "both_second_rate")]
    if None in both:
        return []
    return [("agree", 1 - sum(both)), ("A twice", both[0]), ("B twice", both[1])]


def _tie_rows(stage: Mapping[str, Any]) -> list[Sequence[str]]:
    """What decided the first and the last place, in prompts, below a row of titles."""
    ties = [main_stats(stage)[place] for place in ("top_ties", "bottom_ties")]
    kinds = ("score", "head_to_head", "sonneborn_berger", "coin")
    names = ("the score", "head-to-head among equal scores", "Sonneborn-Berger among equal scores", "a coin")
    rows = [[name, *(f"{place[f'num_{kind}']:,}" for place in ties)] for kind, name in zip(kinds, names, strict=True)]
    return [["decided by", "first place", "last place"], *rows]


def pool_rows(pools: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    """Calls, tokens, time and cost of every pool as text, below a row of titles; [] where no pool ran."""
    is_priced = any(pool.get("cost_usd") is not None for pool in pools)
    titles = ["pool", "calls", "tokens in", "tokens out", "tokens/s", "busy", "engine time", "GPU-s", "failures"]
    rows = [
        [
            pool["name"],
            *(f"{pool[name]:,}" for name in ("calls", "prompt_tokens", "completion_tokens")),
            f"{pool['tokens_per_s']:,.0f}",
            f"{pool['busy_fraction']:.0%}",
            _time(pool["engine_s"]),
            f"{pool['gpu_s']:,.0f}",
            ", ".join(f"{reason} {n:,}" for reason, n in pool["failures"].items()) or "0",
            *([_usd(pool.get("cost_usd"))] if is_priced else []),
        ]
        for pool in pools
    ]
    return [[*titles, *(["USD"] if is_priced else [])], *rows] if rows else []


def _percent(rate: Mapping[str, Any]) -> str:
    return "n/a" if rate["value"] is None else f"{rate['value']:.1%}"


def _correlation(rate: Mapping[str, Any]) -> str:
    return "n/a" if rate["value"] is None else f"{rate['value']:+.2f}"


def _with_interval(rate: Mapping[str, Any], about: str, *, is_rate: bool = True) -> str:
    if rate["low"] is None or rate["high"] is None:
        return about
    low, high = (f"{rate[name]:.1%}" if is_rate else f"{rate[name]:+.2f}" for name in ("low", "high"))
    return f"[{low}, {high}] {about}"


def _usd(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:,.2f}"


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
