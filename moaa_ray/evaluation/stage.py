"""`moaa evaluate`: models answer the benchmarks' questions, judges judge, and the table of the paper comes of it.

    questions -> RUN/evaluation/answers/<model>/answers -> RUN/evaluation/judges/<judge>/judged -> summary.json, .md

Answers and judgments are rows through passes as in every stage. Each model has a directory of its own, and so has each
judge, for all models and benchmarks together, so that its engine is loaded once. A row's id holds a hash of all that it
is asked and how: what has changed is asked anew, and nothing else is.
"""

from collections.abc import Sequence

from rich.console import Console

from moaa_ray.errors import ConfigError
from moaa_ray.evaluation.benchmarks import Bench, read_benchmarks
from moaa_ray.evaluation.checking import stored_answers
from moaa_ray.evaluation.contestants import Contestant, find_contestants
from moaa_ray.evaluation.kept import Kept, kept_results
from moaa_ray.evaluation.probing import probe_judge
from moaa_ray.evaluation.rows import outcomes_of
from moaa_ray.evaluation.scores import Outcomes, score
from moaa_ray.evaluation.summary import FOLDER, Evaluation, about_of, evaluated_of, keep_summary, usage_of
from moaa_ray.evaluation.work import Work, is_trained_anew
from moaa_ray.loading import LoadedPreference
from moaa_ray.settings.checks import choices
from moaa_ray.settings.evaluation import Benchmark


def evaluate(
    loaded: LoadedPreference,
    *,
    only: Sequence[str] = (),
    restart: Sequence[str] = (),
    console: Console | None = None,
) -> Evaluation:
    """Run, or go on with, the evaluation; all that the recipe names is read and checked before anything starts.

    A model that this run has trained anew is asked anew. Args: only, benchmarks by name, instead of all of the
    recipe's, whose earlier results stay as far as they hold; restart, models and judges whose answers of earlier starts
    are forgotten. Raises as `judge` does.
    """
    given = loaded
    loaded, contestants = find_contestants(given)
    evaluated = read_benchmarks(loaded, only)
    _check_restart(restart, contestants, evaluated)
    anew = {*restart, *(one.name for one in contestants if is_trained_anew(loaded, one))}
    kept = kept_results(loaded, evaluated, contestants, forgotten=anew) if only else Kept()
    benches_of = {one.name: [*evaluated, *kept.benches.get(one.name, ())] for one in contestants}
    answers = {one.name: stored_answers(loaded, one, benches_of[one.name]) for one in contestants}
    if any(bench.name == "alpaca_eval" for bench in evaluated):
        probe_judge(loaded)
    work = Work(
        given=given, loaded=loaded, contestants=contestants, benches_of=benches_of, anew=anew, console=console
    )  # fmt: skip
    records = work.run(answers)
    outcomes: dict[Benchmark, Outcomes] = {bench.name: outcomes_of(bench, answers, records) for bench in work.benches}
    scored = score(outcomes, work.benches, list(answers), seed=loaded.recipe.seed)
    scored.notes.extend(kept.notes)
    done = Evaluation(
        scored=scored,
        evaluated={one.name: evaluated_of(loaded, one) for one in contestants},
        about={bench.name: about_of(loaded, bench) for bench in work.benches},
        usage=usage_of(loaded.run_dir, contestants),
        folder=f"{loaded.run_dir}/{FOLDER}",
        worked=work.worked,
    )
    keep_summary(loaded, done)
    return done


def _check_restart(restart: Sequence[str], contestants: Sequence[Contestant], benches: Sequence[Bench]) -> None:
    known = [*(one.name for one in contestants), *dict.fromkeys(bench.config.judge for bench in benches)]
    for name in restart:
        if name not in known:
            raise ConfigError(f"--restart {name}: no model that is evaluated, and no judge; {choices(name, known)}")
