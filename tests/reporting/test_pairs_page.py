"""The page of pairs: what it says, that it is sound HTML, and that nothing a model wrote gets out of its box."""

import json
import re

import pytest

from moaa_ray.errors import ConfigError, DataError
from moaa_ray.reporting.page import MOST_CHARS, text_parts
from moaa_ray.reporting.page_style import STYLE, policy
from moaa_ray.reporting.pairs_page import SCRIPT, write_pairs_page
from moaa_ray.reporting.visible import visible
from tests.reporting.html_check import HOSTILE, Parsed, check_harmless, check_usable
from tests.reporting.runs import RECIPE, failure, judged, judgment, lower_wins, noisy, user, write_run


def page_of(folder, records, *, num_rows=50, judge="moj", **fields) -> str:
    store = write_run(folder, records, judge=judge, **fields)
    write_pairs_page(store.uri, num_rows=num_rows, judge=judge)
    path = "pairs.html" if fields.get("is_in_use", True) else f"judges/{judge}/pairs.html"
    return store.read(path).decode()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
    """Hostile text in every place that a model or a dataset can fill."""
    record = judged("<i>id</i>\" onclick='x", HOSTILE, lower_wins, prompt="</title>" + HOSTILE[0])
    record |= {"source": HOSTILE[1], "flags": [HOSTILE[2]]}
    for i, one in enumerate(record["judgments"]):
        one |= {
            "text": HOSTILE[i % 5],
            "assessments": [{"judge": f"assess.{text}", "text": text} for text in HOSTILE],
            "criteria": HOSTILE[:3],
            "judge": f"decide.{HOSTILE[1]}",
        }
    rated = {**judged("rated", HOSTILE, lower_wins), "judgments": []}
    rated["ratings"] = [
        {"candidate": 0, "aspect": HOSTILE[0], "value": 4.0, "text": HOSTILE[1], "error": ""},
        {"candidate": 1, "aspect": "honesty", "value": None, "text": "", "error": HOSTILE[2]},
    ]
    broken = failure(HOSTILE[0], messages=user(HOSTILE[2]), reason=f"judge: {HOSTILE[1]}", source=HOSTILE[3])
    return page_of(tmp_path_factory.mktemp("hostile"), [record, rated], failed=[broken])


def test_hostile_text_makes_no_element_no_handler_and_no_link(hostile):
    check_harmless(hostile)


def test_hostile_text_is_shown_as_it_is_with_what_hides_spelt_out(hostile):
    texts = Parsed(hostile).texts
    for text in HOSTILE:
        assert visible(text) in texts
    assert visible("</title>" + HOSTILE[0]) in texts
    assert "[U+202E]" in hostile


def test_the_page_lets_a_browser_load_nothing_and_run_its_own_script_alone(hostile):
    metas = [found for tag, found in Parsed(hostile).elements if tag == "meta"]
    told = next(found["content"] for found in metas if found.get("http-equiv") == "Content-Security-Policy")
    assert told == policy(SCRIPT)
    assert told.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in told
    assert f"<style>{STYLE}</style>" in hostile
    assert f"<script>{SCRIPT}</script>" in hostile
    assert "http://" not in hostile.replace("http://evil.example", "")
    assert "https://" not in hostile


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Parsed:
    """30 judged prompts, most of which give a pair, and two that failed."""
    records = [judged(f"r{n:02d}", [f"text {k} of {n}" for k in range(5)], noisy(n, bias=0.1, silent=0.02))
               for n in range(30)]  # fmt: skip
    records[7]["judgments"][0] |= {"criteria_chosen": False}
    failed = [failure("x1"), failure("x2", status="dropped", reason="identical_candidates")]
    return Parsed(page_of(tmp_path_factory.mktemp("page"), records, failed=failed, min_margin=0.5))


def test_the_page_is_sound_and_can_be_used_without_a_mouse(page):
    check_usable(page)
    assert ("html", {"lang": "en"}) in page.elements
    assert any(found.get("name") == "viewport" for _, found in page.elements)


def test_the_top_holds_the_numbers_of_the_judge(page):
    said = "".join(page.words)
    names = ("Kept", "Said A", "Orders disagree", "Cycles", "No verdict", "Length and score", "What decided the places")
    for words in (*names, "decide.big", "9,000", "0.05", "min_margin", "tosses a coin keeps about"):
        assert words in said, words
    assert [tag for tag, _ in page.elements].count("svg") == 4


def test_every_prompt_has_its_table_its_matrix_and_its_verdicts(page):
    said = "".join(page.words)
    articles = [found for tag, found in page.elements if tag == "article"]
    matrices = [found for tag, found in page.elements if tag == "table" and found.get("class") == "matrix"]
    assert len(articles) == 32
    assert len(matrices) == 30
    assert "Not judged: failed." in said
    assert "judge: missing_verdicts: 3 of 10" in said
    assert "No pair: the best and the worst score are too close (min_margin)" in said
    assert "No pair: the texts at the top and at the bottom are the same (identical_candidates)." in said
    assert "(fallback: no criteria were chosen in form)" in said
    assert "Assessment by a" in said
    assert "Assessment by b" in said
    assert "shown first" in said


