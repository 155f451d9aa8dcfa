"""Pairs out of judgments: the best and the worst candidate of every prompt, where the recipe's rules keep them."""

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moaa_ray.core.judge_stats import JudgedPrompt
from moaa_ray.core.judged import JudgeWork
from moaa_ray.core.ranking import Choice, Ranking, Verdict, choose
from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.filtering import Filter
from moaa_ray.data.store import Store
from moaa_ray.generation.results import write_failures
from moaa_ray.generation.todo import SEED_ROWS
from moaa_ray.lines.judge import STAGE
from moaa_ray.loading import Loaded
from moaa_ray.preference.sample import row_of_candidates
from moaa_ray.recipe import PreferenceRecipe
from moaa_ray.run_record import join_run, set_stage
from moaa_ray.types import CUT_SHORT, Message

_ROUND = re.compile(r"\.r\d+$")
"""The end of a pass's name in a knockout: one model decides in all rounds."""
_NUM_TOSSES = 500
"""A standard error of 0.4 points at 99 %, of 2.2 at 50 %; below a second for five candidates, 3 s for a knockout."""

UNDECIDED = "undecided"
"""The folder of judged prompts with too few verdicts to rank their candidates."""


@dataclass(frozen=True, kw_only=True)
class PairsSummary:
    """Judged prompts = pairs + dropped, by rule."""

    num_judged: int
    num_pairs: int
    dropped: Mapping[str, int]
    mean_margin: float
    mean_chosen_chars: float
    mean_rejected_chars: float
    coin_kept_rate: float | None
    """The part of these prompts that the same judge, tossing a coin for every question, would have kept by the rules of
    `judge`; filters look at texts and are left out. None for a pointwise judge."""


