"""RewardBench for judges as a part of an evaluation: the check of `moaa check-judge`, in the same RUN/checks.

A judge that was checked on the same file before is asked nothing again.
"""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from moaa_ray.data.chunks import digest_of_files
from moaa_ray.data.store import open_store
from moaa_ray.errors import MoaaError
from moaa_ray.evaluation.answering import STAGE
from moaa_ray.evaluation.checking import labelled_pairs
from moaa_ray.evaluation.summary import earlier_summary
from moaa_ray.fingerprint import compare
from moaa_ray.generation.summary import PoolSummary
from moaa_ray.generation.usage import total_usage
from moaa_ray.lines.judge import STAGE as JUDGE
from moaa_ray.loading import LoadedPreference
from moaa_ray.preference.check import check_judge
from moaa_ray.preference.judge import judge_made_with
from moaa_ray.run_record import join_run, made_with, noting_stop, put_progress, set_stage
from moaa_ray.settings.evaluation import RewardBenchConfig


@dataclass(frozen=True, kw_only=True)
class JudgeChecks:
    """What is known of the judges: check.json of each, what is no longer in the table, and what the engines did."""

    reports: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    usage: Sequence[PoolSummary] = ()
    worked: tuple[float, float] | None = None
    """Unix times of the work of this start; None where nothing was asked."""


def run_checks(
    loaded: LoadedPreference, section: RewardBenchConfig, *, restart: Collection[str], console: Console | None
) -> JudgeChecks:
    """Check every judge that the section names, or go on with it. Raises as check_judge."""
    store = open_store(loaded.run_dir)
    join_run(store, loaded)
    reports, usage, began, num_calls = [], [], time.time(), 0
    with noting_stop(store, STAGE):
        set_stage(store, STAGE, status="running", epoch=0)
        for number, name in enumerate(section.judges, 1):
            told = f"checks/{name}, {number} of {len(section.judges)}"
            if console is not None:
                console.print(f"{STAGE}: {told}", style="dim")
            put_progress(store, STAGE, epoch=0, text=told)
            before = _known_calls(loaded, name)
            (report,) = check_judge(
                loaded,
                [section.pairs],
                name=name,
                base_dir=str(loaded.base_dir),
                restart=name in restart,
                restart_command=f"moaa evaluate --restart {name}",
                console=console,
            )
            num_calls += report.cost.calls - before
            reports.append(json.loads(json.dumps(asdict(report))))
            usage += usage_of_check(reports[-1])
    return JudgeChecks(reports=reports, usage=usage, worked=(began, time.time()) if num_calls else None)


def kept_checks(loaded: LoadedPreference, section: RewardBenchConfig) -> JudgeChecks:
    """The checks in the table of an earlier evaluation that still hold."""
    known = _known_reports(loaded)
    if not known:
        return JudgeChecks()
    try:
        digest = digest_of_files(labelled_pairs(loaded, section).files)
    except MoaaError as error:
        return JudgeChecks(notes=[f"reward_bench: no longer in the table, as it cannot be read: {error}"])
    held = [
        known[name]
        for name in section.judges
        if name in known
        and known[name]["files_digest"] == digest
        and not compare(made_with(open_store(known[name]["folder"]), JUDGE), judge_made_with(loaded, name))
    ]
    gone = [name for name in known if name not in {report["judge"] for report in held}]
    notes = [f"{name}, reward_bench: no longer in the table: changed since; evaluate it again" for name in gone]
    return JudgeChecks(reports=held, notes=notes, usage=[pool for report in held for pool in usage_of_check(report)])


def usage_of_check(report: Mapping[str, Any]) -> list[PoolSummary]:
    """What a judge's engines have done for its check, over all starts."""
    pools = total_usage(open_store(report["folder"]), JUDGE)
    return [replace(pool, name=f"checks/{report['judge']} {pool.name}") for pool in pools]


def _known_reports(loaded: LoadedPreference) -> dict[str, Mapping[str, Any]]:
    return {report["judge"]: report for report in earlier_summary(loaded).get("reward_bench", ())}


def _known_calls(loaded: LoadedPreference, name: str) -> int:
    report = _known_reports(loaded).get(name)
    return report["cost"]["calls"] if report else 0
