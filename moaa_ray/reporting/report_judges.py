"""What report.html says of a run directory's judges: their habits with intervals, and how far they agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
from markupsafe import Markup

from moaa_ray.core.agreement import Scores, agreement
from moaa_ray.core.ranking import Verdict, candidate_scores, pair_results
from moaa_ray.core.seeds import seed_for
from moaa_ray.data.publish import read_batches
from moaa_ray.data.schemas import Record
from moaa_ray.data.store import Store
from moaa_ray.reporting import page_numbers, pictures
from moaa_ray.reporting.choosing import pair_facts
from moaa_ray.reporting.comparisons import judge_name
from moaa_ray.reporting.judge_files import JudgeFiles, judge_files, judges_of
from moaa_ray.reporting.judges import share_text
from moaa_ray.reporting.lookup import find_rows
from moaa_ray.reporting.pairs_page import judge_pictures
from moaa_ray.reporting.report_lengths import Lengths

Judged = Mapping[str, Scores]
"""By prompt, the candidates' scores."""
_STRETCHES, _STRETCH_ROWS = 25, 40
"""Of many prompts so many stretches are compared; they tell how far two judges agree to a point or two."""
_NUM_RESAMPLES = 200
_BATCH_ROWS = 1024
_SEED = 0
_BIASES = ("first_rate", "disagreement_rate", "cycle_rate", "parse_failure_rate")
_NAMES = ("said A", "orders disagree", "cycles", "no verdict")


@dataclass(frozen=True, kw_only=True)
class JudgeView:
    """One judge."""

    name: str
    is_in_use: bool
    headline: str
    facts: Sequence[page_numbers.Fact]
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]]
    pictures: Sequence[tuple[str, Markup]]
    lengths: Sequence[Lengths]
    """Of the chosen and the rejected."""


def judge_views(store: Store) -> list[JudgeView]:
    """The judges of a run directory that have judged to the end."""
    return [_view(files) for files in _finished(store)]


def agreement_rows(store: Store) -> list[Sequence[str]]:
    """A matrix of the judges and the members of juries, in % with 95 % intervals, below a row of names; [] below two.

    Of the comparisons of two candidates that both decide, those decided alike: below the diagonal. Above it the
    prompts where both have the same best candidate.
    """
    judged = {name: scores for files in _finished(store) for name, scores in _judged(files).items()}
    names = list(judged)
    if len(names) < 2:
        return []
    cells = {}
    for one, other in combinations(names, 2):
        shared = [key for key in judged[one] if key in judged[other]]
        sides = [[judged[name][key] for key in shared] for name in (one, other)]
        found = agreement(*sides, seed=_SEED, num_resamples=_NUM_RESAMPLES)
        cells[other, one], cells[one, other] = share_text(found.order), share_text(found.best)
    return [["", *names], *([row, *(cells.get((row, column), "-") for column in names)] for row in names)]


def _finished(store: Store) -> list[JudgeFiles]:
    known = [judge_files(store, name) for name in judges_of(store)]
    return [files for files in known if files.is_finished]


def _view(files: JudgeFiles) -> JudgeView:
    stage = files.facts()
    pairs = pair_facts(files)
    drawn = judge_pictures(page_numbers.main_stats(stage), pairs)
    sides = {"chosen": [pair.chosen_chars for pair in pairs], "rejected": [pair.rejected_chars for pair in pairs]}
    if biases := _bias_picture(stage["judge_stats"]):
        drawn.append(("Position and form, with 95 % intervals; without a position bias A has 50 %", biases))
    return JudgeView(
        name=files.name,
        is_in_use=files.is_in_use,
        headline=page_numbers.headline(stage),
        facts=page_numbers.facts(stage),
        tables=page_numbers.tables({**stage, "usage": []}),  # what it has cost stands among all pools
        pictures=drawn,
        lengths=[Lengths(kind=side, chars=np.array(chars), cut_off=None) for side, chars in sides.items() if chars],
    )


def _bias_picture(members: Mapping[str, Mapping[str, Any]]) -> Markup:
    rows = [
        (f"{name}, {judge_name(member)}" if len(members) > 1 else name, rate["value"], rate["low"], rate["high"])
        for name, field in zip(_NAMES, _BIASES, strict=True)
        for member, rate in ((member, stats[field]) for member, stats in members.items())
        if rate["value"] is not None and rate["low"] is not None
    ]
    return pictures.intervals(rows, mark=0.5)


def _judged(files: JudgeFiles) -> dict[str, Judged]:
    """The scores of a judge on some prompts, and those of its members where several give verdicts."""
    fields = [f"judgments.list.element.{name}" for name in ("first", "second", "judge", "verdict")]
    columns = ["id", "scores", "candidates.list.element.completion", *fields]
    whole: dict[str, Scores] = {}
    members: dict[str, dict[str, Scores]] = {}
    for found in find_rows(files.own, "judgments", _some_ids(files.own), columns):
        texts = [one["completion"] for one in found.record["candidates"]]
        key = f"{found.record['id']} {hash(tuple(texts))}"  # scores of other candidates say nothing about these
        whole[key] = found.record["scores"]
        for name, scores in _by_member(found.record, len(texts)).items():
            members.setdefault(f"{files.name}: {name}", {})[key] = scores
    return {files.name: whole, **members}


def _some_ids(store: Store) -> list[str]:
    """The prompts that are compared, the same for all judges of the same prompts; in stretches, to read little."""
    tables = read_batches(store, "judgments", _BATCH_ROWS, ["id"])
    ids = [row_id for table in tables for row_id in table.column("id").to_pylist()]
    if len(ids) <= _STRETCHES * _STRETCH_ROWS:
        return ids
    begins = Random(seed_for(_SEED, "agreement")).sample(range(len(ids) - _STRETCH_ROWS), _STRETCHES)
    return list({row_id: None for begin in sorted(begins) for row_id in ids[begin : begin + _STRETCH_ROWS]})


def _by_member(record: Record, num: int) -> dict[str, Scores]:
    """By model that gives verdicts, scores of its own, where several do; an order asked twice counts as it was last."""
    verdicts: dict[str, dict[tuple[int, int], Verdict]] = {}
    for one in record["judgments"]:
        verdict = Verdict(first=one["first"], second=one["second"], winner=one["verdict"] or None)
        verdicts.setdefault(judge_name(one["judge"]), {})[verdict.first, verdict.second] = verdict
    if len(verdicts) < 2:
        return {}
    return {name: candidate_scores(num, pair_results(given.values())) for name, given in verdicts.items()}
