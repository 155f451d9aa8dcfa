"""One prompt followed through a run."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from rich.cells import cell_len

from moaa_ray.data import commit, schemas
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.generation.results import write_failures
from moaa_ray.reporting.report import render_report
from moaa_ray.reporting.trace import trace_prompt
from moaa_ray.types import Message, Row
from tests.reporting.runs import candidate, failure, judged, lower_wins, put, user, write_run

TEXTS = ["zero is best", "one", "two"]


def proposal(
    proposer: str, *, turn: int = 0, layer: int = 0, error: str = "", text: str = "", used: bool = True
) -> dict:
    return {"turn": turn, "layer": layer, "proposer": proposer, "model": f"org/{proposer}", "revision": "",
            "completion": text, "finish_reason": "" if error else "stop", "prompt_tokens": 9, "completion_tokens": 7,
            "used": used and not error, "error": error}  # fmt: skip


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def add_generated(store: Store, rows: list[dict], *, failed: list[dict] | None = None) -> None:
    """prompts/, sft/ and failures/generate.parquet."""
    known = [*rows, *(failed or ())]
    prompts = [{"id": one["id"], "source": "made-up", "messages": one["messages"][:1]} for one in known]
    put(store, "prompts", schemas.PROMPTS, prompts)
    put(store, "sft", schemas.SFT, [{"source": "made-up", "flags": [], **one} for one in rows])
    write_failures(store, "generate", pa.Table.from_pylist(failed or [], schema=schemas.FAILURES))


@pytest.fixture
def store(tmp_path):
    """One prompt that went all the way to a pair, one that was dropped, one that failed at every stage."""
    records = [judged("kept", TEXTS, lower_wins), judged("tied", TEXTS, lambda first, second: "first")]
    store = write_run(tmp_path, records, failed=[failure("mute")])
    rows = [
        {"id": "kept", "messages": [*user("Why?"), assistant("Because of both.")],
         "proposals": [proposal("a", text="Because."), proposal("b", error="timeout")], "flags": ["cut:l0.a"]},
        {"id": "tied", "messages": [*user("Why?"), assistant("So.")], "proposals": [proposal("a", text="So so.")]},
        {"id": "mute", "messages": [*user("Why?"), assistant("Hm.")], "proposals": []},
    ]  # fmt: skip
    lost = failure("lost", status="quarantined", reason="l0.a: engine_died", proposals=[proposal("b", text="half")])
    add_generated(store, rows, failed=[lost])
    candidates = [{"id": i, "source": "made-up", "messages": user("Why?"), "candidates": [candidate(t) for t in TEXTS],
                   "flags": []} for i in ("kept", "tied")]  # fmt: skip
    put(store, "candidates", schemas.CANDIDATES, candidates, facts={"student": "5" * 40})
    write_failures(
        store, "sample", pa.Table.from_pylist([failure("mute", reason="candidates: timeout")], schemas.FAILURES)
    )
    return store


def test_a_kept_prompt_is_followed_from_its_proposals_to_its_pair(store):
    text = trace_prompt(store.uri, "kept")
    order = ["GENERATE   ok; sft/part-00000.parquet row 0", "flags: cut:l0.a", "Why?",
             "layer 0  a (org/a)  9 + 7 tokens  stop  used", "layer 0  b (org/b)  FAILED timeout", "Because of both.",
             "SAMPLE   ok", "candidate 0  9 + 3 tokens  stop", "zero is best", "student 555555555555",
             "JUDGE moj   ok", "in use", "0 and 1  0 first: 0  1 first: 0", "0 won", "Accuracy, Depth, Clarity",
             "PAIR   chosen 0, rejected 2, margin 1", "Candidate 0 won 2 of 2", "judge moj, student",
             "worked on by moaa_ray"]  # fmt: skip
    at = 0
    for words in order:
        assert words in text[at:], words
        at = text.index(words, at) + len(words)
    assert all(cell_len(line) <= 100 for line in text.split("\n"))


def test_hashes_are_those_of_the_files(store):
    manifest = json.loads(store.read("sft/_manifest.json"))
    text = trace_prompt(store.uri, "kept")
    assert (
        f"sft: manifest {manifest['sha256'][:12]}, part-00000.parquet sha256 {manifest['shards'][0]['sha256'][:12]}"
        in text
    )
    assert manifest["sha256"] in trace_prompt(store.uri, "kept", full=True)


def test_a_dropped_prompt_has_its_rule(store):
    text = trace_prompt(store.uri, "tied")
    assert "NO PAIR   dropped: equal_scores; failures/judge.parquet row" in text
    assert "No pair: the best and the worst have the same score (equal_scores)" in text
    assert "PAIR   chosen" not in text


def test_failures_of_every_stage_have_their_reason(store):
    text = trace_prompt(store.uri, "mute")
    assert "SAMPLE   failed: candidates: timeout: 3 of 10; failures/sample.parquet row 0" in text
    assert "JUDGE moj   failed: judge: missing_verdicts: 3 of 10; failures/judge.parquet row 0" in text
    lost = trace_prompt(store.uri, "lost")
    assert "GENERATE   quarantined: l0.a: engine_died: 3 of 10" in lost
    assert "half" in lost


def test_in_full_the_judges_reasons_and_assessments_are_there(store):
    short, full = trace_prompt(store.uri, "kept"), trace_prompt(store.uri, "kept", full=True)
    assert "assessment by a" in full
    assert "assessment by b" in full
    assert "Therefore [[first]]" in full
    assert "Therefore" not in short


def test_a_turn_has_its_own_proposals_and_the_datasets_answers_have_none(tmp_path):
    store = write_run(tmp_path, [judged("x", TEXTS, lower_wins)])
    messages = [*user("first?"), assistant("from the dataset"), *user("second?"), assistant("synthesised")]
    add_generated(store, [{"id": "chat", "messages": messages, "proposals": [proposal("a", text="proposed")]}])
    lines = trace_prompt(store.uri, "chat").split("\n")
    told = [line.split()[-1] for line in lines if line.strip().startswith(("user", "answer", "layer", "synthesis"))]
    assert told == ["first?", "dataset", "second?", "proposed", "synthesised"]
    assert any("answer in the dataset" in line for line in lines)


def test_a_prompt_that_only_a_judge_knows_is_shown_with_it(tmp_path):
    store = write_run(tmp_path, [judged("x", TEXTS, lower_wins, prompt="Only here?")])
    assert "Only here?" in trace_prompt(store.uri, "x")


def test_the_verdicts_on_a_prompt_with_too_few_of_them_are_shown(tmp_path):
    silent = judged("r1", ["one", "two", "three"], lambda i, j: "first" if 0 in (i, j) else "")
    store = write_run(tmp_path, [], failed=[failure("r1")], undecided=[silent])
    text = trace_prompt(store.uri, "r1")
    assert "JUDGE moj   failed: judge: missing_verdicts: 3 of 10; failures/judge.parquet row 0" in text
    assert "0 and 1  0 first: 0  1 first: 1     tie" in text
    assert "1 and 2  1 first: -  2 first: -     missing" in text


def test_a_row_that_failed_in_a_stage_that_stopped_is_told_with_its_failure(store):
    """Its failures file, and for a judge the row's only place, are written when a stage ends."""
    for name, stage in (("", "generate"), ("judges/moj", "judge")):
        place = open_store(f"{store.uri}/{name}")
        epoch = commit.take_epoch(place, {})
        commit.adopt(place, stage, epoch)
        rows = [Row(id="hung", source="s", messages=(Message(role="user", content="Why?"),), status="failed",
                    reason=f"{stage}: timeout: no answer within 9 s")]  # fmt: skip
        table = pa.Table.from_pylist([schemas.row_record(row, pass_names=()) for row in rows], schemas.work_schema(()))
        commit.commit_block(place, stage, "0.0", epoch.number, "a", table)
    prompts = [{"id": "hung", "source": "s", "messages": user("Why?")}]
    put(store, "prompts", schemas.PROMPTS, prompts)
    text = trace_prompt(store.uri, "hung")
    assert "GENERATE   failed: generate: timeout: no answer within 9 s; work/generate/0.0/" in text
    assert "JUDGE moj   failed: judge: timeout: no answer within 9 s" in text


