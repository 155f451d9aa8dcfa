"""`moaa evaluate`: models answer the benchmarks' questions, judges judge, and the table of the paper comes of it.

    questions -> RUN/evaluation/answers/<model>/answers -> RUN/evaluation/judges/<judge>/judged -> summary.json, .md

Answers and judgments are rows through passes as in every stage. Each model has a directory of its own, and so has each
judge, for all models and benchmarks together, so that its engine is loaded once. A row's id holds a hash of all that it
is asked and how: what has changed is asked anew, and nothing else is.
"""

from collections.abc import Sequence

from rich.console import Console

from moaa_ray.errors import ConfigError
from moaa_ray.evaluation.benchmarks import REWARD_BENCH, Bench, read_benchmarks
from moaa_ray.evaluation.checking import contamination_notes, labelled_pairs, stored_answers
from moaa_ray.evaluation.contestants import Contestant, find_contestants
from moaa_ray.evaluation.judge_checks import JudgeChecks, kept_checks, run_checks
from moaa_ray.evaluation.kept import Kept, kept_results
from moaa_ray.evaluation.probing import probe_judge
from moaa_ray.evaluation.rows import outcomes_of
from moaa_ray.evaluation.scores import Outcomes, score
from moaa_ray.evaluation.summary import (
    FOLDER,
    Evaluation,
    about_of,
    earlier_summary,
    evaluated_of,
    keep_summary,
    usage_of,
)
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

    Models come first, then the checks of judges. A model that this run has trained anew is asked anew. Args: only,
    benchmarks by name, instead of all of the recipe's, whose earlier results stay as far as they hold; restart, models
    and judges whose answers of earlier starts are forgotten. Raises as `judge` does.
    """
    given = loaded
    config, section = given.recipe.evaluate, given.recipe.evaluate.reward_bench
    is_about_models = set(only) != {REWARD_BENCH} or bool(earlier_summary(given).get("models"))
    has_models = section is None or bool(config.benchmarks and is_about_models)
    loaded, contestants = find_contestants(given) if has_models else (given, [])
    evaluated = read_benchmarks(loaded, only)
    with_checks = section is not None and (not only or REWARD_BENCH in only)
    if section is not None and with_checks:
        labelled_pairs(given, section)
    _check_restart(restart, contestants, evaluated, section.judges if section else ())
    anew = {*restart, *(one.name for one in contestants if is_trained_anew(loaded, one))}
    kept = kept_results(loaded, evaluated, contestants, forgotten=anew) if only and has_models else Kept()
    benches_of = {one.name: [*evaluated, *kept.benches.get(one.name, ())] for one in contestants}
    answers = {one.name: stored_answers(loaded, one, benches_of[one.name]) for one in contestants}
    if any(bench.name == "alpaca_eval" for bench in evaluated):
        probe_judge(loaded)
    work = Work(
        given=given, loaded=loaded, contestants=contestants, benches_of=benches_of, anew=anew, console=console
    )  # fmt: skip
    records = work.run(answers) if work.benches else []
    if section is None:
        checks = JudgeChecks()
    elif with_checks:
        checks = run_checks(given, section, restart=restart, console=console)
    else:
        checks = kept_checks(given, section)
    outcomes: dict[Benchmark, Outcomes] = {bench.name: outcomes_of(bench, answers, records) for bench in work.benches}
    scored = score(outcomes, work.benches, list(answers) if work.benches else (), seed=loaded.recipe.seed)
    scored.notes.extend(contamination_notes(given, contestants, work.benches))
    scored.notes.extend([*kept.notes, *checks.notes])
    worked = [span for span in (work.worked, checks.worked) if span]
    done = Evaluation(
        scored=scored,
        evaluated={one.name: evaluated_of(loaded, one) for one in contestants if work.benches},
        about={bench.name: about_of(loaded, bench) for bench in work.benches},
        usage=[*usage_of(loaded.run_dir, contestants), *checks.usage],
        folder=f"{loaded.run_dir}/{FOLDER}",
        checks=checks.reports,
        worked=(worked[0][0], worked[-1][1]) if worked else None,
    )
    keep_summary(loaded, done)
    return done


def _check_restart(
    restart: Sequence[str], contestants: Sequence[Contestant], benches: Sequence[Bench], checked: Sequence[str]
) -> None:
    judges = dict.fromkeys([*(bench.config.judge for bench in benches), *checked])
    known = [*(one.name for one in contestants), *judges]
    for name in restart:
        if name not in known:
            raise ConfigError(f"--restart {name}: no model that is evaluated, and no judge; {choices(name, known)}")
