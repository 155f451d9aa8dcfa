"""What the planner has to know of an evaluation: how many questions there are, and what they ask of models and judges.

Needs neither the benchmarks' files, whose sizes are known, nor Ray.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from moaa_ray.core.candidates import forget_failures
from moaa_ray.core.passes import Pass, StageWork
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.evaluation.answering import STAGE, answer_work
from moaa_ray.evaluation.benchmarks import NUM_TURNS
from moaa_ray.evaluation.contestants import BASE, Contestant, find_contestants
from moaa_ray.evaluation.files import read_questions
from moaa_ray.evaluation.judging import INPUTS, REPEAT, close_judged, judge_passes
from moaa_ray.evaluation.protocols import protocol_of
from moaa_ray.lines.judge import plan_input as plan_judge
from moaa_ray.lines.mixture import expected_completion
from moaa_ray.loading import LoadedPreference
from moaa_ray.planning.planner import PlanInput
from moaa_ray.planning.pool_estimate import PassLoad
from moaa_ray.preference.check_pairs import NUM_PAIRS, read_pairs
from moaa_ray.settings.evaluation import Benchmark
from moaa_ray.settings.models import ClassifierModel, RuleModel, WeightsModel
from moaa_ray.types import Sampling

PUBLISHED: Mapping[Benchmark, int] = {"alpaca_eval": 805, "arena_hard": 500, "mt_bench": 80}
"""Questions of the benchmarks' own files."""
_NUM_GAMES: Mapping[Benchmark, int] = {"alpaca_eval": 1, "arena_hard": 2, "mt_bench": 2}
"""What a judge that writes is asked of one question; one that scores is asked of both answers."""
_TEMPLATE_TOKENS = 300
"""Tokens of a judge's prompt beside the question and the answers; an assumption."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One plan of an evaluation, for everyone who answers alike, or for one judge."""

    title: str
    asked: PlanInput
    num_rows: int
    mean_turns: float = 1.0
    num_times: int = 1
    """So many models are asked alike, one after the other."""


def evaluation_parts(loaded: LoadedPreference) -> tuple[list[Part], list[str]]:
    """What the evaluate stage of a run asks, in order, and notes on what could not be counted.

    Models that are still to be trained count as large as the student. Raises ConfigError as find_contestants.
    """
    checks, check_notes = _checks_of_judges(loaded)
    if checks and not loaded.recipe.evaluate.benchmarks:
        return checks, check_notes
    loaded, contestants = find_contestants(loaded, is_ahead=True)
    loaded = _with_sized_students(loaded, contestants)
    config = loaded.recipe.evaluate
    counts, notes = count_questions(loaded)
    num_turns = sum(num * NUM_TURNS[name] for name, num in counts.items())
    num_rows = sum(counts.values())
    parts = []
    for alike in _alike(loaded, contestants):
        asked = answers_plan(loaded, answering_of(loaded, alike[0].engine))
        names = ", ".join(one.name for one in alike)
        title = f"{STAGE}, answers of {names}{', each' if len(alike) > 1 else ''}"
        turns = num_turns / max(1, num_rows)
        parts.append(Part(title=title, asked=asked, num_rows=num_rows, mean_turns=turns, num_times=len(alike)))
    for judge in dict.fromkeys(section.judge for section in config.benchmarks.values()):
        own: dict[Benchmark, int] = {n: num for n, num in counts.items() if config.benchmarks[n].judge == judge}
        judged = sum(num * sum(_has(one, name) for one in contestants) for name, num in own.items())
        asked = judge_plan(loaded, judging_of(loaded, judge, own), own)
        parts.append(Part(title=f"{STAGE}, judge {judge}", asked=asked, num_rows=judged))
    return [*parts, *checks], [*notes, *check_notes]


def _checks_of_judges(loaded: LoadedPreference) -> tuple[list[Part], list[str]]:
    """One part for each judge of evaluate.reward_bench, which counts as the published file where it is not here."""
    section, recipe, base_dir = loaded.recipe.evaluate.reward_bench, loaded.recipe, str(loaded.base_dir)
    if section is None:
        return [], []
    num, notes = NUM_PAIRS, []
    try:
        num = len(read_pairs(section.pairs, seed=recipe.seed, base_dir=base_dir).pairs)
    except (ConfigError, DataError):
        notes.append(f"note: evaluate.reward_bench.pairs counts as the published {num:,}: it cannot be read here")
    parts = [
        Part(
            title=f"{STAGE}, check of judge {name}",
            asked=plan_judge(recipe, recipe.judges[name], num_candidates=2, base_dir=base_dir),
            num_rows=num,
        )
        for name in section.judges
    ]
    return parts, notes


