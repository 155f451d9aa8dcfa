"""From the rows of RUN/sft to the rows of one baseline, with everything counted that is in it and that is not."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from moaa_ray.core.seeds import seed_for
from moaa_ray.data import schemas
from moaa_ray.generation.summary import Summary, render
from moaa_ray.preference.best import Ranked
from moaa_ray.preference.teachers import Answered, Teacher, conversation

_BATCH_ROWS = 1000
_OTHER = "another_mixture"
"""Why a row has no answers of the recipe's teachers."""


@dataclass(frozen=True, kw_only=True)
class BaselineSummary:
    """What is in a baseline; RUN/baselines/summary.json by name. Prompts = prompts with a row + dropped ones."""

    name: str
    teachers: Sequence[str]
    path: str
    num_prompts: int
    num_rows: int
    dropped: Mapping[str, int]
    """Prompts without a row, by reason; they are in RUN/baselines/failures/<name>.parquet."""
    lacking: Mapping[str, int]
    """Answers that a teacher did not give, by teacher and reason; the others' were there to take."""
    taken: Mapping[str, int]
    """Rows by teacher."""
    num_truncated: int
    mean_chars: float
    """Of the last answers."""
    judging: Summary | None = None

    def text(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.name}: {self.num_rows:,} rows of {self.num_prompts:,} prompts; {self.num_truncated:,} truncated, "
            f"{self.mean_chars:,.0f} characters on average"
        ]
        for title, counts in (("from", self.taken), ("dropped", self.dropped), ("lacking", self.lacking)):
            if counts:
                lines.append(f"  {title}: " + ", ".join(f"{what} {n:,}" for what, n in counts.items()))
        if self.judging is not None:
            lines += ["  judging the answers:", *(f"    {line}" for line in render(self.judging).splitlines())]
        return "\n".join([*lines, f"  data: {self.path}"])


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A dataset to make: of these teachers' answers all, one that is drawn, or the best one."""

    name: str
    kind: str
    teachers: Sequence[Teacher]
    judge: str = ""
    ranked: Ranked | None = None

    def choose(self, row: Answered, *, seed: int) -> list[str] | str:
        """The teachers whose answers are taken, or why there is none."""
        there = [teacher.name for teacher in self.teachers if teacher.name in row.proposals]
        if not there:
            return ", ".join(f"{teacher.name}: {row.lacking[teacher.name]}" for teacher in self.teachers)
        if self.kind == "random":
            return [there[seed_for(seed, "random teacher", row.record["id"]) % len(there)]]
        if self.ranked is not None:
            best = self.ranked.best(row)
            return [best] if best else "no_ranking"
        return there


class Collector:
    """Goes through RUN/sft once: rows out, and what the summary needs on the way."""

    def __init__(self, baseline: Baseline, *, seed: int):
        self._baseline, self._seed = baseline, seed
        self.failures: list[schemas.Record] = []
        self.num_prompts = self.num_rows = self.num_truncated = self.num_chars = 0
        self.dropped: Counter[str] = Counter()
        self.lacking: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()

    def tables(self, rows: Iterable[tuple[schemas.Record, Answered | None]]) -> Iterator[pa.Table]:
        """The baseline's rows, in the order of the prompts."""
        made: list[schemas.Record] = []
        for record, row in rows:
            self.num_prompts += 1
            made += self._records(record, row)
            if len(made) >= _BATCH_ROWS:
                yield pa.Table.from_pylist(made, schema=schemas.SFT)
                made = []
        yield pa.Table.from_pylist(made, schema=schemas.SFT)

    def _records(self, record: schemas.Record, row: Answered | None) -> list[schemas.Record]:
        chosen = self._baseline.choose(row, seed=self._seed) if row else _OTHER
        if row:
            who = [teacher.name for teacher in self._baseline.teachers if teacher.name in row.lacking]
            self.lacking.update(f"{name}: {row.lacking[name]}" for name in who)
        if row is None or isinstance(chosen, str):
            reason = str(chosen)
            self.dropped[reason] += 1
            self.failures.append(_dropped(record, reason))
            return []
        is_many = self._baseline.kind == "combined"
        made = [conversation(row, n, row_id=f"{record['id']}#{n}" if is_many else record["id"]) for n in chosen]
        self.num_rows += len(made)
        self.taken.update(chosen)
        self.num_truncated += sum(bool(one["flags"]) for one in made)
        self.num_chars += sum(len(one["messages"][row.places[-1]]["content"]) for one in made)
        return made

    def summary(self, path: str, judging: Summary | None) -> BaselineSummary:
        """What has become of the rows."""
        return BaselineSummary(
            name=self._baseline.name,
            teachers=[teacher.name for teacher in self._baseline.teachers],
            path=path,
            num_prompts=self.num_prompts,
            num_rows=self.num_rows,
            dropped=dict(self.dropped.most_common()),
            lacking=dict(self.lacking.most_common()),
            taken={teacher.name: self.taken[teacher.name] for teacher in self._baseline.teachers},
            num_truncated=self.num_truncated,
            mean_chars=self.num_chars / max(1, self.num_rows),
            judging=judging,
        )


def _dropped(record: schemas.Record, reason: str) -> schemas.Record:
    return {
        "id": record["id"],
        "source": record["source"],
        "status": "dropped",
        "reason": reason,
        "detail": reason,
        "messages": record["messages"],
        "proposals": record["proposals"],
    }