class _Collector:
    """Goes through the judgments once: pairs out, and what the summary and the statistics need on the way."""

    def __init__(self, loaded: Loaded[PreferenceRecipe], reading: JudgeWork, num_rows: int):
        config = loaded.recipe.judge
        self._rules = {"min_margin": config.min_margin, "max_length_ratio": config.max_length_ratio}
        self._filters = Filter(loaded.recipe.filters, base_dir=str(loaded.base_dir))
        self._reading = reading
        self._num_rows = num_rows
        self._coins = Random(loaded.recipe.seed)
        self._coin_kept: list[bool] = []
        self.num_judged = 0
        self.judged: dict[str, list[JudgedPrompt]] = {}
        self.failures: list[schemas.Record] = []
        self.dropped: Counter[str] = Counter()
        self.margins: list[float] = []
        self.lengths: list[tuple[int, int]] = []

    def pairs(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            records = [pair for record in table.to_pylist() if (pair := self._pair(record)) is not None]
            yield pa.Table.from_pylist(records, schema=schemas.PAIRS)

    def undecided(self, tables: Iterator[pa.Table]) -> None:
        """Count the verdicts on prompts that have too few of them for a ranking."""
        for table in tables:
            for record in table.to_pylist():
                self._add_judged(record, is_ranked=False)

    def summary(self) -> PairsSummary:
        num = len(self.margins)
        return PairsSummary(
            num_judged=self.num_judged,
            num_pairs=num,
            dropped=dict(self.dropped.most_common()),
            mean_margin=sum(self.margins) / max(1, num),
            mean_chosen_chars=sum(chosen for chosen, _ in self.lengths) / max(1, num),
            mean_rejected_chars=sum(rejected for _, rejected in self.lengths) / max(1, num),
            coin_kept_rate=sum(self._coin_kept) / len(self._coin_kept) if self._coin_kept else None,
        )

    def _pair(self, record: schemas.Record) -> schemas.Record | None:
        texts = [one["completion"] for one in record["candidates"]]
        ranking = Ranking(
            order=tuple(record["ranking"]),
            scores=tuple(record["scores"]),
            top_tie=record["top_tie"],
            bottom_tie=record["bottom_tie"],
        )
        choice = choose(ranking, texts, **self._rules)
        self._toss(record, texts)
        if isinstance(choice, Choice):
            reason = self._filtered(record, choice)
            choice = reason or choice
        self.num_judged += 1
        self._add_judged(record, is_kept=isinstance(choice, Choice))
        if isinstance(choice, str):
            self.dropped[choice] += 1
            self.failures.append(_dropped(record, choice))
            return None
        self.margins.append(choice.margin)
        self.lengths.append((len(texts[choice.chosen]), len(texts[choice.rejected])))
        return _pair_record(record, choice)

    def _toss(self, record: schemas.Record, texts: list[str]) -> None:
        """The same judge by coins, _NUM_TOSSES times over all prompts: on a large run not on each of them."""
        if not self._reading.rounds:
            return
        before, after = (n * _NUM_TOSSES // self._num_rows for n in (self.num_judged, self.num_judged + 1))
        row = row_of_candidates(record)
        for _ in range(after - before):
            choice = choose(self._reading.coin_ranking(row, self._coins), texts, **self._rules)
            self._coin_kept.append(isinstance(choice, Choice))

    def _add_judged(self, record: schemas.Record, *, is_kept: bool = False, is_ranked: bool = True) -> None:
        for name, prompt in _judged_prompt(record, is_kept=is_kept, is_ranked=is_ranked).items():
            self.judged.setdefault(name, []).append(prompt)

    def _filtered(self, record: schemas.Record, choice: Choice) -> str:
        """The recipe's filters look at the chosen completion: it is what the student is to become like."""
        chosen = record["candidates"][choice.chosen]
        prompt = schemas.messages_from(record["messages"])
        is_truncated = _is_cut(chosen)
        text = chosen["completion"]
        return self._filters.why_dropped(record["id"], prompt, completion=text, is_truncated=is_truncated)


def publish_pairs(
    store: Store,
    judgments: Store,
    loaded: Loaded[PreferenceRecipe],
    reading: JudgeWork,
    *,
    facts: Mapping[str, Any],
    is_in_use: bool,
) -> tuple[PairsSummary, dict[str, list[JudgedPrompt]]]:
    """Publish pairs/ from the judgments of a judge's directory, and write down the prompts that are in none.

    They go into the run's directory (failures/judge.parquet) where the judge is the one in use, else into the judge's
    own (failures/pairs.parquet). Also returns the prompts as each of the judge's deciding models has judged them.
    """
    to = store if is_in_use else judgments
    join_run(to, loaded)
    epoch = commit.take_epoch(to, commit.owner_record())
    publish.fence_publish(to, epoch)
    collector = _Collector(loaded, reading, publish.read_manifest(judgments, "judgments").rows)
    tables = publish.read_batches(judgments, "judgments", batch_rows=SEED_ROWS)
    shard_rows = loaded.recipe.judge.shard_rows
    publish.publish(to, epoch, "pairs", collector.pairs(tables), schemas.PAIRS, shard_rows, facts=facts)
    collector.undecided(publish.read_batches(judgments, UNDECIDED, batch_rows=SEED_ROWS))
    broken = pq.read_table(io.BytesIO(judgments.read(f"failures/{STAGE}.parquet")))
    kept_back = pa.Table.from_pylist(collector.failures, schema=schemas.FAILURES)
    write_failures(to, STAGE if is_in_use else "pairs", pa.concat_tables([broken, kept_back]))
    set_stage(to, STAGE, status="done", epoch=epoch.number, pairs=len(collector.margins))
    return collector.summary(), collector.judged


def _judged_prompt(record: schemas.Record, *, is_kept: bool, is_ranked: bool) -> dict[str, JudgedPrompt]:
    """The prompt as each model that gives verdicts has judged it; a pointwise judge has none, and stands alone."""
    by_judge: dict[str, list[Verdict]] = {}
    for one in record["judgments"]:
        verdict = Verdict(first=one["first"], second=one["second"], winner=one["verdict"] or None)
        by_judge.setdefault(_ROUND.sub("", one["judge"]), []).append(verdict)
    whole = JudgedPrompt(
        verdicts=(),
        scores=tuple(record["scores"]),
        lengths=tuple(len(one["completion"]) for one in record["candidates"]),
        top_tie=record["top_tie"],
        bottom_tie=record["bottom_tie"],
        is_kept=is_kept,
        is_ranked=is_ranked,
    )
    return {name: replace(whole, verdicts=tuple(verdicts)) for name, verdicts in by_judge.items()} or {"": whole}


def _pair_record(record: schemas.Record, choice: Choice) -> schemas.Record:
    chosen, rejected = record["candidates"][choice.chosen], record["candidates"][choice.rejected]
    names = [field.name for field in schemas.VERDICT]
    cut = [f"{name}_truncated" for name, one in (("chosen", chosen), ("rejected", rejected)) if _is_cut(one)]
    return {
        "id": record["id"],
        "source": record["source"],
        "prompt": record["messages"],
        "chosen": [Message(role="assistant", content=chosen["completion"])],
        "rejected": [Message(role="assistant", content=rejected["completion"])],
        "margin": choice.margin,
        "chosen_index": choice.chosen,
        "rejected_index": choice.rejected,
        "scores": record["scores"],
        "judgments": [{name: one[name] for name in names} for one in record["judgments"]],
        "flags": [*record["flags"], *cut],
    }


def _is_cut(candidate: Mapping[str, Any]) -> bool:
    return candidate["finish_reason"] in CUT_SHORT


def _dropped(record: schemas.Record, rule: str) -> schemas.Record:
    return {
        "id": record["id"],
        "source": record["source"],
        "status": "dropped",
        "reason": rule,
        "detail": rule,
        "messages": record["messages"],
        "proposals": [],
    }
