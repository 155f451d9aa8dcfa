"""The page of a run: what it says of runs in every state, that it is sound, and that nothing gets out of its box."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from moaa_ray.data import schemas
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.generation.results import write_failures, write_summary
from moaa_ray.generation.summary import PoolSummary, Summary
from moaa_ray.generation.usage import write_usage
from moaa_ray.reporting import report
from moaa_ray.reporting.page import columns_of_words
from moaa_ray.reporting.page_style import policy
from moaa_ray.reporting.report import render_report, write_report
from moaa_ray.reporting.report_template import SCRIPT
from moaa_ray.reporting.visible import visible
from moaa_ray.run_record import put_progress, set_stage
from tests.reporting.html_check import HOSTILE, Parsed, check_harmless, check_usable
from tests.reporting.runs import (
    failure,
    judged,
    lower_wins,
    moments,
    noisy,
    proposal,
    put,
    put_lines,
    steps,
    synthesis,
    write_run,
)

NOW = 1_800_000_000.0
BEGAN = NOW - 5000


def pool(name: str, **fields) -> PoolSummary:
    usual = {"calls": 40, "prompt_tokens": 1000, "completion_tokens": 500, "tokens_per_s": 50.0, "busy_fraction": 0.5,
             "engine_s": 20.0, "gpu_s": 3600.0, "deaths": 0, "failures": {}}  # fmt: skip
    return PoolSummary(name=name, **(usual | fields))


def begin_run(folder: Path, **stages) -> Store:
    """A run directory with nothing but its record and recipe."""
    store = open_store(str(folder))
    store.put("run.json", json.dumps({"name": "my-run", "changes": [], "sessions": [], "stages": stages}).encode())
    store.put("recipe.yaml", yaml.safe_dump({"seed": 3, "models": {"a": {"engine": "fake"}}}).encode())
    return store


def add_generation(store: Store, rows: Sequence[dict], *, failed: Sequence[dict] = (), is_done: bool = True) -> None:
    """A generate stage: rows and failures where it is done, times and usage in any case."""
    put_lines(
        store,
        "metrics/timeline/generate/e000001-000.jsonl",
        moments(begin=BEGAN, pools={"l0.a": [(0, -1), (5, 10), (15, 20)], "aggregate": [(0, -1), (0, -1), (8, 10)]}),
    )
    used = [pool("l0.a", failures={"timeout": 4}), pool("aggregate")]
    write_usage(store, "generate", "e000001-000", used)
    if not is_done:
        set_stage(store, "generate", status="running", epoch=1)
        put_progress(store, "generate", epoch=1, text="generate 8/10 rows, 2.0 rows/s")
        return
    put(store, "sft", schemas.SFT, rows)
    write_failures(store, "generate", pa.Table.from_pylist(list(failed), schema=schemas.FAILURES))
    summary = Summary(run_dir=store.uri, num_prompts=len(rows), statuses={"ok": len(rows)}, dropped={}, failures={},
                      flags={}, usage=used)  # fmt: skip
    write_summary(store, "generate", summary)
    set_stage(store, "generate", status="done", epoch=1, counts={"ok": len(rows)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """A run of all stages: 20 syntheses with two proposals each, 30 judged prompts, both kinds of training."""
    records = [judged(f"p{n:02d}", [f"text {k} of {n}" for k in range(5)], noisy(n, bias=0.1)) for n in range(30)]
    store = write_run(tmp_path_factory.mktemp("whole"), records, failed=[failure("x1")], min_margin=0.3)
    rows = [synthesis(f"r{n:02d}", f"synthesis {n}", proposals=[proposal("a", f"one {n}"), proposal("b", "two")])
            for n in range(20)]  # fmt: skip
    add_generation(store, rows, failed=[failure("f1", reason="aggregate: timeout")])
    put_lines(store, "metrics/sft.jsonl", steps(10, begin=BEGAN + 100))
    set_stage(store, "sft", status="done", epoch=2, steps=10)
    put_lines(store, "metrics/dpo.jsonl", steps(6, begin=BEGAN + 900, accuracy=0.75, longer_wins=0.5, margin=0.2,
                                                validation_loss=0.6))  # fmt: skip
    set_stage(store, "dpo", status="running", epoch=3)
    return render_report(store.uri, num_rows=12, now=NOW)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("metrics/timeline/generate/e000001-000.jsonl", "damaged .*; remove it"),
        ("metrics/sft.jsonl", "damaged .*; restore it, or remove it"),
        ("failures/generate.parquet", "is gone or damaged .*; run the stage"),
    ],
)
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, path, said):
    store = begin_run(tmp_path)
    add_generation(store, [synthesis("r0", "said")], failed=[failure("f1")])
    put_lines(store, "metrics/sft.jsonl", steps(3, begin=BEGAN + 100))
    set_stage(store, "sft", status="done", epoch=2, steps=3)
    assert store.exists(path)
    store.put(path, b"\xb0")
    with pytest.raises(DataError, match=f"{path}:? {said}"):
        render_report(store.uri, num_rows=4, now=NOW)


def test_the_page_is_sound_and_can_be_used_without_a_mouse(whole):
    page = Parsed(whole)
    ids = check_usable(page)
    for tag, found in page.elements:
        assert found.get("for", "find") in ids
        assert "scroll" not in found.get("class", "") or found["aria-label"]
        assert tag != "svg" or found["role"] == "img"
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") > 5
    assert {"header", "nav", "main", "section", "form"} <= set(tags)


def test_the_page_lets_a_browser_load_nothing_and_run_its_own_script_alone(whole):
    metas = [found for tag, found in Parsed(whole).elements if tag == "meta"]
    told = next(found["content"] for found in metas if found.get("http-equiv") == "Content-Security-Policy")
    assert told == policy(SCRIPT)
    assert f"<script>{SCRIPT}</script>" in whole
    assert not re.search("https?://", whole)


def test_a_whole_run_is_told_part_by_part(whole):
    page = Parsed(whole)
    said = " ".join(" ".join(page.words).split())
    for words in (
        "judge (moj), generate and sft are done. dpo is not: dpo step 6/6",
        "l0.a 15 rows, 20 tokens/s, busy 75% of the 20s that it was up",
        "aggregate 8 rows, 20 tokens/s, busy 80% of the 10s that it was up",
        "steps 10 steps, 50 tokens/s",
        "aggregate: timeout", "judge: missing_verdicts", "min_margin",
        "proposals of a", "syntheses", "chosen", "rejected",
        "31 prompts went to the judge; 30 were judged", "Position and form, with 95 % intervals",
        "Loss, and validation loss (dashed)", "Accuracy, and how often the longer wins (dashed)",
        "Search these rows",
    ):  # fmt: skip
        assert words in said, words
    assert "Evaluation" not in said
    assert "How far the judges agree" not in said


def test_requests_that_failed_are_told_as_a_part_of_all_calls(whole):
    """4 timeouts of 40 calls."""
    said = " ".join(" ".join(Parsed(whole).words).split())
    assert "generate l0.a timeout 4 10.0%" in said


def test_the_sample_has_pairs_syntheses_and_failures(whole):
    """Of 12 rows 2 have failed; of the other 10 the half are pairs."""
    outcomes = re.findall(r'<span class="tag (\w+)">([^<]*)</span>', whole)
    assert len(outcomes) == 12
    assert sorted(told.split(",")[0] for kind, told in outcomes if kind == "kept") == ["pair"] * 5 + ["synthesis"] * 5
    assert sorted(told for kind, told in outcomes if kind == "lost") == ["generate: failed", "judge: failed"]


def test_no_more_rows_are_shown_than_wanted(tmp_path):
    """One of 7 rows may have failed, and two stages have failures."""
    store = begin_run(tmp_path)
    add_generation(store, [synthesis(f"r{n}", "text") for n in range(9)], failed=[failure("f1")])
    write_failures(store, "sample", pa.Table.from_pylist([failure("f2")], schema=schemas.FAILURES))
    assert render_report(store.uri, num_rows=7, now=NOW).count("<article") == 7


def test_the_same_run_gives_the_same_page_and_another_seed_other_rows(tmp_path):
    store = begin_run(tmp_path)
    add_generation(store, [synthesis(f"r{n:02d}", f"synthesis {n}") for n in range(50)])
    one = render_report(store.uri, num_rows=5, now=NOW)
    assert render_report(store.uri, num_rows=5, now=NOW) == one
    store.put("recipe.yaml", b"seed: 4\n")
    ids = [
        set(re.findall(r'<h3 id="rh\d+">(r\d+)', page)) for page in (one, render_report(store.uri, num_rows=5, now=NOW))
    ]
    assert [len(of) for of in ids] == [5, 5]
    assert ids[0] != ids[1]


def test_a_run_that_is_half_done_says_how_far_it_is(tmp_path):
    store = begin_run(tmp_path)
    add_generation(store, [], is_done=False)
    html = render_report(store.uri, num_rows=5, now=NOW)
    said = " ".join(" ".join(Parsed(html).words).split())
    assert Parsed(html).problems == []
    assert "generate is not: generate 8/10 rows, 2.0 rows/s." in said
    assert "l0.a 15 rows" in said
    assert "in all 80 2,000 1,000 2.00" in said
    assert "No row is published yet" in said


def test_a_run_of_which_nothing_has_begun_has_a_page_too(tmp_path):
    html = render_report(begin_run(tmp_path).uri, num_rows=5, now=NOW)
    assert Parsed(html).problems == []
    for words in ("No stage has begun.", "Nothing has worked yet", "No pool has run yet", "No prompt has failed"):
        assert words in html


def test_a_run_that_only_trains_has_curves_and_no_pools(tmp_path):
    store = begin_run(tmp_path, sft={"at": "2027-01-15T07:58:20+00:00", "status": "running", "epoch": 1})
    put_lines(store, "metrics/sft.jsonl", steps(4, begin=BEGAN))
    html = render_report(store.uri, num_rows=5, now=NOW)
    assert Parsed(html).problems == []
    assert "sft is not: sft step 4/4" in html
    assert "loss from 2 to 1.25, over steps 1 to 4" in html
    assert "No pool has run yet" in html


def test_rounds_have_their_own_rows_in_the_tables(tmp_path):
    store = begin_run(tmp_path)
    inside = open_store(f"{store.uri}/rounds/2")
    begin_run(tmp_path / "rounds" / "2")
    put_lines(inside, "metrics/dpo.jsonl", steps(3, begin=BEGAN, accuracy=0.5, longer_wins=0.5, margin=0.0))
    set_stage(inside, "dpo", status="done", epoch=1, steps=3)
    assert "dpo (round 2) is done." in render_report(store.uri, num_rows=5, now=NOW)


def test_two_judges_of_the_same_candidates_have_a_matrix(tmp_path):
    """The second judge turns every order round: of the decided comparisons none is alike, and no best is the same."""
    records = [judged(f"p{n}", ["a", "bb", "ccc"], lower_wins) for n in range(6)]
    store = write_run(tmp_path, records, judge="one")
    opposite = [judged(f"p{n}", ["a", "bb", "ccc"], lambda i, j: "first" if i > j else "second") for n in range(6)]
    write_run(tmp_path, opposite, judge="two", is_in_use=False)
    said = " ".join(" ".join(Parsed(render_report(store.uri, num_rows=5, now=NOW)).words).split())
    assert "one - 0.0 [0.0, 0.0] two 0.0 [0.0, 0.0] -" in said
    assert "one, in use" in said


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict:
    return {"value": value, "low": low, "high": high, "count": 10}


def test_an_evaluation_is_shown_with_intervals_and_counts(tmp_path):
    store = begin_run(tmp_path)
    assert "Evaluation" not in render_report(store.uri, num_rows=5, now=NOW)
    scores = {
        "alpaca_eval": {"win_rate": estimate(57.25, 55.0, 59.5), "num_valid": 804, "num_total": 805},
        "length_controlled": None,
        "mt_bench": {"overall": estimate(8.582, 8.1, 9.0), "num_valid": 160, "num_total": 160},
    }
    judge = {"name": "big", "model": "big", "revision": ""}
    about = {"num_questions": 805, "baseline": "gpt-4", "judge": judge, "prompt_version": "alpaca_eval/1"}
    facts = {
        "models": {"dpo": scores, "base": {"alpaca_eval": {**scores["alpaca_eval"], "win_rate": estimate(None)}}},
        "benchmarks": {"alpaca_eval": about},
        "notes": ["<i>short</i>"],
        "problems": ["base, alpaca_eval"],
    }
    store.put("evaluation/summary.json", json.dumps(facts).encode())
    html = render_report(store.uri, num_rows=5, now=NOW)
    said = " ".join(" ".join(Parsed(html).words).split())
    assert Parsed(html).problems == []
    assert "dpo 57.2 [55.0, 59.5] 8.58 [8.10, 9.00] base - -" in said
    assert "dpo 804/805 base 804/805" in said
    assert "dpo 57.2% between 55.0% and 59.5%" in html
    assert "alpaca_eval: 805 questions, against gpt-4, judge big, prompt alpaca_eval/1" in said
    assert "<i>short</i>" in said
    assert "no score: base, alpaca_eval" in said


def test_arena_hard_has_a_bradley_terry_strength_against_its_baseline(tmp_path):
    """Ten to one is 400 Elo, one to ten -400; nothing can be said of a rate of 100 %."""
    store = begin_run(tmp_path)
    of = {"win_rate": estimate(1000 / 11, 50.0, 100.0), "style_controlled": None, "num_valid": 2, "num_total": 2}
    worse = {**of, "win_rate": estimate(100 / 11, 100 / 11, 50.0)}
    about = {"num_questions": 1, "baseline": "gpt-4", "judge": {"name": "big"}, "prompt_version": "arena_hard/1"}
    facts = {"models": {"dpo": {"arena_hard": of}, "base": {"arena_hard": worse}}, "notes": [], "problems": [],
             "benchmarks": {"arena_hard": about}}  # fmt: skip
    store.put("evaluation/summary.json", json.dumps(facts).encode())
    said = " ".join(" ".join(Parsed(render_report(store.uri, num_rows=5, now=NOW)).words).split())
    assert (
        "Bradley-Terry strength in Elo dpo 90.9 [50.0, 100.0] +400 [+0, -] base 9.1 [9.1, 50.0] -400 [-400, +0]" in said
    )


def test_lengths_are_counted_in_characters(tmp_path):
    """Ten syntheses of 1 to 10 characters, one proposal of 4 cut off, one that failed and does not count."""
    store = begin_run(tmp_path)
    proposals = [proposal("a", "four", finish_reason="length"), proposal("b", "", error="timeout")]
    rows = [synthesis(f"r{n}", "x" * n, prompt="\U0001f600é!", proposals=proposals) for n in range(1, 11)]
    add_generation(store, rows)
    html = render_report(store.uri, num_rows=5, now=NOW)
    table = html[html.index('<table class="lengths">') :]
    rows_of_it = re.findall("<tr>.*?</tr>", table, re.DOTALL)
    cells = [re.sub("<svg.*?</svg>|<[^>]+>", " ", row, flags=re.DOTALL).split() for row in rows_of_it]
    found = {row[0]: row for row in cells if len(row) > 6}
    assert found["syntheses"] == ["syntheses", "10", "1", "6", "10", "10", "-"]
    proposed = [row for row in cells if row[:2] == ["proposals", "of"]]
    assert proposed == [["proposals", "of", "a", "10", "4", "4", "4", "4", "100.0%"]]
    assert [row[-6:] for row in cells if row[0] == "prompts:"] == [["10", "3", "3", "3", "3", "-"]]


def test_hostile_text_stays_text(tmp_path):
    rows = [
        synthesis(f"<i>{n}</i>\" onclick='x", text, prompt=f"</title>{text}", source=text,
                  proposals=[proposal(text, text, model=text), proposal("b", "", error=text)], flags=[text])
        for n, text in enumerate(HOSTILE)
    ]  # fmt: skip
    broken = [failure(text, reason=f"aggregate: {text}", source=text) for text in HOSTILE]
    store = begin_run(tmp_path)
    add_generation(store, rows, failed=broken)
    store.put("recipe.yaml", yaml.safe_dump({"models": {HOSTILE[0]: {"engine": HOSTILE[1]}}}).encode())
    html = render_report(store.uri, num_rows=40, now=NOW)
    check_harmless(html)
    texts = Parsed(html).texts
    for text in HOSTILE:
        assert visible(text) in texts
        assert visible(f"</title>{text}") in texts
    assert "[U+202E]" in html


def test_long_texts_make_fewer_rows_and_not_a_larger_page(tmp_path, monkeypatch):
    store = begin_run(tmp_path)
    add_generation(store, [synthesis(f"r{n}", "word " * 2000) for n in range(20)])
    monkeypatch.setattr(report, "MOST_BYTES", 100_000)
    html = render_report(store.uri, num_rows=20, now=NOW)
    assert len(html.encode()) <= 100_000
    assert "5 sample rows" in html


def test_the_page_lies_in_the_run_or_where_it_is_wanted(tmp_path):
    store = begin_run(tmp_path / "run")
    assert write_report(store.uri, num_rows=5) == f"{store.uri}/report.html: 0.0 MB"
    assert store.exists("report.html")
    write_report(store.uri, num_rows=5, out=str(tmp_path / "elsewhere" / "page.html"))
    assert (tmp_path / "elsewhere" / "page.html").read_bytes() == store.read("report.html")


@pytest.mark.parametrize("out", ["pages/", "..", "/"])
def test_a_page_that_would_have_a_folders_name_is_refused(tmp_path, out):
    with pytest.raises(ConfigError, match=rf"--out {out}: a folder's name; name a file in it"):
        write_report(str(tmp_path), num_rows=5, out=out)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no run\.json there; it is no run directory of moaa_ray"):
        write_report(str(tmp_path), num_rows=5)


def test_columns_of_numbers_stand_to_the_right():
    rows = [
        ("name", "a", "b", "c", "d"),
        ("1", "1,000", "5m52s", "2.0 min", "0"),
        ("2", "-", "[1.0, 2.0]", "n/a", "x 1"),
    ]
    assert columns_of_words(rows) == {0, 4}
