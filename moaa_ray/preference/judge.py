"""The judge stage: candidates compared by a judge, every verdict kept, and the pairs that come of them.

    RUN/candidates -> passes of the judge -> RUN/judges/<name>/judgments -> rules -> RUN/pairs

Each judge works in a directory of its own, so that several can judge the same candidates and be compared. Which of
them makes the pairs, and by which rules pairs are kept, may change at any time: nothing is asked anew for that.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from rich.console import Console

from moaa_ray.core.candidates import CANDIDATES
from moaa_ray.core.judge_stats import JudgeStats, judge_stats
from moaa_ray.core.judged import JudgeWork
from moaa_ray.data import publish, schemas
from moaa_ray.data.filtering import Filter
from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.schema_check import check_schema
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError
from moaa_ray.fingerprint import section_fingerprint
from moaa_ray.generation import results, todo
from moaa_ray.generation.summary import Summary
from moaa_ray.lines.judge import STAGE, judge_in_use, judge_line, plan_input, prompt_versions
from moaa_ray.loading import Loaded
from moaa_ray.preference.pairs import UNDECIDED, PairsSummary, publish_pairs
from moaa_ray.preference.sample import candidate_record, row_of_candidates
from moaa_ray.preference.stage import RowStage, put_through
from moaa_ray.recipe import PreferenceRecipe
from moaa_ray.run_folders import judge_folder, with_run_models
from moaa_ray.run_record import join_run, model_digests
from moaa_ray.settings.preference import judge_models
from moaa_ray.types import Row


@dataclass(frozen=True, kw_only=True)
class JudgeSummary:
    """What the judge stage did: the rows, the pairs, and how the judge behaved."""

    judge: str
    folder: str
    """Where the pairs are."""
    rows: Summary
    pairs: PairsSummary
    stats: Mapping[str, JudgeStats]
    """By model that gives verdicts; several where a jury votes. A pointwise judge has one entry, without a name."""


def judge(
    loaded: Loaded[PreferenceRecipe], *, name: str = "", restart: bool = False, console: Console | None = None
) -> JudgeSummary:
    """Run, or go on with, the judge stage, and publish RUN/pairs where the judge is the one in use.

    Args: name, another judge of the recipe than judge.use; its work is kept, RUN/pairs stay. restart forgets what
    this judge has said before. Raises as `generate` does.
    """
    loaded = with_run_models(loaded)
    in_use = judge_in_use(loaded.recipe)
    name = name or in_use
    Filter(loaded.recipe.filters, base_dir=str(loaded.base_dir))  # raises where an evaluation file is missing
    store = open_store(loaded.run_dir)
    join_run(store, loaded)
    manifest = _candidates_manifest(store)
    own = open_store(judge_folder(loaded.run_dir, name))
    facts = {**manifest.facts, "judge": name}
    summary = judge_rows(
        loaded,
        name,
        own,
        _candidate_rows(store),
        facts=facts,
        # Without its name the command would forget what the judge in use has said.
        restart_command=f"moaa judge {f'--judge {name} ' * (name != in_use)}--restart",
        restart=restart,
        console=console,
    )
    reading = judge_reading(loaded.recipe, name, own)
    pairs, judged = publish_pairs(store, own, loaded, reading, facts=facts, is_in_use=name == in_use)
    stats = {name: judge_stats(prompts, seed=loaded.recipe.seed) for name, prompts in judged.items()}
    folder = f"{(store if name == in_use else own).uri}/pairs"
    whole = JudgeSummary(judge=name, folder=folder, rows=summary, pairs=pairs, stats=stats)
    results.write_summary(own if name != in_use else store, STAGE, summary, _facts(whole))
    return whole


def judge_rows(
    loaded: Loaded[PreferenceRecipe],
    name: str,
    store: Store,
    rows: Iterable[Row],
    *,
    facts: Mapping[str, Any],
    restart_command: str = "moaa judge --restart",
    restart: bool = False,
    console: Console | None = None,
) -> Summary:
    """Put rows with candidates to a judge, in a directory of its own: judgments/, failures/, summary.json there.

    restart_command: the one that errors name, which touches this work alone.
    """
    recipe = loaded.recipe
    if name not in recipe.judges:
        raise ConfigError(f"there is no judge {name!r}; the recipe's judges are {', '.join(recipe.judges) or 'none'}")
    join_run(store, loaded)
    rows = list(rows)
    num_candidates = _num_candidates(store, rows)
    line = judge_line(recipe.judges[name], run_seed=recipe.seed, num_candidates=num_candidates)
    stage = RowStage(
        work=line.work(STAGE),
        plan=plan_input(recipe, recipe.judges[name], num_candidates=num_candidates, base_dir=loaded.base_dir),
        made_with=judge_made_with(loaded, name),
        restart=restart,
        restart_command=restart_command,
        folder="judgments",
        schema=schemas.JUDGMENTS,
        usable=partial(_usable, reading=line.reading),
        failed_folder=UNDECIDED,
        failed_record=partial(_judged_record, reading=line.reading),
        facts={**facts, "num_candidates": num_candidates},
    )
    return put_through(stage, store, rows, console=console)


def judge_reading(recipe: PreferenceRecipe, name: str, store: Store) -> JudgeWork:
    """How the judgments in a judge's directory are read."""
    num = publish.read_manifest(store, "judgments").facts["num_candidates"]
    return judge_line(recipe.judges[name], run_seed=recipe.seed, num_candidates=num).reading


