"""What `moaa status` tells of runs in every state, from their files alone."""

import json
from pathlib import Path

import pytest

from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError
from moaa_ray.reporting.status import run_status

NOW = 1_800_000_000.0
AT = "2027-01-15T07:58:20+00:00"
"""100 s before NOW."""


def run_with(folder: Path, **stages) -> Store:
    store = open_store(str(folder))
    store.put("run.json", json.dumps({"name": "my-run", "stages": stages}).encode())
    return store


def test_a_finished_stage_says_what_came_of_it_and_when(tmp_path):
    counts = {"ok": 1200, "failed": 3, "dropped": 0}
    run_with(
        tmp_path,
        sft={"at": AT, "status": "done", "epoch": 2, "steps": 1270},
        generate={"at": AT, "status": "done", "epoch": 1, "counts": counts},
    )
    assert run_status(str(tmp_path), now=NOW).splitlines() == [
        f"my-run: {tmp_path}",
        "  generate  done 1m40s ago: 1,200 ok, 3 failed",
        "  sft       done 1m40s ago: 1,270 steps",
    ]


def test_an_evaluation_is_told_after_the_stages(tmp_path):
    evaluated = {"at": AT, "status": "done", "epoch": 0, "counts": {"models": 3}}
    run_with(tmp_path, evaluate=evaluated, dpo={"at": AT, "status": "done", "epoch": 2, "steps": 9})
    assert run_status(str(tmp_path), now=NOW).splitlines()[1:] == [
        "  dpo       done 1m40s ago: 9 steps",
        "  evaluate  done 1m40s ago: 3 models",
    ]


def test_a_running_stage_says_how_far_it_is_and_when_it_said_so(tmp_path):
    store = run_with(tmp_path, sample={"at": AT, "status": "running", "epoch": 4})
    word = {"at": NOW - 5, "epoch": 4, "text": "sample 8/10 rows"}
    store.put("metrics/progress/sample.json", json.dumps(word).encode())
    assert "  sample    running, last word 5s ago: sample 8/10 rows" in run_status(str(tmp_path), now=NOW)


def test_the_word_of_an_earlier_start_does_not_count(tmp_path):
    store = run_with(tmp_path, sample={"at": AT, "status": "running", "epoch": 5})
    word = {"at": NOW - 500, "epoch": 4, "text": "sample 8/10 rows"}
    store.put("metrics/progress/sample.json", json.dumps(word).encode())
    assert "running, last word 1m40s ago: has begun" in run_status(str(tmp_path), now=NOW)


def test_a_run_that_has_been_silent_for_long_names_the_way_on(tmp_path):
    run_with(tmp_path, judge={"at": AT, "status": "running", "epoch": 5})
    assert "the same command goes on where it stopped" not in run_status(str(tmp_path), now=NOW)
    assert "the same command goes on where it stopped" in run_status(str(tmp_path), now=NOW + 60)


def test_runs_inside_a_run_are_told_too(tmp_path):
    run_with(tmp_path)
    run_with(tmp_path / "rounds" / "2", dpo={"at": AT, "status": "done", "epoch": 3, "steps": 5})
    assert run_status(str(tmp_path), now=NOW).splitlines() == [
        f"my-run: {tmp_path}", "  no stage has begun", "", "my-run: rounds/2", "  dpo       done 1m40s ago: 5 steps",
    ]  # fmt: skip


def test_what_baselines_have_left_is_named(tmp_path):
    run_with(tmp_path)
    baselines = run_with(tmp_path / "baselines")
    for name in ("random-5", "combined-5"):
        baselines.put(f"{name}/_manifest.json", b"{}")
    assert run_status(str(tmp_path), now=NOW).splitlines()[-2:] == ["my-run: baselines", "  holds combined-5, random-5"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no run\.json there"):
        run_status(str(tmp_path))


def test_a_stage_that_stopped_short_says_why(tmp_path):
    state = {"at": AT, "status": "stopped", "epoch": 4, "why": "prompts.jsonl: no such file"}
    store = run_with(tmp_path, generate=state)
    assert run_status(str(tmp_path), now=NOW).splitlines()[1:] == [
        "  generate  stopped 1m40s ago (has begun): prompts.jsonl: no such file",
        "            the same command goes on where it stopped",
    ]
    word = {"at": NOW - 500, "epoch": 4, "text": "generate 8/10 rows"}
    store.put("metrics/progress/generate.json", json.dumps(word).encode())
    assert "stopped 1m40s ago (generate 8/10 rows): prompts" in run_status(str(tmp_path), now=NOW)
