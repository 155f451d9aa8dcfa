"""The judge stage on real Ray, asking a real endpoint: pairs, statistics, other judges, and what it refuses."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.store import open_store
from moaa_ray.errors import StageError
from moaa_ray.loading import load_preference
from moaa_ray.preference.judge import judge
from moaa_ray.run_record import join_run
from moaa_ray.types import Message, Request, Sampling
from tests.core.judges import IN_FORM, shown
from tests.generation import servers

pytestmark = pytest.mark.slow

NUM_ROWS = 12
RECIPE = """
name: judged
run_dir: {folder}/run
models:
  a: {{engine: openai, model: a, base_url: "{url}"}}
  b: {{engine: openai, model: b, base_url: "{url}"}}
  rule: {{engine: rule, function: shortest}}
judges:
  mixture:
    kind: mixture
    proposers: [{{model: a, max_tokens: 64}}, {{model: b, max_tokens: 64}}]
    aggregator: {{model: b, max_tokens: 64}}
  single: {{kind: llm, model: a, max_tokens: 64}}
  rule: {{kind: score, model: rule}}
judge: {{use: mixture, block_rows: 2, max_failed_fraction: 0.0}}
ray: {{address: local}}
"""


def publish_candidates(folder: Path, num_rows: int = NUM_ROWS) -> None:
    """Five candidates of different lengths for every row; candidate (row + 4) % 5 is the longest."""
    records = []
    for row in range(num_rows):
        texts = [f"{row}: " + "word " * (1 + (row + i) % 5) for i in range(5)]
        records.append(
            {
                "id": f"r{row:03d}",
                "source": "test",
                "messages": [{"role": "user", "content": f"Question {row}?"}],
                "candidates": [
                    {"completion": text.strip(), "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 2}
                    for text in texts
                ],
                "flags": [],
            }
        )
    store = open_store(str(folder / "run"))
    epoch = commit.take_epoch(store, {})
    table = pa.Table.from_pylist(records, schema=schemas.CANDIDATES)
    publish.publish(store, epoch, "candidates", [table], schemas.CANDIDATES, 100, facts={"student": "files:abc"})


@contextmanager
def judged(folder: Path, reply: Callable[[tuple[Message, ...]], str]):
    """An endpoint whose models say this, and a recipe with judges on it."""
    with servers.chat_endpoint(reply=reply, models=("a", "b")) as endpoint:
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, url=endpoint.url), encoding="utf-8")
        loaded = load_preference(folder / "recipe.yaml")
        join_run(open_store(loaded.run_dir), loaded)
        publish_candidates(folder)
        yield endpoint, loaded


def longer_wins(messages: tuple[Message, ...]) -> str:
    if "Selected Criteria:" in messages[0]["content"]:
        return IN_FORM
    if "[[A]]" not in messages[0]["content"]:
        return "A is fine, B is fine."
    seen = shown(Request(id="any", row_id="any", messages=messages, sampling=Sampling(max_tokens=1), seed=0))
    return "[[A]]" if len(seen.a) > len(seen.b) else "So:\n[[B]]"


def rows_of(folder: Path, name: str) -> list[dict]:
    return [
        row for path in sorted((folder / "run" / name).glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def test_the_papers_judge_asks_both_orders_of_all_pairs_and_leaves_the_best_and_the_worst(tmp_path: Path):
    """Per row 10 questions for criteria, 2 x 20 assessments, 20 decisions: 70. The longer answer wins."""
    with judged(tmp_path, longer_wins) as (endpoint, loaded):
        summary = judge(loaded)
        assert len(endpoint.bodies) == 70 * NUM_ROWS
        again = judge(loaded)
        assert len(endpoint.bodies) == 70 * NUM_ROWS
    pairs = rows_of(tmp_path, "pairs")
    assert [row["id"] for row in pairs] == [f"r{i:03d}" for i in range(NUM_ROWS)]
    for i, row in enumerate(pairs):
        assert (row["chosen_index"], row["rejected_index"]) == ((4 - i) % 5, (5 - i) % 5)
        assert row["chosen"][0]["content"].endswith("word " * 4 + "word")
        assert row["margin"] == 1.0
        assert len(row["judgments"]) == 20
        assert {tuple(one["criteria"]) for one in row["judgments"]} == {("Accuracy", "Depth", "Clarity")}
    judgments = [one for row in rows_of(tmp_path, "judges/mixture/judgments") for one in row["judgments"]]
    assert len({tuple(said["judge"] for said in one["assessments"]) for one in judgments}) == 1
    assert {said["text"] for one in judgments for said in one["assessments"]} == {"A is fine, B is fine."}
    assert summary.pairs == again.pairs
    assert (summary.pairs.num_pairs, summary.stats["decide.b"].disagreement_rate.value) == (NUM_ROWS, 0.0)
    assert summary.stats["decide.b"].first_rate.value == 0.5
    assert summary.pairs.coin_kept_rate == pytest.approx(0.99, abs=0.02)
    assert publish.read_manifest(open_store(str(tmp_path / "run")), "pairs").facts["student"] == "files:abc"
    assert [pool.calls for pool in again.rows.usage] == [30 * NUM_ROWS, 40 * NUM_ROWS]


@pytest.mark.long
def test_another_judge_keeps_to_a_directory_of_its_own_until_it_is_the_one_in_use(tmp_path: Path):
    with judged(tmp_path, longer_wins) as (_, loaded):
        judge(loaded)
        first = rows_of(tmp_path, "pairs")
        other = judge(loaded, name="rule")
        assert rows_of(tmp_path, "pairs") == first
        assert (other.pairs.num_pairs, other.pairs.coin_kept_rate) == (NUM_ROWS, None)
        changed = load_preference(tmp_path / "recipe.yaml", ["judge.use=rule"])
        judge(changed)
    second = rows_of(tmp_path, "pairs")
    assert [row["chosen"] for row in second] == [row["rejected"] for row in first]  # shortest wins


@pytest.mark.long
def test_a_judge_that_always_says_the_first_gives_no_pairs(tmp_path: Path):
    with judged(tmp_path, lambda messages: "[[A]]") as (_, loaded):
        summary = judge(loaded, name="single")
    assert summary.pairs.num_pairs == 0
    assert summary.pairs.dropped == {"equal_scores": NUM_ROWS}
    (stats,) = summary.stats.values()
    assert (stats.first_rate.value, stats.disagreement_rate.value) == (1.0, 1.0)


def test_a_judge_that_never_answers_in_form_fails_the_stage_and_says_why(tmp_path: Path):
    with judged(tmp_path, lambda messages: "Both are nice.") as (_, loaded):
        with pytest.raises(StageError, match=r"judge.max_failed_fraction allows.*missing_verdicts"):
            judge(loaded, name="single")
        tolerant = load_preference(tmp_path / "recipe.yaml", ["judge.max_failed_fraction=1.0"])
        summary = judge(tolerant, name="single")
    assert summary.rows.statuses["failed"] == NUM_ROWS
    (stats,) = summary.stats.values()
    assert (stats.parse_failure_rate.value, stats.parse_failure_rate.count, stats.num_prompts) == (
        1.0,
        20 * NUM_ROWS,
        0,
    )
    (table,) = publish.read_batches(open_store(str(tmp_path / "run/judges/single")), "undecided", batch_rows=100)
    assert {one["text"] for row in table.to_pylist() for one in row["judgments"]} == {"Both are nice."}
    failures = tmp_path / "run" / "judges" / "single" / "failures" / "judge.parquet"
    for row in pq.read_table(failures).to_pylist():
        assert "10 of 10 pairs" in row["detail"]
        assert "no_verdict 20" in row["detail"]
