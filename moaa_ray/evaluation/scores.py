"""From what was judged to the numbers of the table, model by model; what is lacking counts as not judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from moaa_ray.errors import DataError
from moaa_ray.evaluation import alpaca_eval, arena_hard, mt_bench
from moaa_ray.evaluation.alpaca_eval import Annotation, WinRates
from moaa_ray.evaluation.arena_hard import ArenaScore, Game
from moaa_ray.evaluation.benchmarks import Bench
from moaa_ray.evaluation.length_control import (
    LengthControlled,
    is_extreme,
    length_controlled,
    length_controlled_jointly,
)
from moaa_ray.evaluation.mt_bench import Graded, MtBenchScores, Question
from moaa_ray.evaluation.protocols import ScoresProtocol
from moaa_ray.evaluation.style import style_of
from moaa_ray.settings.evaluation import ArenaHardConfig, Benchmark

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One question and one model: its answers, none where it has not answered, and what was judged of them."""

    question: Question
    texts: tuple[str, ...] = ()
    record: Mapping[str, Any] | None = None
    """Of the schema JUDGED; None: not judged."""


Outcomes = Mapping[str, Sequence[Outcome]]
"""By model, in the questions' order."""


@dataclass(kw_only=True)
class Scores:
    """The numbers of one model; None where its benchmark was not run, or gave nothing to count."""

    alpaca_eval: WinRates | None = None
    length_controlled: LengthControlled | None = None
    arena_hard: ArenaScore | None = None
    mt_bench: MtBenchScores | None = None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """All models' scores, what to know of them, and what could not be scored."""

    models: Mapping[str, Scores]
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def score(
    outcomes: Mapping[Benchmark, Outcomes], benches: Sequence[Bench], models: Sequence[str], *, seed: int
) -> Scored:
    """The scores of every model on every benchmark that it was judged on."""
    scored = Scored(models={model: Scores() for model in models})
    for bench in benches:
        judged = outcomes[bench.name]
        match bench.name:
            case "alpaca_eval":
                _alpaca_eval(scored, bench, judged, seed)
            case "arena_hard":
                _arena_hard(scored, bench, judged, seed)
            case "mt_bench":
                for model, found in judged.items():
                    grades = [grade for one in found for grade in _grades(one)]
                    what = f"{model}, mt_bench"
                    given = _attempt(scored, what, lambda g: mt_bench.mt_bench_scores(g, seed=seed), grades)
                    scored.models[model].mt_bench = given
                    if given is not None and given.lacking:
                        told = ", ".join(f"{reason} {num:,}" for reason, num in given.lacking.items())
                        scored.notes.append(f"{model}: grades that MT-Bench lacks, by turn and reason: {told}")
    return scored


def _alpaca_eval(scored: Scored, bench: Bench, outcomes: Outcomes, seed: int) -> None:
    assert bench.baseline is not None
    baseline, by_scores = bench.baseline.texts, isinstance(bench.protocol, ScoresProtocol)
    annotations: dict[str, list[Annotation]] = {}
    for model, found in outcomes.items():
        notes = [_annotation(one, baseline[one.question.id][0], by_scores=by_scores) for one in found]
        rates = _attempt(scored, f"{model}, alpaca_eval", lambda a: alpaca_eval.win_rates(a, seed=seed), notes)
        scored.models[model].alpaca_eval = rates
        if rates is not None:
            annotations[model] = notes
    if not annotations:
        return
    where = "alpaca_eval, length control"
    if bench.difficulties:
        controlled = {
            model: _attempt(scored, f"{model}, {where}", lambda a: _published(bench, a, seed), given)
            for model, given in annotations.items()
        }
        scored.notes.append("length-controlled with the published difficulties")
    else:
        controlled = _attempt(scored, where, lambda a: length_controlled_jointly(a, seed=seed), annotations) or {}
        others = len(annotations) - 1
        how = f"with difficulties fitted to the other {'models' if others > 1 else 'model'} ({others})"
        if not others:
            how = "without regard to how difficult the instructions are, which no other model is there to tell"
        scored.notes.append(
            f"length-controlled {how}, so not comparable with the leaderboard; set "
            "evaluate.alpaca_eval.difficulties for that"
        )
    for model, one in controlled.items():
        scored.models[model].length_controlled = one
        rates = scored.models[model].alpaca_eval
        if one is not None and rates is not None and is_extreme(rates.win_rate.value or 0.0, one.win_rate.value or 0.0):
            scored.notes.append(f"{model}: length control has moved its win rate very far; look at its lengths")


def _published(bench: Bench, annotations: Sequence[Annotation], seed: int) -> LengthControlled:
    return length_controlled(annotations, difficulties=bench.difficulties, gamed=bench.gamed, seed=seed)


def _annotation(one: Outcome, baseline: str, *, by_scores: bool) -> Annotation:
    """The preference of one question; an answer that is lacking counts as of the baseline's length."""
    value = None
    if one.record is not None:
        values = [game["value"] for game in one.record["games"]]
        if one.record["is_same_text"]:
            value = alpaca_eval.SAME_TEXT
        elif values:
            value = alpaca_eval.score_preference(*values) if by_scores else values[0]
    return alpaca_eval.annotation(one.question.id, one.texts[0] if one.texts else baseline, baseline, value)


def _arena_hard(scored: Scored, bench: Bench, outcomes: Outcomes, seed: int) -> None:
    assert bench.baseline is not None
    assert isinstance(bench.config, ArenaHardConfig)
    games: list[Game] = []
    for model, found in outcomes.items():
        own = [game for one in found for game in _games(model, one)]
        if any(game.grade for game in own):
            games += own
        else:
            scored.problems.append(f"{model}, arena_hard: no game of {len(own)} has a grade")
    styles = None
    if bench.config.style_control:
        styles = {
            (model, one.question.id): (
                style_of(one.texts[0] if one.texts else ""),
                style_of(bench.baseline.texts[one.question.id][0]),
            )
            for model, found in outcomes.items()
            for one in found
        }
    if games:
        fitted = _attempt(scored, "arena_hard", lambda g: arena_hard.arena_scores(g, seed=seed, styles=styles), games)
        for model, one in (fitted or {}).items():
            scored.models[model].arena_hard = one


def _games(model: str, one: Outcome) -> list[Game]:
    """Both orders; two equal texts are ties, and what was not judged has no grade."""
    tie = "A=B" if one.record is not None and one.record["is_same_text"] else None
    said = {game["is_model_first"]: game["grade"] or None for game in one.record["games"]} if one.record else {}
    return [
        Game(prompt_id=one.question.id, model=model, is_model_first=first, grade=tie or said.get(first))
        for first in (False, True)
    ]


def _grades(one: Outcome) -> list[Graded]:
    """One for each turn; what was not judged has no grade."""
    said = {game["turn"]: game for game in one.record["games"]} if one.record else {}
    without = {"value": None, "error": "not_judged" if one.texts else "no_answer"}
    games = [(turn, said.get(turn, without)) for turn in range(mt_bench.NUM_TURNS)]
    return [
        Graded(
            question_id=one.question.id,
            category=one.question.category,
            turn=turn,
            grade=game["value"],
            lacks=game["error"],
        )
        for turn, game in games
    ]


def _attempt(scored: Scored, what: str, compute: Callable[[Any], T], given: Any) -> T | None:
    """The numbers; None where the data has none, which is noted, as the other benchmarks' numbers still count."""
    try:
        return compute(given)
    except DataError as error:
        scored.problems.append(f"{what}: {error}")
        return None
