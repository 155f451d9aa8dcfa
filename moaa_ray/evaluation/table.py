"""The scores as the paper's table: a line for each model, 95 % intervals below it, and what they are made of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.evaluation.scores import Scored, Scores
from moaa_ray.settings.evaluation import Benchmark

About = Mapping[Benchmark, Mapping[str, Any]]
Checks = Sequence[Mapping[str, Any]]
"""check.json of the judges that were checked."""
_TITLES = {"alpaca_eval": "AlpacaEval 2", "arena_hard": "Arena-Hard v0.1", "mt_bench": "MT-Bench"}
_COLUMNS: Mapping[Benchmark, tuple[str, ...]] = {
    "alpaca_eval": ("AE2 LC", "AE2 WR"),
    "arena_hard": ("Arena-Hard",),
    "mt_bench": ("MT-Bench", "1st turn", "2nd turn"),
}
_STYLE = "at equal style"
_NONE = ("-", "", "")

_Cell = tuple[str, str, str]
"""A value, its interval, and how many of all could be counted."""


def text_table(scored: Scored, about: About, checks: Checks = ()) -> str:
    """For a terminal."""
    tables = [[line for lines in _lines(scored, about) for line in lines]] if scored.models else []
    tables += [judge_rows(checks)] if checks else []
    told = "\n\n".join("\n".join(_aligned(rows)) for rows in tables)
    return "\n".join([told, "", *(f"  {line}" for line in _legend(scored, about, checks))])


def markdown(scored: Scored, about: About, checks: Checks = ()) -> str:
    """For readers of the run's files."""
    lines = ["# Evaluation", ""]
    if scored.models:
        lines += [*_marked([line for each in _lines(scored, about) for line in each]), ""]
    if checks:
        lines += ["## Judges on labelled pairs", "", *_marked(judge_rows(checks)), ""]
    return "\n".join([*lines, *(f"- {line}" for line in _legend(scored, about, checks))]) + "\n"


def judge_rows(checks: Checks) -> list[tuple[str, ...]]:
    """Titles, then for each judge its accuracies in % over both orders and in one, by section, and what it cost."""
    sections = list(dict.fromkeys(name for check in checks for name in check["scores"]["sections"]))
    has_price = any(check["cost"]["usd"] is not None for check in checks)
    found = [("judge", "orders", "total", "", *sections, "no verdict", "calls", *["USD"] * has_price)]
    for check in checks:
        scores, cost = check["scores"], check["cost"]
        for way, lacks in (("both_orders", "no_verdict"), ("one_order", "no_verdict_one_order")):
            is_first, total = way == "both_orders", scores["total"][way]
            by_section = [scores["sections"].get(name) for name in sections]
            usd = "-" if cost["usd"] is None else f"{cost['usd']:,.2f}"
            found.append(
                (
                    check["judge"] if is_first else "",
                    "both" if is_first else "one",
                    f"{100 * total['value']:.1f}",
                    f"[{100 * total['low']:.1f}, {100 * total['high']:.1f}]",
                    *(f"{100 * score[way]['value']:.1f}" if score else "-" for score in by_section),
                    f"{scores['total'][lacks]:,}/{scores['total']['num_pairs']:,}",
                    f"{cost['calls']:,}" if is_first else "",
                    *([usd if is_first else ""] if has_price else []),
                )
            )
    return found


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        beside = (f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield f"{name:<{widths[0]}}{''.join(beside)}".rstrip()


def _marked(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *others = rows
    return [_row(head), _row(["---", *("---:" for _ in head[1:])]), *map(_row, others)]


def _lines(scored: Scored, about: About) -> list[list[tuple[str, ...]]]:
    """The titles, then three lines for each model: values, intervals, counts."""
    with_style = any(one.arena_hard and one.arena_hard.style_controlled for one in scored.models.values())
    titles = [title for benchmark, names in _COLUMNS.items() if benchmark in about for title in names]
    if with_style:
        titles.insert(titles.index("Arena-Hard") + 1, _STYLE)
    found: list[list[tuple[str, ...]]] = [[("model", *titles)]]
    for name, scores in scored.models.items():
        cells = _cells(scores)
        below = [cells.get(title, _NONE) for title in titles]
        found.append([(name if i == 0 else "", *(cell[i] for cell in below)) for i in range(3)])
    return found


def _cells(scores: Scores) -> dict[str, _Cell]:
    """The cells of a model by title, as far as there are scores."""
    found: dict[str, _Cell] = {}
    if rates := scores.alpaca_eval:
        found["AE2 WR"] = _cell(rates.win_rate, rates.num_valid, rates.num_total)
        if controlled := scores.length_controlled:
            found["AE2 LC"] = _cell(controlled.win_rate, controlled.win_rate.count, rates.num_total)
    if arena := scores.arena_hard:
        found["Arena-Hard"] = _cell(arena.win_rate, arena.num_valid, arena.num_total)
        if arena.style_controlled:
            found[_STYLE] = _cell(arena.style_controlled, arena.num_valid, arena.num_total)
    if graded := scores.mt_bench:
        found["MT-Bench"] = _cell(graded.overall, graded.num_valid, graded.num_total, digits=2)
        for title, turn in zip(("1st turn", "2nd turn"), graded.turns, strict=True):
            found[title] = _cell(turn, turn.count, graded.num_total // len(graded.turns), digits=2)
    return found


def _cell(estimate: Estimate, num_valid: int, num_total: int, *, digits: int = 1) -> _Cell:
    counts = f"{num_valid:,}/{num_total:,}"
    if estimate.value is None:
        return "-", "", counts
    interval = "" if estimate.low is None else f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return f"{estimate.value:.{digits}f}", interval, counts


def _legend(scored: Scored, about: About, checks: Checks) -> Iterable[str]:
    """What the numbers are, by benchmark; then notes, and what could not be scored."""
    if scored.models:
        yield "below each number: the 95 % interval over questions, and how many judgments count of all"
    for name, facts in about.items():
        judge = facts["judge"]
        model = f"{judge['name']} ({judge['model']}{'@' + judge['revision'] if judge['revision'] else ''})"
        against = f"against {facts['baseline']}, " if facts["baseline"] else ""
        asked = f"{facts['num_questions']:,} questions, {against}judge {model}, {_judging(facts)}"
        yield (
            f"{_TITLES[name]}: {asked}; answers of at most "
            f"{facts['settings']['max_tokens']:,} tokens, {_temperature(facts['settings'])}"
        )
    if checks:
        files = ", ".join(dict.fromkeys(path for check in checks for path in check["files"]))
        whole = all(check["scores"]["is_reward_bench"] for check in checks)
        yield (
            f"judges: accuracy in % on the labelled pairs of {files}, asked in both orders (two that disagree count "
            "one half) and in one, as RewardBench asks; a coin has 50"
            + ("" if whole else "; not RewardBench's 2,985 pairs, so not comparable with published totals")
        )
    yield from scored.notes
    yield from (f"no score: {problem}" for problem in scored.problems)


def _judging(facts: Mapping[str, Any]) -> str:
    if facts["settings"].get("preference") == "scores":
        return "by which answer it scores higher"
    sampling, prompt = facts["sampling"], f"prompt {facts['prompt_version']}"
    if sampling["logprobs"]:
        return f"{prompt}, by the logprobs of its first token"
    return f"{prompt}, temperature {sampling['temperature']:g}, at most {sampling['max_tokens']:,} tokens"


def _temperature(settings: Mapping[str, Any]) -> str:
    return f"temperature {settings['temperature']:g}" if "temperature" in settings else "temperature by category"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
