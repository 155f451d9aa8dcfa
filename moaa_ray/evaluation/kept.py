"""Results of earlier evaluations that stay in the table while other benchmarks are evaluated: those that still hold.

A result holds where all is as it was: the benchmark's files and settings, its judge, and what the model has answered.
Rows say so themselves, as the id of a judgment is a hash of all that the judge was shown.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moaa_ray.data.schemas import Record
from moaa_ray.errors import MoaaError
from moaa_ray.evaluation.answering import STAGE
from moaa_ray.evaluation.benchmarks import Bench, read_benchmarks
from moaa_ray.evaluation.checking import stored_answers
from moaa_ray.evaluation.contestants import Contestant
from moaa_ray.evaluation.rows import answers_of, tasks_of
from moaa_ray.evaluation.stages import UNFINISHED, judge_made_with
from moaa_ray.evaluation.summary import about_of, earlier_summary, place_of, published
from moaa_ray.fingerprint import compare
from moaa_ray.loading import LoadedPreference
from moaa_ray.run_record import made_with


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What stays in the table beside the benchmarks that are evaluated."""

    benches: Mapping[str, Sequence[Bench]] = field(default_factory=dict)
    """By contestant."""
    notes: Sequence[str] = ()
    """What was in the table and does not stay, and why."""


def kept_results(
    loaded: LoadedPreference,
    evaluated: Sequence[Bench],
    contestants: Sequence[Contestant],
    *,
    forgotten: Collection[str],
) -> Kept:
    """What holds of the table that RUN/evaluation has.

    Args: evaluated, the benchmarks that are evaluated now; forgotten, the models and judges that begin anew.
    """
    known = earlier_summary(loaded)
    if not known:
        return Kept()
    now = {bench.name for bench in evaluated}
    benches: dict[str, list[Bench]] = {}
    notes: list[str] = []
    for name in loaded.recipe.evaluate.benchmarks:
        if name in now or name not in known["benchmarks"]:
            continue
        try:
            (bench,) = read_benchmarks(loaded, [name])
        except MoaaError as error:  # its files may be gone; the other benchmarks do without them
            notes.append(f"{name}: no longer in the table, as it cannot be read: {error}")
            continue
        if why := _what_changed(loaded, bench, known["benchmarks"][name], forgotten):
            notes.append(f"{name}: no longer in the table: {why}; evaluate it again")
            continue
        judged = published(place_of(loaded.run_dir, f"judges/{bench.config.judge}"), "judged", UNFINISHED)
        for one in contestants:
            if one.name not in forgotten and _holds(loaded, one, bench, judged):
                benches.setdefault(one.name, []).append(bench)
            elif known["models"].get(one.name, {}).get(name):
                notes.append(f"{one.name}, {name}: no longer in the table, as its answers have changed")
    return Kept(benches=benches, notes=notes)


def _what_changed(loaded: LoadedPreference, bench: Bench, known: Mapping[str, Any], forgotten: Collection[str]) -> str:
    """Why the results of a benchmark do not hold for any model; empty where they may."""
    judge = bench.config.judge
    if judge in forgotten:
        return f"what its judge {judge} has said is forgotten"
    about = about_of(loaded, bench)
    if changed := [name for name in about if about[name] != known.get(name)]:
        return f"other {', '.join(changed)} than then"
    before = made_with(place_of(loaded.run_dir, f"judges/{judge}"), STAGE)
    changes = compare(before, judge_made_with(loaded, judge))
    return f"its judge is another one: {'; '.join(changes)}" if changes else ""


def _holds(loaded: LoadedPreference, one: Contestant, bench: Bench, judged: Sequence[Record]) -> bool:
    """Whether everything that was judged of a model is what it would be judged by now."""
    if one.stored is None:
        answers = answers_of(published(place_of(loaded.run_dir, f"answers/{one.name}"), "answers", UNFINISHED))
    else:
        answers = stored_answers(loaded, one, [bench])
    ids = {task.row.id for task in tasks_of(one.name, answers, [bench])}
    own = {record["id"] for record in judged if (record["model"], record["benchmark"]) == (one.name, bench.name)}
    return bool(own) and own <= ids
