"""Judges beside each other, on judgments that the package's own publishing has written."""

import json

import pytest

from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError
from moaa_ray.reporting.judges import compare_judges
from moaa_ray.reporting.pairs_page import write_pairs_page
from moaa_ray.reporting.report import render_report
from tests.reporting.runs import judged, lower_wins, write_run

TEXTS = ("a", "bb", "ccc")


def higher_wins(first: int, second: int) -> str:
    return "first" if first > second else "second"


def test_judges_are_compared_on_the_candidates_that_both_have_judged(tmp_path):
    """Two of three prompts have the same candidates; there the second judge agrees once and says the opposite once."""
    write_run(tmp_path, [judged(name, TEXTS, lower_wins) for name in ("p1", "p2", "p3")], judge="moj")
    again = [judged("p1", TEXTS, lower_wins), judged("p2", TEXTS, higher_wins)]
    others = [*again, judged("p3", ("x", "y", "z"), lower_wins)]
    store = write_run(tmp_path, others, judge="single", is_in_use=False)
    lines = compare_judges(store.uri).splitlines()
    assert lines[1].split() == ["moj", "*", "3", "3", "100%", "60", "9,000", "4,000", "0.03"]
    assert lines[2].split()[:4] == ["single", "3", "3", "100%"]
    assert lines[5].split() == ["moj,", "single", "2", *["50.0", "[0.0,", "100.0]"] * 2, "0.0", "[0.0,", "0.0]"]


def test_a_single_judge_is_shown_with_the_way_to_a_second_one(tmp_path):
    store = write_run(tmp_path, [judged("p1", TEXTS, lower_wins)])
    assert "only one judge to compare; `moaa judge RECIPE --judge NAME`" in compare_judges(store.uri)


def test_a_judge_that_stopped_before_its_pairs_is_named_and_not_compared(tmp_path):
    store = write_run(tmp_path, [judged("p1", TEXTS, lower_wins)], judge="moj")
    write_run(tmp_path, [judged("p1", TEXTS, lower_wins)], judge="single", is_in_use=False)
    open_store(f"{store.uri}/judges/single").delete_folder("pairs")
    text = compare_judges(store.uri)
    assert "single: not judged to the end; run `moaa judge` again" in text
    assert "moj, single" not in text


@pytest.mark.parametrize("lacks", ["judge", "judge_stats"])
def test_a_judge_that_was_killed_between_its_pairs_and_their_numbers_leaves_the_others_to_see(tmp_path, lacks):
    """In its place summary.json has nothing, what the judge in use before it has left, or counts of rows alone."""
    store = write_run(tmp_path, [judged("p1", TEXTS, lower_wins)], judge="moj")
    write_run(tmp_path, [judged("p1", TEXTS, lower_wins)], judge="single", is_in_use=False)
    for each in (store, open_store(f"{store.uri}/judges/single")):
        summary = json.loads(each.read("summary.json"))
        del summary["judge"][lacks]
        each.put("summary.json", json.dumps(summary).encode())
    text = compare_judges(store.uri)
    assert all(f"{name}: not judged to the end" in text for name in ("moj", "single"))
    assert render_report(store.uri, num_rows=5, now=0.0)
    with pytest.raises(ConfigError, match="run `moaa judge` to its end first"):
        write_pairs_page(store.uri, num_rows=5)


def test_a_run_without_judgments_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no judge has judged here; run `moaa judge`"):
        compare_judges(str(tmp_path))