def _candidates_manifest(store: Store) -> publish.Manifest:
    if not store.exists(f"{CANDIDATES}/{MANIFEST}"):
        raise ConfigError(f"{store.uri}/{CANDIDATES}: no candidates there; run `moaa sample` first")
    return publish.read_manifest(store, CANDIDATES)


def _candidate_rows(store: Store) -> Iterator[Row]:
    for table in publish.read_batches(store, CANDIDATES, batch_rows=todo.SEED_ROWS):
        check_schema(table, schemas.CANDIDATES, where=f"{store.uri}/{CANDIDATES}")
        yield from (row_of_candidates(record) for record in table.to_pylist())


def _num_candidates(store: Store, rows: list[Row]) -> int:
    """The most candidates of a row; as many as before where the work has begun, for its passes hang on it."""
    most = max((len(row.answers[CANDIDATES]) for row in rows), default=2)
    if store.exists(f"judgments/{MANIFEST}"):
        most = max(most, publish.read_manifest(store, "judgments").facts["num_candidates"])
    return most


def _usable(table: pa.Table, *, reading: JudgeWork) -> tuple[pa.Table, dict[int, str]]:
    records = [_judged_record(schemas.row_from(record), reading=reading) for record in table.to_pylist()]
    return pa.Table.from_pylist(records, schema=schemas.JUDGMENTS), {}


def _judged_record(row: Row, *, reading: JudgeWork) -> schemas.Record:
    ranking = reading.ranking(row)
    return {
        **candidate_record(row),
        "scores": list(ranking.scores),
        "ranking": list(ranking.order),
        "top_tie": ranking.top_tie,
        "bottom_tie": ranking.bottom_tie,
        "judgments": [
            {
                **asdict(judgment),
                "criteria": list(judgment.criteria),
                "assessments": [asdict(assessment) for assessment in judgment.assessments],
            }
            for judgment in reading.judgments(row)
        ],
        "ratings": [asdict(rating) for rating in reading.ratings(row)],
    }


def judge_made_with(loaded: Loaded[PreferenceRecipe], name: str) -> dict[str, str]:
    """What a judge's verdicts are made with, by name."""
    recipe = loaded.recipe
    fields = {f"judges.{name}.{field}": text for field, text in section_fingerprint(recipe.judges[name]).items()}
    for model in dict.fromkeys(judge_models(recipe.judges[name])):
        section = section_fingerprint(recipe.models[model])
        fields |= {f"models.{model}.{field}": text for field, text in section.items()}
    asked = {name: recipe.models[name] for name in judge_models(recipe.judges[name])}
    versions = {field: json.dumps(text) for field, text in prompt_versions().items()}
    return {**fields, **model_digests(asked, loaded.base_dir), **versions, "seed": str(recipe.seed)}


def _facts(summary: JudgeSummary) -> dict[str, Any]:
    return {
        "judge": summary.judge,
        "pairs": asdict(summary.pairs),
        "judge_stats": {name: asdict(stats) for name, stats in summary.stats.items()},
    }
