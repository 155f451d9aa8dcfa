"""`moaa evaluate` on real Ray with a real endpoint: killed once, it goes on, and ends in the table."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moaa_ray.types import Message
from tests.evaluation.files import write_benchmarks
from tests.generation import runs, servers
from tests.generation.resumes import wait_until

pytestmark = pytest.mark.slow

NUM = 12
RECIPE = """
name: evaluated
run_dir: {folder}/run
models:
  m: {{engine: openai, model: m, base_url: "{url}", concurrency: 4, context_window: 8192}}
  judge: {{engine: openai, model: judge, base_url: "{url}", concurrency: 2, context_window: 8192}}
evaluate:
  models: {{new: m, old: {{alpaca_eval: mine.json}}}}
  alpaca_eval: {{questions: alpaca.json, baseline: alpaca.json, judge: judge}}
  arena_hard: {{questions: arena.jsonl, baseline: arena_answers.jsonl, judge: judge}}
  mt_bench: {{questions: mt.jsonl, references: mt_answers.jsonl, judge: judge}}
  block_rows: 2
ray: {{address: local}}
"""


def longer_first(messages: tuple[Message, ...]) -> bool:
    """Whether answer A is the longer one; the other is the baseline's, or "x"."""
    text = messages[-1]["content"]
    if "Say yes." in text:  # the probe
        return True
    longer = "A long answer." if "A long answer." in text else "base "
    shorter = "base " if longer.startswith("A") else "\nx\n"
    return text.index(longer) < text.index(shorter)


def reply(messages: tuple[Message, ...]) -> str:
    """Longer is better; first turns are worth 8 and second ones 6."""
    system = messages[0]["content"]
    if "[[A>>B]]" in system:
        return f"So [[{'A>>B' if longer_first(messages) else 'B>>A'}]]"
    if "from 1 (very poor) to 10" in system:
        return "[[6]]" if "Again" in messages[-1]["content"] else "[[8]]"
    return "A long answer." if messages[-1]["role"] == "user" else ""


def labels(messages: tuple[Message, ...]) -> dict[str, float]:
    """The longer one with probability 0.9."""
    longer, shorter = ("A", "B") if longer_first(messages) else ("B", "A")
    return {longer: math.log(0.9), shorter: math.log(0.1)}


def start(recipe: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "moaa_ray", "evaluate", str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_an_evaluation_that_is_killed_goes_on_asks_nothing_twice_and_ends_in_the_papers_table(tmp_path):
    """Answers: 12 + 12 + 2 x 12 of the new model, none of the old. Judgments: 12 + 2 x 12 + 2 x 12 and 12; a probe."""
    write_benchmarks(tmp_path, NUM)
    mine = [{"instruction": f"Say {i}.", "output": "x", "generator": "older"} for i in range(NUM)]
    (tmp_path / "mine.json").write_text(json.dumps(mine), encoding="utf-8")
    recipe, run_dir = tmp_path / "recipe.yaml", tmp_path / "run"
    judged = run_dir / "evaluation" / "judges" / "judge"
    with servers.chat_endpoint(
        reply=reply, first_logprobs=labels, models=("m", "judge"), latency_s=0.2, window=8192
    ) as endpoint:
        recipe.write_text(RECIPE.format(folder=tmp_path, url=endpoint.url), encoding="utf-8")
        process = start(recipe)
        wait_until(lambda: bool(list(judged.glob("work/evaluate/0.2/e*/b*.parquet"))), process)
        runs.kill_all(process)
        assert not (run_dir / "evaluation" / "summary.json").exists()
        answered = sum(body["model"] == "m" for body in endpoint.bodies)
        code, output = runs.finish(start(recipe))
        assert code == 0, output
        total = len(endpoint.bodies)
        code, again = runs.finish(start(recipe))
        assert code == 0, again
        assert len(endpoint.bodies) == total
        assert sum(body["model"] == "m" for body in endpoint.bodies) == answered == 4 * NUM
        assert 6 * NUM <= total - answered < 12 * NUM  # those in the line at the kill are asked again, no others
    table = [line.split() for line in output.splitlines()]
    (new,) = (line for line in table if line[:1] == ["new"])
    assert new[2:] == ["90.0", "100.0", "7.00", "8.00", "6.00"]
    (old,) = (line for line in table if line[:1] == ["old"])
    assert old[2:] == ["10.0", "-", "-", "-", "-"]
    facts = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["evaluate"]
    assert facts["models"]["new"]["arena_hard"]["num_valid"] == 2 * NUM
    assert facts["benchmarks"]["alpaca_eval"]["judge"]["model"] == "judge"
    assert "| new |" in (run_dir / "evaluation" / "summary.md").read_text(encoding="utf-8")
    records = [one for path in sorted((judged / "judged").glob("*.parquet")) for one in pq.read_table(path).to_pylist()]
    assert len(records) == 4 * NUM
    assert {one["prompt_version"] for one in records} == {"alpaca_eval/1", "arena_hard/1", "mt_bench/1"}
