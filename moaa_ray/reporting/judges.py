"""The judges of a run beside each other: pairs, cost, and how far they agree on the same candidates; `moaa judges`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from moaa_ray.core.agreement import Agreement, Scores, agreement
from moaa_ray.core.judge_stats import Estimate
from moaa_ray.data.publish import read_batches
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError
from moaa_ray.reporting.judge_files import JudgeFiles, judge_files, judges_of

_BATCH_ROWS = 2000
_SEED = 0

Judged = Mapping[str, tuple[int, Scores]]
"""By prompt, a hash of its candidates' texts, and their scores."""


def compare_judges(run: str) -> str:
    """A table of the judges and one of their agreement, as text. Raises ConfigError where nobody has judged."""
    store = open_store(run)
    names = judges_of(store)
    if not names:
        raise ConfigError(f"{store.uri}: no judge has judged here; run `moaa judge` to its end first")
    known = {name: judge_files(store, name) for name in names}
    files = {name: one for name, one in known.items() if one.is_finished}
    unfinished = [f"{name}: not judged to the end; run `moaa judge` again" for name in names if name not in files]
    text = "\n".join([*_rows([_HEAD, *(_of_judge(one) for one in files.values())]), *unfinished])
    if len(files) < 2:
        return (
            f"{text}\n\nonly one judge to compare; `moaa judge RECIPE --judge NAME` puts the same candidates to another"
        )
    judged = {name: dict(_judged(one)) for name, one in files.items()}
    rows = [_AGREEMENT_HEAD]
    rows += [_of_two(one, other, _agreement(judged[one], judged[other])) for one, other in combinations(files, 2)]
    return "\n".join([text, "", *_rows(rows), _LEGEND])


_HEAD = ("judge", "prompts", "pairs", "kept", "calls", "tokens in", "tokens out", "GPU-h")
_AGREEMENT_HEAD = ("judges", "prompts", "order alike", "same best", "undecided")
_LEGEND = (
    "  order alike: of the comparisons that both decide, in % (a coin: 50); same best: of the prompts\n"
    "  where each has one best candidate; in brackets 95 % intervals over prompts"
)


def _of_judge(files: JudgeFiles) -> tuple[str, ...]:
    facts = files.facts()
    usage = facts["usage"] or facts["pools"]
    num_judged, num_pairs = facts["pairs"]["num_judged"], facts["pairs"]["num_pairs"]
    return (
        files.name + " *" * files.is_in_use,
        f"{num_judged:,}",
        f"{num_pairs:,}",
        f"{num_pairs / max(1, num_judged):.0%}",
        *(f"{sum(pool[key] for pool in usage):,}" for key in ("calls", "prompt_tokens", "completion_tokens")),
        f"{sum(pool['gpu_s'] for pool in usage) / 3600:.2f}",
    )


def _judged(files: JudgeFiles) -> Iterator[tuple[str, tuple[int, Scores]]]:
    for table in read_batches(files.own, "judgments", batch_rows=_BATCH_ROWS):
        for record in table.select(["id", "candidates", "scores"]).to_pylist():
            texts = tuple(one["completion"] for one in record["candidates"])
            yield record["id"], (hash(texts), tuple(record["scores"]))


def _agreement(one: Judged, other: Judged) -> Agreement:
    """On the prompts that both have judged with the same candidates."""
    shared = [row_id for row_id in one if row_id in other and one[row_id][0] == other[row_id][0]]
    return agreement([one[row_id][1] for row_id in shared], [other[row_id][1] for row_id in shared], seed=_SEED)


def _of_two(one: str, other: str, found: Agreement) -> tuple[str, ...]:
    return (
        f"{one}, {other}",
        f"{found.num_prompts:,}",
        share_text(found.order),
        share_text(found.best),
        share_text(found.undecided),
    )


def share_text(estimate: Estimate) -> str:
    """A rate and its interval in %."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "n/a"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _rows(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