def test_what_cannot_be_read_is_an_error_that_says_so(store, tmp_path):
    with pytest.raises(DataError, match=r"the id 'a\\udcff' is not UTF-8"):
        trace_prompt(store.uri, "a\udcff")
    store.put("summary.json", b"[]")
    with pytest.raises(ConfigError, match=r"run/summary\.json: damaged \(no JSON object\); restore it"):
        render_report(store.uri, num_rows=1, now=0.0)
    for damaged in (b"[]", b"\xff"):
        store.put("run.json", damaged)
        with pytest.raises(ConfigError, match=r"run/run\.json: .*damaged.*; restore it, or give another run_dir"):
            trace_prompt(store.uri, "kept")
    checked = open_store(str(tmp_path / "checked"))
    checked.put("checks/jury/pairs/check.json", b"{}")
    with pytest.raises(ConfigError, match=r"judges were checked here .* is in checks/jury/pairs/check\.json"):
        trace_prompt(checked.uri, "kept")


def test_an_unknown_id_is_answered_by_the_nearest_ones(store):
    with pytest.raises(DataError, match=r"no prompt 'kepf' among 4; do you mean one of kept, .*\?"):
        trace_prompt(store.uri, "kepf")
    with pytest.raises(DataError, match="no prompt '"):
        trace_prompt(store.uri, "x" * 10_000)
    with pytest.raises(ConfigError, match=r"no run\.json there"):
        trace_prompt(store.uri + "-none", "kept")


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"PAR1")])
def test_a_shard_that_a_copy_of_the_run_lacks_is_told_with_the_way_out(store, damage):
    damage(Path(store.uri) / "sft/part-00000.parquet")
    with pytest.raises(DataError, match=r"sft/part-00000.parquet is gone or damaged .*; run the stage"):
        trace_prompt(store.uri, "r0")