def test_the_same_run_gives_the_same_page(tmp_path):
    records = [judged(f"r{n}", [f"{k} {n}" for k in range(4)], noisy(n)) for n in range(9)]
    one = page_of(tmp_path, records, num_rows=5)
    assert page_of(tmp_path, records, num_rows=5) == one
    assert one.count("<article") == 5


def test_a_pointwise_judge_has_ratings_and_no_matrix(tmp_path):
    record = judged("r", ["a", "b", "c"], lower_wins) | {
        "judgments": [],
        "scores": [3.5, 1.0, 2.0],
        "ranking": [0, 2, 1],
    }
    record["ratings"] = [{"candidate": 0, "aspect": "honesty", "value": 3.5, "text": "Good.", "error": ""}]
    recipe = RECIPE.replace("kind: mixture, proposers: [{{model: a}}, {{model: b}}], aggregator: {{model: big}}",
                            "kind: aspects, model: big")  # fmt: skip
    recipe = recipe.replace("a: {{engine: fake}}, b: {{engine: fake}}, ", "")
    said = "".join(Parsed(page_of(tmp_path, [record], recipe=recipe)).words)
    assert "candidate 0's is the highest (3.5)" in said
    assert "candidate 0, honesty: 3.5" in said
    assert "Verdicts in both orders" not in said
    assert "a judge of kind aspects" in said
    assert "Said A" not in said


def test_every_member_of_a_jury_is_in_the_matrix(tmp_path):
    record = judged("r", ["a", "b"], lower_wins)
    record["judgments"] = [
        judgment(first, second, verdict, judge=f"decide.{name}")
        for name, verdict_01, verdict_10 in (
            ("x", "first", "second"),
            ("y", "second", "first"),
            ("z", "first", "second"),
        )
        for first, second, verdict in ((0, 1, verdict_01), (1, 0, verdict_10))
    ]
    said = "".join(Parsed(page_of(tmp_path, [record])).words)
    assert "0, 1, 0 | 0, 1, 0" in said
    assert "0 won by majority" in said


def test_another_judge_than_the_one_in_use_has_its_page_beside_its_judgments(tmp_path):
    records = [judged("r", ["a", "b", "c"], lower_wins)]
    write_run(tmp_path, records, judge="first")
    other = page_of(tmp_path, records, judge="other", is_in_use=False)
    assert "not the judge in use" in other


def test_a_missing_run_judge_or_stage_is_told_with_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"no run\.json there"):
        write_pairs_page(str(tmp_path / "none"), num_rows=5)
    store = write_run(tmp_path, [judged("r", ["a", "b"], lower_wins)])
    with pytest.raises(ConfigError, match=r"--judge nobody: has not judged in .*; those that have: moj"):
        write_pairs_page(store.uri, num_rows=5, judge="nobody")
    store.put("summary.json", json.dumps({"generate": {}}).encode())
    with pytest.raises(ConfigError, match="no judge stage in it; run `moaa judge` to its end"):
        write_pairs_page(store.uri, num_rows=5)
    store.delete_folder("pairs")
    with pytest.raises(DataError, match="judge moj has made no pairs yet"):
        write_pairs_page(store.uri, num_rows=5)
    store.delete_folder("judges")
    with pytest.raises(ConfigError, match="no judge has judged here; run `moaa judge`"):
        write_pairs_page(store.uri, num_rows=5)


def test_a_judge_that_keeps_nothing_still_has_a_page(tmp_path):
    page = page_of(tmp_path, [judged("r", ["a", "b", "c"], lambda first, second: "first")])
    assert "equal_scores" in page
    assert Parsed(page).problems == []


def test_a_prompt_with_too_few_verdicts_shows_those_that_there_are(tmp_path):
    silent = judged("r1", ["one", "two", "three"], lambda i, j: "first" if 0 in (i, j) else "")
    page = page_of(tmp_path, [], failed=[failure("r1")], undecided=[silent])
    assert "Not ranked: judge: missing_verdicts: 3 of 10." in page
    assert "3 pairs with their criteria, verdicts and assessments" in page


def test_a_long_text_is_folded_between_words_and_a_huge_one_is_cut():
    text = "word " * 400
    head, tail, num_cut = text_parts(text, 100)
    assert head.endswith("word")
    assert (head + tail, num_cut) == (text, 0)
    assert text_parts("short", 100) == ("short", "", 0)
    assert text_parts("x" * (MOST_CHARS + 5), 100)[2] == 5
    assert text_parts("line\n" * 60, 700)[0].count("\n") < 20


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(scheme):
    colours = dict(re.findall(r"--(\w+): (#\w+)", STYLE.split("@media (prefers-color-scheme: dark)")[scheme]))
    pairs = [(ink, paper) for ink in ("ink", "soft", "win", "loss", "mark") for paper in ("paper", "card")]
    pairs += [("win", "winback"), ("loss", "lossback"), ("tie", "tieback"), ("tie", "paper"), ("paper", "win")]
    for ink, paper in [*pairs, ("ink", "lossback"), ("ink", "tieback")]:
        bright, dark = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2 of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
