"""What report.html says of the benchmarks, out of RUN/evaluation/summary.json: win rates and grades with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from markupsafe import Markup

from moaa_ray.data.store import Store, open_store
from moaa_ray.evaluation.summary import FOLDER
from moaa_ray.evaluation.table import judge_rows
from moaa_ray.reporting import pictures
from moaa_ray.run_record import read_summary

_ARENA = ("Arena-Hard", "arena_hard", "win_rate")
_WIN_RATES = (
    ("AlpacaEval 2, length-controlled", "length_controlled", "win_rate"),
    ("AlpacaEval 2", "alpaca_eval", "win_rate"),
    _ARENA,
    ("Arena-Hard at equal style", "arena_hard", "style_controlled"),
)
_GRADES = ("MT-Bench, 1 to 10", "mt_bench", "overall")


@dataclass(frozen=True, kw_only=True)
class ScoresView:
    """The evaluation of a run."""

    tables: Sequence[tuple[str, Sequence[Sequence[str]]]]
    pictures: Sequence[tuple[str, Markup]]
    notes: Sequence[str]
    """How each benchmark was run, and what to know of the scores."""


def scores_view(store: Store) -> ScoresView | None:
    """The evaluation of a run directory; None where there is none."""
    facts = read_summary(open_store(f"{store.uri}/{FOLDER}"))
    if not facts:
        return None
    models: Mapping[str, Mapping[str, Any]] = facts["models"]
    shown = [one for one in (*_WIN_RATES, _GRADES) if any(_estimate(scores, one) for scores in models.values())]
    titles, rows = [title for title, _, _ in shown], [[name] for name in models]
    for row, scores in zip(rows, models.values(), strict=True):
        row += [_cell(scores, one) for one in shown]
    if any(_estimate(scores, _ARENA) for scores in models.values()):
        titles.append("Arena-Hard, Bradley-Terry strength in Elo")
        for row, scores in zip(rows, models.values(), strict=True):
            row.append(_strength(scores))
    counted = [name for name in ("alpaca_eval", "arena_hard", "mt_bench") if name in facts["benchmarks"]]
    counts = [(model, *(_count(scores.get(name)) for name in counted)) for model, scores in models.items()]
    behind = [("model", "weights or answers", "revision", "digest of its files"), *_behind(facts.get("evaluated", {}))]
    notes = [*(_how(name, about) for name, about in facts["benchmarks"].items()), *facts["notes"]]
    if checks := facts.get("reward_bench"):
        notes.append("Judges: both orders (two that disagree count one half), or one, as RewardBench asks; a coin: 50.")
    return ScoresView(
        tables=[
            *([("Win rates in %, and grades, with 95 % intervals over questions",
                [("model", *titles), *rows]),
               ("Judgments that count, of all", [("model", *counted), *counts])] if models else []),
            *([("Judges: accuracy in % on labelled pairs, with 95 % intervals over pairs", judge_rows(checks))]
              if checks else []),
            *([("What was evaluated", behind)] if len(behind) > 1 else []),
        ],
        pictures=[(f"{one[0]}: win rates", _picture(models, one)) for one in shown if one in _WIN_RATES],
        notes=[*notes, *(f"no score: {problem}" for problem in facts["problems"])],
    )  # fmt: skip


def _behind(evaluated: Mapping[str, Mapping[str, Any]]) -> list[Sequence[str]]:
    """For every line of the table the model, or the files of answers, that it stands for."""
    return [
        (name, ", ".join(file["path"] for file in one["answers"].values()), "-", "-")
        if "answers" in one
        else (name, one["model"] or "-", one["revision"] or "-", one["files"] or "-")
        for name, one in evaluated.items()
    ]


def _estimate(scores: Mapping[str, Any], one: tuple[str, str, str]) -> Mapping[str, Any] | None:
    """A score with its interval; None where it was not taken, or nothing counts."""
    _, benchmark, name = one
    found = (scores.get(benchmark) or {}).get(name)
    return found if found and found["value"] is not None else None


def _cell(scores: Mapping[str, Any], one: tuple[str, str, str]) -> str:
    found = _estimate(scores, one)
    if found is None:
        return "-"
    digits = 2 if one == _GRADES else 1
    interval = "" if found["low"] is None else f" [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    return f"{found['value']:.{digits}f}{interval}"


def _strength(scores: Mapping[str, Any]) -> str:
    """The log-odds of winning against the baseline, whose strength is 0, as Elo: all games of a model are with it, so
    that Bradley and Terry's model has the win rate's own solution, and the ends of its interval."""
    found = _estimate(scores, _ARENA)
    ends = [found[end] for end in ("value", "low", "high") if found[end] is not None] if found else []
    told = [f"{400 * log10(rate / (100 - rate)):+.0f}" if 0 < rate < 100 else "-" for rate in ends]
    return f"{told[0]} [{told[1]}, {told[2]}]" if len(told) == 3 else "-"


def _count(scores: Mapping[str, Any] | None) -> str:
    return f"{scores['num_valid']:,}/{scores['num_total']:,}" if scores else "-"


def _picture(models: Mapping[str, Mapping[str, Any]], one: tuple[str, str, str]) -> Markup:
    known = [(name, _estimate(scores, one)) for name, scores in models.items()]
    rows = [
        (name, *(found[end] / 100 for end in ("value", "low", "high")))
        for name, found in known
        if found and found["low"] is not None
    ]
    return pictures.intervals(rows, mark=0.5)


def _how(name: str, about: Mapping[str, Any]) -> str:
    against = f"against {about['baseline']}, " if about["baseline"] else ""
    by_scores = about.get("settings", {}).get("preference") == "scores"
    judging = "by which answer it scores higher" if by_scores else f"prompt {about['prompt_version']}"
    return f"{name}: {about['num_questions']:,} questions, {against}judge {about['judge']['name']}, {judging}"
