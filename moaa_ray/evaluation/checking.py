"""What can be known to be wrong with an evaluation before any model is asked, also before its models are trained."""

from collections.abc import Sequence

from moaa_ray.evaluation.answering import Said
from moaa_ray.evaluation.benchmarks import Bench, check_opponent, read_benchmarks
from moaa_ray.evaluation.contestants import Contestant, find_contestants
from moaa_ray.leakage import unchecked
from moaa_ray.loading import LoadedPreference
from moaa_ray.preference.check_pairs import LabelledPairs, read_pairs
from moaa_ray.settings.evaluation import Benchmark, RewardBenchConfig


def check_evaluation(loaded: LoadedPreference) -> None:
    """For a whole run, before its first stage: what its last one would refuse.

    Models that the run's own stages make need not be there yet. Raises ConfigError or DataError.
    """
    if section := loaded.recipe.evaluate.reward_bench:
        labelled_pairs(loaded, section)
    if loaded.recipe.evaluate.benchmarks or section is None:
        loaded, contestants = find_contestants(loaded, is_ahead=True)
        benches = read_benchmarks(loaded)
        for one in contestants:
            stored_answers(loaded, one, benches)


def contamination_notes(
    loaded: LoadedPreference, contestants: Sequence[Contestant], benches: Sequence[Bench]
) -> list[str]:
    """What to know of models that this run has trained: that nobody has looked for the questions in their data."""
    names = {bench.name for bench in benches} & set(unchecked(loaded.recipe, loaded.base_dir))
    trained = [one.name for one in contestants if one.is_own]
    if not names or not trained:
        return []
    return [
        f"{', '.join(trained)}: their training data was not searched for the questions of {', '.join(sorted(names))}; "
        "filters.decontaminate does that"
    ]


def labelled_pairs(loaded: LoadedPreference, section: RewardBenchConfig) -> LabelledPairs:
    """The pairs that judges are checked with. Raises ConfigError or DataError where they cannot be read."""
    seed, base_dir = loaded.recipe.seed, str(loaded.base_dir)
    return read_pairs(section.pairs, seed=seed, base_dir=base_dir, field="evaluate.reward_bench.pairs")


def stored_answers(
    loaded: LoadedPreference, one: Contestant, benches: Sequence[Bench]
) -> dict[Benchmark, dict[str, Said]]:
    """The answers of a contestant that are there already, by benchmark and question.

    Raises DataError where they are not complete, ConfigError where the contestant is the baseline.
    """
    found: dict[Benchmark, dict[str, Said]] = {}
    for bench in benches:
        if one.stored is None:
            check_opponent(bench, one, loaded.recipe.models[one.engine].model, {})
        elif (stored := bench.stored(one, base_dir=str(loaded.base_dir))) is not None:
            check_opponent(bench, one, stored.model, stored.texts)
            found[bench.name] = {question: Said(texts=texts) for question, texts in stored.texts.items()}
    return found
