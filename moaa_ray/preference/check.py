"""How often a judge is right: its verdicts on labelled pairs, before anyone trusts it with unlabelled ones.

    labelled pairs -> passes of the judge -> RUN/checks/<judge>/<file>/judgments -> check.json, outcomes.jsonl

Two accuracies, as a judge may be asked in two ways. With both orders, as the judge stage asks: a verdict counts where
both orders agree, and two that disagree are worth one half. In one order, as RewardBench asks: the verdict in the
order in which the seed has put the two. A pair without a verdict is worth one half in either, and is counted apart.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from rich.console import Console

from moaa_ray.core.judge_prompts import JUDGE_VERSION
from moaa_ray.core.judge_stats import Estimate
from moaa_ray.data import commit, schemas
from moaa_ray.data.chunks import digest_of_files
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError, StageError
from moaa_ray.generation.summary import Summary
from moaa_ray.lines.judge import STAGE, judge_in_use
from moaa_ray.loading import Loaded
from moaa_ray.preference.check_pairs import LabelledPairs, read_pairs
from moaa_ray.preference.check_scores import Habits, Outcome, Scores, habits_of, outcome_of, scores_of
from moaa_ray.preference.judge import judge_reading, judge_rows
from moaa_ray.recipe import PreferenceRecipe
from moaa_ray.run_folders import with_run_models
from moaa_ray.types import Row

REPORT = "check.json"
OUTCOMES = "outcomes.jsonl"
_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the check has cost over all its starts, killed ones included; seconds are summed over engines."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    engine_s: float
    gpu_s: float
    usd: float | None
    """None: the recipe has no price for any of the judge's models."""

    @staticmethod
    def of(summary: Summary) -> "Cost":
        """The sums over the pools."""
        fields = ("calls", "prompt_tokens", "completion_tokens", "engine_s", "gpu_s")
        return Cost(usd=summary.cost_usd, **{name: sum(getattr(p, name) for p in summary.usage) for name in fields})


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """One judge on one file; check.json."""

    judge: str
    settings: Mapping[str, Any]
    prompts: str
    """Version of the wording that judges are asked with; theirs alone, in a rule's or reward model's case."""
    files: Sequence[str]
    files_digest: str
    seed: int
    skipped: Mapping[str, int]
    """Rows of the file that are in no accuracy, by reason."""
    scores: Scores
    habits: Mapping[str, Habits]
    """By the model that gives verdicts; empty for a pointwise judge."""
    length_correlation: Estimate
    """Of the score with the length, in a pair +1 or -1: how much more often the longer answer wins."""
    errors: Mapping[str, int]
    """Verdicts (numbers) that are lacking, by reason."""
    cost: Cost
    folder: str


def check_judge(
    loaded: Loaded[PreferenceRecipe],
    paths: Sequence[str],
    *,
    name: str = "",
    base_dir: str = "",
    restart: bool = False,
    restart_command: str = "",
    console: Console | None = None,
) -> list[CheckReport]:
    """Check a judge of the recipe on files of labelled pairs, one report for each; called again it goes on.

    Args: paths count from base_dir, by default the current directory, and each is a file, a folder or a pattern; name,
    a judge of the recipe, by default the one in use; restart forgets what it has said to these pairs before. Raises as
    `judge` does, and StageError where it has not given a single verdict.
    """
    loaded = with_run_models(loaded)
    recipe = loaded.recipe
    name = name or judge_in_use(recipe)
    files = [read_pairs(path, seed=recipe.seed, base_dir=base_dir or os.getcwd()) for path in paths]
    twice = [called for called, count in Counter(_folder_name(each) for each in files).items() if count > 1]
    if twice:
        raise ConfigError(
            f"two files of labelled pairs are called {twice[0]!r}, and each check has a folder of that name; rename one"
        )
    # Here a verdict that does not come is a result, and no reason to stop.
    tolerant = recipe.judge.model_copy(update={"max_failed_fraction": 1.0})
    loaded = replace(loaded, recipe=recipe.model_copy(update={"judge": tolerant}))
    restart_command = restart_command or f"moaa check-judge --judge {name} --restart"
    begun = partial(judge_rows, restart=restart, restart_command=restart_command, console=console)
    return [_check(loaded, each, name, begun) for each in files]


def _check(
    loaded: Loaded[PreferenceRecipe], pairs: LabelledPairs, name: str, put_through: Callable[..., Summary]
) -> CheckReport:
    own = open_store(f"{loaded.run_dir}/checks/{name}/{_folder_name(pairs)}")
    digest = digest_of_files(pairs.files)
    rows = (pair.row for pair in pairs.pairs)
    facts = {"judge": name, "pairs": digest}
    summary = put_through(loaded, name, own, rows, facts=facts)
    reading = judge_reading(loaded.recipe, name, own)
    judged = _judged_rows(own, [pair.row.id for pair in pairs.pairs])
    outcomes = [outcome_of(pair, row, reading) for pair, row in zip(pairs.pairs, judged, strict=True)]
    errors = sum((Counter(outcome.errors) for outcome in outcomes), Counter())
    if all(outcome.one_order is None and outcome.both_orders is None for outcome in outcomes):
        common = ", ".join(f"{reason} {count}" for reason, count in errors.most_common(3))
        raise StageError(
            f"judge {name!r} has given no verdict on any of {len(outcomes)} pairs ({common}); see {own.uri}/failures, "
            "mend what is wrong and run the same command again: it asks only for what is lacking"
        )
    habits, length_correlation = habits_of(outcomes, seed=loaded.recipe.seed)
    report = CheckReport(
        judge=name,
        settings=loaded.recipe.judges[name].model_dump(mode="json"),
        prompts=JUDGE_VERSION,
        files=pairs.files.paths,
        files_digest=digest,
        seed=loaded.recipe.seed,
        skipped=pairs.skipped,
        scores=scores_of(outcomes, seed=loaded.recipe.seed),
        habits=habits,
        length_correlation=length_correlation,
        errors=dict(errors.most_common()),
        cost=Cost.of(summary),
        folder=own.uri,
    )
    own.put(OUTCOMES, "".join(json.dumps(_record(outcome)) + "\n" for outcome in outcomes).encode())
    own.put(REPORT, (json.dumps(asdict(report), indent=2) + "\n").encode())
    return report


def _folder_name(pairs: LabelledPairs) -> str:
    return re.sub(r"[^\w.-]+", "-", pairs.name)


def _judged_rows(store: Store, ids: Sequence[str]) -> Iterator[Row]:
    """Every row as the judge has left it, also one that failed because a verdict is lacking."""
    refs = commit.read_statuses(store, commit.committed_so_far(store, STAGE)).refs(ids)
    for table in commit.read_rows(store, refs, batch_rows=_BATCH_ROWS):
        yield from (schemas.row_from(record) for record in table.to_pylist())


def _record(outcome: Outcome) -> dict[str, Any]:
    """A line of outcomes.jsonl."""
    names = ("id", "subset", "chosen", "both_orders", "one_order", "scores")
    return {name: getattr(outcome, name) for name in names}