def test_control_characters_of_models_never_reach_the_terminal(tmp_path):
    bad = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\0"
    record = judged("x", [bad + "0", bad + "1"], lower_wins, prompt=bad, source=bad)
    for one in record["judgments"]:
        one |= {"text": bad, "assessments": [{"judge": bad, "text": bad}], "criteria": [bad]}
    store = write_run(tmp_path, [record])
    rows = [
        {"id": "x", "messages": [*user(bad), assistant(bad)], "proposals": [proposal(bad, text=bad)], "flags": [bad]}
    ]
    add_generated(store, rows, failed=[failure(bad, reason=bad, source=bad)])
    for row_id in ("x", bad):
        for full in (False, True):
            text = trace_prompt(store.uri, row_id, full=full)
            assert not set(text) & set(bad) - set("]0;owned[2J31m"), (row_id, full)
    with pytest.raises(DataError) as unknown:
        trace_prompt(store.uri, bad + "?")
    assert "\x1b" not in str(unknown.value)


def test_a_second_round_is_followed_too(store, tmp_path):
    inner = write_run(tmp_path / "inner", [judged("kept", TEXTS, lower_wins)])
    for path in inner.list():
        store.put(f"rounds/2/{path}", inner.read(path))
    text = trace_prompt(store.uri, "kept")
    assert f"ROUND 2   {store.uri}/rounds/2" in text
    assert text.count("PAIR   chosen 0") == 2
    assert "ROUND 2" not in trace_prompt(store.uri, "tied")