def count_questions(loaded: LoadedPreference) -> tuple[dict[Benchmark, int], list[str]]:
    """Questions by benchmark: of the recipe's files where they are on this machine, else the published number."""
    counts: dict[Benchmark, int] = {}
    notes = []
    for name, section in loaded.recipe.evaluate.benchmarks.items():
        place, path = f"evaluate.{name}.questions", section.questions
        try:
            if "://" in path:
                raise ConfigError(path)
            found = read_questions(path, field=place, num_turns=NUM_TURNS[name], base_dir=str(loaded.base_dir))
            counts[name] = len(found)
        except (ConfigError, DataError) as error:  # a plan may be made where the files are not
            counts[name] = PUBLISHED[name]
            why = str(error) if isinstance(error, DataError) else "the file is not on this machine"
            notes.append(f"note: {place} counts as the published {PUBLISHED[name]:,} questions: {why}")
    return counts, notes


def answering_of(loaded: LoadedPreference, engine: str) -> StageWork:
    """The work of one model, as far as plans need it."""
    config = loaded.recipe.evaluate
    samplings = {
        name: Sampling(max_tokens=section.max_tokens, temperature=0.0) for name, section in config.benchmarks.items()
    }
    return answer_work(engine, samplings, run_seed=loaded.recipe.seed)


def judging_of(loaded: LoadedPreference, judge: str, benchmarks: Iterable[Benchmark]) -> StageWork:
    """The work of one judge on benchmarks that it is the judge of."""
    config, seed = loaded.recipe.evaluate, loaded.recipe.seed
    protocols = {name: protocol_of(name, config, run_seed=seed) for name in benchmarks}
    passes = judge_passes(judge, protocols, run_seed=seed)
    return StageWork(stage=STAGE, passes=passes, close=close_judged, reopen=forget_failures, inputs=INPUTS)


def answers_plan(loaded: LoadedPreference, work: StageWork) -> PlanInput:
    """One model's answers, for the planner."""
    recipe = loaded.recipe

    def load(p: Pass, window: int | None) -> PassLoad:
        prompt = _within(recipe.plan.prompt_tokens, p, window)
        return PassLoad(num_requests=1.0, prompt_tokens=prompt, completion_tokens=expected_completion(recipe, p))

    return _plan(loaded, work, load)


def judge_plan(loaded: LoadedPreference, work: StageWork, counts: Mapping[Benchmark, int]) -> PlanInput:
    """One judge's work, for the planner; counts, the questions of each benchmark. A second reply is the exception."""
    recipe, config = loaded.recipe, loaded.recipe.evaluate
    model = recipe.models[work.passes[0].engine]
    by_scores = isinstance(model, ClassifierModel | RuleModel)
    each = {**_NUM_GAMES, "alpaca_eval": 2} if by_scores else _NUM_GAMES
    games: dict[Benchmark, int] = {name: max(1, num) * each[name] for name, num in counts.items()}
    num_games = sum(games.values())
    longest = {name: protocol_of(name, config, run_seed=recipe.seed).sampling.max_tokens for name in games}
    size = recipe.plan.prompt_tokens + recipe.plan.completion_tokens
    size += 0 if by_scores else recipe.plan.completion_tokens + _TEMPLATE_TOKENS

    def load(p: Pass, window: int | None) -> PassLoad:
        mean = expected_completion(recipe, p)
        said = sum(num * min(mean, longest[name]) for name, num in games.items()) / num_games
        return PassLoad(
            num_requests=0.0 if p.name == REPEAT else num_games / sum(max(1, num) for num in counts.values()),
            prompt_tokens=_within(size, p, window),
            completion_tokens=0.0 if by_scores else said,
        )

    return _plan(loaded, work, load)


def _plan(loaded: LoadedPreference, work: StageWork, load) -> PlanInput:
    return PlanInput(
        stage=STAGE,
        passes=work.passes,
        loads=lambda windows: {p.name: load(p, windows[p.engine]) for p in work.passes},
        recipe=loaded.recipe,
        settings=loaded.recipe.evaluate,
        base_dir=loaded.base_dir,
    )


def _within(size: float, p: Pass, window: int | None) -> float:
    return min(size, max(1.0, window - p.sampling.max_tokens)) if window else size


def _has(one: Contestant, name: Benchmark) -> bool:
    return one.stored is None or getattr(one.stored, name) is not None


def _with_sized_students(loaded: LoadedPreference, contestants: Sequence[Contestant]) -> LoadedPreference:
    """The recipe with the student's own folder for the models that the run trains from it."""
    recipe = loaded.recipe
    if recipe.student is None:
        return loaded
    place = {"model": recipe.student.model, "revision": recipe.student.revision}
    own = {one.engine for one in contestants if one.is_own}
    models = {
        name: model.model_copy(update=place) if name in own and isinstance(model, WeightsModel) else model
        for name, model in recipe.models.items()
    }
    return replace(loaded, recipe=recipe.model_copy(update={"models": models}))


def _alike(loaded: LoadedPreference, contestants: Sequence[Contestant]) -> Iterator[list[Contestant]]:
    """Those who answer, the student before and after training together."""
    students = [one for one in contestants if one.is_own or one.engine == f"{BASE}/student"]
    if students:
        yield students
    yield from ([one] for one in contestants if one.engine and one not in students)
