"""The scores as the paper's table: a line for each model, 95 % intervals below it, and what they are made of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.evaluation.scores import Scored, Scores
from moaa_ray.settings.evaluation import Benchmark

About = Mapping[Benchmark, Mapping[str, Any]]
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


def text_table(scored: Scored, about: About) -> str:
    """For a terminal."""
    rows = [line for lines in _lines(scored, about) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        f"{name:<{widths[0]}}{''.join(f'  {cell:>{width}}' for cell, width in zip(cells, widths[1:], strict=True))}"
        for name, *cells in rows
    ]
    return "\n".join([*(line.rstrip() for line in table), "", *(f"  {line}" for line in _legend(scored, about))])


def markdown(scored: Scored, about: About) -> str:
    """For readers of the run's files."""
    head, *models = _lines(scored, about)
    lines = ["# Evaluation", "", _row(head[0]), _row(["---", *("---:" for _ in head[0][1:])])]
    lines += [_row(line) for each in models for line in each]
    return "\n".join([*lines, "", *(f"- {line}" for line in _legend(scored, about))]) + "\n"


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


def _legend(scored: Scored, about: About) -> Iterable[str]:
    """What the numbers are, by benchmark; then notes, and what could not be scored."""
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
