"""The datasets that the mixture has to beat, made of the proposals stored in RUN/sft; nothing is generated again.

    RUN/sft -> RUN/baselines/<name>, each a dataset for `sft.data`

    teacher:<name>   one teacher's answers (MoAA, arXiv 2505.03059, figure 4); `teachers` is each of them
    random           one of the n answers to each prompt, drawn by the seed and the row's id (table 3)
    combined         all n answers, as rows of their own: n times the data (table 3)
    best             of the n answers the one that a judge of the recipe ranks first (table 3)

The prompts are those of RUN/sft, so that all arms see the same ones; the recipe's filters are not applied to the
teachers' answers. Who the teachers are, and what becomes of several turns, says teachers.py.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
from rich.console import Console

from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError
from moaa_ray.generation.results import write_failures
from moaa_ray.lines.judge import judge_in_use
from moaa_ray.loading import Loaded
from moaa_ray.preference.baseline_rows import Baseline, BaselineSummary, Collector
from moaa_ray.preference.best import rank_answers
from moaa_ray.preference.teachers import Teacher, check_rows, rows_of, teachers_of
from moaa_ray.recipe import PreferenceRecipe
from moaa_ray.run_record import join_run, set_stage

STAGE = "baselines"
KINDS = ("teacher:<name>", "teachers", "random", "combined", "best")
_SUMMARY = "summary.json"


def make_baselines(
    loaded: Loaded[PreferenceRecipe],
    wanted: Sequence[str],
    *,
    judge: str = "",
    restart: bool = False,
    console: Console | None = None,
) -> list[BaselineSummary]:
    """Publish the baselines that are wanted (see KINDS) and say what is in them.

    Args: judge, for `best`, by default the one in use; restart forgets what it has said about the proposals before.
    Raises ConfigError and DataError before anything starts, and for `best` as `judge` does.
    """
    run = open_store(loaded.run_dir)
    teachers = teachers_of(loaded.recipe)
    todo = _wanted(loaded.recipe, wanted, teachers, judge)
    check_rows(run, teachers)
    return [_make(loaded, run, each, teachers, restart=restart, console=console) for each in todo]


def _make(
    loaded: Loaded[PreferenceRecipe],
    run: Store,
    baseline: Baseline,
    teachers: Sequence[Teacher],
    *,
    restart: bool,
    console: Console | None,
) -> BaselineSummary:
    ranked = None
    if baseline.judge:
        rows = (row for _, row in rows_of(run, teachers) if row is not None)
        ranked = rank_answers(loaded, baseline.judge, teachers, rows, restart=restart, console=console)
    store = open_store(f"{loaded.run_dir}/baselines")
    join_run(store, loaded)
    epoch = commit.take_epoch(store, commit.owner_record())
    publish.fence_publish(store, epoch)
    collector = Collector(replace(baseline, ranked=ranked), seed=loaded.recipe.seed)
    tables, facts = collector.tables(rows_of(run, teachers)), _facts(loaded.recipe, run, baseline)
    publish.publish(
        store, epoch, baseline.name, tables, schemas.SFT, loaded.recipe.generate.shard_rows, facts=facts
    )  # fmt: skip
    write_failures(store, baseline.name, pa.Table.from_pylist(collector.failures, schema=schemas.FAILURES))
    summary = collector.summary(f"{store.uri}/{baseline.name}", None if ranked is None else ranked.summary)
    known = json.loads(store.read(_SUMMARY)) if store.exists(_SUMMARY) else {}
    known[baseline.name] = asdict(summary)
    store.put(_SUMMARY, (json.dumps(known, indent=2, ensure_ascii=False) + "\n").encode())
    set_stage(store, STAGE, status="done", epoch=epoch.number, rows={baseline.name: summary.num_rows})
    return summary


def _facts(recipe: PreferenceRecipe, run: Store, baseline: Baseline) -> dict[str, Any]:
    """What the rows were made of, for the manifest."""
    return {
        "baseline": baseline.name,
        "teachers": [teacher.name for teacher in baseline.teachers],
        "seed": recipe.seed,
        "sft": hashlib.sha256(run.read(f"sft/{MANIFEST}")).hexdigest(),
        **({"judge": baseline.judge} if baseline.judge else {}),
    }


def _wanted(recipe: PreferenceRecipe, wanted: Sequence[str], teachers: Sequence[Teacher], judge: str) -> list[Baseline]:
    todo: dict[str, Baseline] = {}

    def add(name: str, kind: str, who: Sequence[Teacher], *, judge: str = "") -> None:
        folder = re.sub(r"[^a-z0-9_-]+", "-", name.lower())
        each = Baseline(name=folder, kind=kind, teachers=who, judge=judge)
        if todo.setdefault(folder, each) != each:
            raise ConfigError(f"two baselines would be called {folder!r}; make them one at a time, and move the first")

    names = [teacher.name for teacher in teachers]
    for text in wanted:
        kind, _, named = text.partition(":")
        if kind == "teacher" and named in names:
            add(f"teacher-{named}", kind, [teachers[names.index(named)]])
        elif text == "teachers":
            for teacher in teachers:
                add(f"teacher-{teacher.name}", "teacher", [teacher])
        elif text in ("random", "combined"):
            add(f"{text}-{len(teachers)}", text, teachers)
        elif text == "best":
            name = judge or judge_in_use(recipe)
            if name not in recipe.judges:
                known = ", ".join(recipe.judges) or "none"
                raise ConfigError(f"--judge {name}: there is no such judge; the recipe's judges are {known}")
            add(f"best-{len(teachers)}-{name}", text, teachers, judge=name)
        else:
            direct = "" if recipe.mixture and recipe.mixture.baselines else "; `direct` needs mixture.baselines: true"
            raise ConfigError(
                f"baseline {text!r}: there is none of that name; known are {', '.join(KINDS)}, and the teachers of "
                f"this recipe are {', '.join(names)}{direct}"
            )
    return list(todo.values())
