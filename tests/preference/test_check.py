"""Judges on labelled pairs: what is read, how accuracies add up by hand, and the command on real Ray."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moaa_ray.data import schemas
from moaa_ray.errors import ConfigError, DataError, StageError
from moaa_ray.loading import load_preference
from moaa_ray.preference.check import check_judge
from moaa_ray.preference.check_pairs import NUM_MATH_PAIRS, SECTIONS, LabelledPair, read_pairs
from moaa_ray.preference.check_scores import Outcome, habits_of, outcome_of, scores_of
from moaa_ray.preference.check_text import render_check
from moaa_ray.settings.preference import Judge
from moaa_ray.types import Message, Request, Sampling
from tests.core.judges import Script, always_a, aspects, better, judge_row, jury, line_of, llm, pass_of, score, script
from tests.core.judges import shown as seen
from tests.generation import runs, servers


def pair(i: int, **fields) -> dict:
    """The right answer is the longer one."""
    return {"id": i, "prompt": f"Question {i}?", "chosen": f"right {i}, and more", "rejected": f"bad {i}", **fields}


def write_jsonl(path: Path, rows: Sequence[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: str, *, seed: int = 0) -> Sequence[LabelledPair]:
    return read_pairs(path, seed=seed, base_dir=".").pairs


def texts(one: LabelledPair) -> dict[str, str]:
    """By label."""
    first, second = (answer.text for answer in one.row.answers["candidates"])
    return dict(zip(("rejected", "chosen") if one.chosen else ("chosen", "rejected"), (first, second), strict=True))


# what is read


def test_parquet_json_lines_and_csv_give_the_same_pairs(tmp_path):
    rows = [pair(i, subset="hep-go") for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with open(tmp_path / "p.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = read(write_jsonl(tmp_path / "p.jsonl", rows))
    assert [one.row.id for one in found] == [f"hep-go:{i}" for i in range(5)]
    assert texts(found[3]) == {"chosen": "right 3, and more", "rejected": "bad 3"}
    assert found[3].row.messages == (Message(role="user", content="Question 3?"),)
    assert read(str(tmp_path / "p.parquet")) == read(str(tmp_path / "p.csv")) == found


def test_where_the_chosen_text_stands_is_a_fair_draw_of_seed_and_id(tmp_path):
    """Of 1,000 fair draws 500 are expected; 4 standard deviations are 63."""
    path = write_jsonl(tmp_path / "p.jsonl", [pair(i) for i in range(1000)])
    places = [one.chosen for one in read(path)]
    assert abs(sum(places) - 500) < 63
    assert [one.chosen for one in read(path)] == places
    others = [one.chosen for one in read(path, seed=1)]
    assert abs(sum(a == b for a, b in zip(places, others, strict=True)) - 500) < 63
    reverse = write_jsonl(tmp_path / "p.jsonl", [pair(i) for i in reversed(range(1000))])
    assert [one.chosen for one in read(reverse)] == places[::-1]


def test_conversations_and_the_pairs_of_a_run_are_read_too(tmp_path):
    talk = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]
    talk.append({"role": "user", "content": "Two?"})
    record = {"id": "r1", "source": "s", "prompt": talk, "scores": [], "judgments": [], "flags": []}
    record |= {"chosen": [{"role": "assistant", "content": "2"}], "rejected": [{"role": "assistant", "content": "3"}]}
    record |= {"margin": 1.0, "chosen_index": 0, "rejected_index": 1}
    (tmp_path / "pairs").mkdir()
    pq.write_table(pa.Table.from_pylist([record], schema=schemas.PAIRS), tmp_path / "pairs" / "part-00000.parquet")
    (only,) = read(str(tmp_path / "pairs"))
    assert only.row.id == "pairs:r1"
    assert [message["content"] for message in only.row.messages] == ["One?", "1", "Two?"]
    assert texts(only) == {"chosen": "2", "rejected": "3"}


def test_rows_without_ids_or_with_repeated_ones_have_ids_of_their_own(tmp_path):
    rows = [pair(1), pair(1, chosen="other"), pair(2, id=None), pair(3, id="1.2")]
    found = read(write_jsonl(tmp_path / "p.jsonl", rows))
    assert [one.row.id for one in found] == ["p:1", "p:1.2", "p:3", "p:1.2.2"]


def test_pairs_of_equal_texts_are_set_aside_and_counted(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [pair(1), pair(2, chosen="bad 2")])
    found = read_pairs(path, seed=0, base_dir=".")
    assert (len(found.pairs), found.skipped) == (1, {"same_text": 1})


@pytest.mark.parametrize(
    ("row", "error", "told"),
    [
        ({"prompt": "a", "chosen": "b"}, ConfigError, r"no column 'rejected' but .* rename the file's"),
        (pair(1, chosen=["one", "two"]), DataError, r"line 1: column 'chosen': holds list .* one row per pair"),
        (pair(1, prompt=" "), DataError, r"line 1: column 'prompt': no user message.*\(empty\).* mend or remove"),
        (pair(1, prompt=[{"role": "assistant", "content": "a"}]), DataError, r"line 1: column 'prompt'"),
        (pair(1, subset=7), DataError, r"line 1: column 'subset': holds int instead of text"),
        (pair(1, chosen="bad 1"), DataError, "no pair of two different texts"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_refused(tmp_path, row, error, told):
    with pytest.raises(error, match=told):
        read(write_jsonl(tmp_path / "p.jsonl", [row]))


# one pair


def outcomes(pairs: Sequence[LabelledPair], judge: Judge, answer: Script) -> list[Outcome]:
    line = line_of(judge, 2)
    return [outcome_of(one, judge_row(line, one.row, answer).row, line.reading) for one in pairs]


@pytest.fixture
def pairs(tmp_path) -> Sequence[LabelledPair]:
    """Ten of each place of the chosen text, for whatever the seed draws."""
    found = read(write_jsonl(tmp_path / "p.jsonl", [pair(i) for i in range(60)]))
    first, second = ([one for one in found if one.chosen == place][:10] for place in (0, 1))
    return [*first, *second]


def points(found: Sequence[Outcome]) -> set[tuple]:
    """(place of the chosen, both orders, one order) of all pairs."""
    return {(one.chosen, one.both_orders, one.one_order) for one in found}


def test_a_judge_that_is_right_in_both_orders_has_every_point(pairs):
    assert points(outcomes(pairs, llm(), better(len))) == {(0, 1.0, 1.0), (1, 1.0, 1.0)}
    assert points(outcomes(pairs, llm(), better(lambda text: -len(text)))) == {(0, 0.0, 0.0), (1, 0.0, 0.0)}


def test_a_judge_that_always_says_a_has_half_of_each_pair_and_in_one_order_half_of_the_pairs(pairs):
    found = outcomes(pairs, llm(), script(always_a))
    assert points(found) == {(0, 0.5, 1.0), (1, 0.5, 0.0)}
    habits, _ = habits_of(found, seed=0)
    assert list(habits) == ["decide.qwen"]
    assert (habits["decide.qwen"].first_rate.value, habits["decide.qwen"].first_rate.count) == (1.0, 40)
    assert habits["decide.qwen"].disagreement_rate.value == 1.0


def test_a_verdict_in_one_order_alone_counts_there_and_nowhere_else(pairs):
    """The judge answers only when the longer answer is A: that is order (0, 1) where the chosen one stands first."""

    def decide(request: Request) -> str:
        return "[[A]]" if len(seen(request).a) > len(seen(request).b) else "Both are fine."

    found = outcomes(pairs, llm(), script(decide))
    assert points(found) == {(0, None, 1.0), (1, None, None)}
    assert {tuple(one.errors.items()) for one in found} == {(("no_verdict", 1),)}
    total = scores_of(found, seed=0).total
    assert (total.both_orders.value, total.no_verdict) == (0.5, 20)
    assert (total.one_order.value, total.no_verdict_one_order) == (0.75, 10)  # 10 right, 10 at one half


def test_the_majority_of_a_jury_decides_in_both_ways_of_asking(pairs):
    """One member is right, one says A to everything, one is wrong: in one order two to one for A, in both a tie."""
    scripts = {"x": better(len), "y": script(always_a), "z": better(lambda text: -len(text))}

    def answer(request: Request):
        return scripts[pass_of(request).removeprefix("decide.")](request)

    found = outcomes(pairs, jury("x", "y", "z"), answer)
    assert points(found) == {(0, 0.5, 1.0), (1, 0.5, 0.0)}
    habits, _ = habits_of(found, seed=0)
    assert {name: each.first_rate.value for name, each in habits.items()} == {
        "decide.x": 0.5, "decide.y": 1.0, "decide.z": 0.5
    }  # fmt: skip


def test_a_knockout_of_two_is_one_match(pairs):
    assert points(outcomes(pairs, llm(schedule="knockout"), better(len))) == {(0, 1.0, 1.0), (1, 1.0, 1.0)}


def test_of_a_judge_that_scores_the_higher_number_wins_and_both_accuracies_coincide(pairs):
    def length(request: Request) -> str:
        return str(len(request.messages[-1]["content"]))

    found = outcomes(pairs, score(), script(length))
    assert points(found) == {(0, 1.0, 1.0), (1, 1.0, 1.0)}
    assert habits_of(found, seed=0)[0] == {}
    assert habits_of(found, seed=0)[1].value == 1.0
    assert points(outcomes(pairs, score(), script(lambda request: "1.0"))) == {(0, 0.5, 0.5), (1, 0.5, 0.5)}
    missing = outcomes(pairs, score(), script(lambda r: "7" if "right" in r.messages[-1]["content"] else "good"))
    assert points(missing) == {(0, None, None), (1, None, None)}
    assert missing[0].errors == {"no_number": 1}


def test_aspects_are_ratings_whose_mean_wins(pairs):
    def rate(request: Request) -> str:
        return "[[5]]" if "right" in request.messages[-1]["content"] else "[[4]]"

    assert points(outcomes(pairs, aspects("honesty", "depth"), script(rate))) == {(0, 1.0, 1.0), (1, 1.0, 1.0)}


# many pairs


def made(subset: str, *values: float | None, one: Sequence[float | None] | None = None) -> list[Outcome]:
    found = []
    for i, (both, single) in enumerate(zip(values, one or values, strict=True)):
        found.append(Outcome(id=f"{subset}:{i}", subset=subset, chosen=0, both_orders=both, one_order=single))
    return found


def test_sections_weigh_subsets_as_reward_bench_does_and_the_total_weighs_sections_alike():
    """Chat: (100 x 1 + 40 x 1/2) / 140 = 6/7. Reasoning: (984 x 0 + 164 x 1) / 1148 = 1/7. mine: 3/4.

    Total: (6/7 + 1/7 + 3/4) / 3 = 7/12.
    """
    found = scores_of(
        [
            *made("mine", 1.0, 1.0, 1.0, 0.0),
            *made("hep-go", 1.0, 1.0, 1.0, one=(0.0, 0.0, 0.0)),
            *made("math-prm", 0.0, one=(1.0,)),
            *made("mt-bench-med", 1.0, 0.0),
            *made("alpacaeval-easy", 1.0, 1.0, 1.0, 1.0, 1.0),
        ],
        seed=0,
    )
    assert list(found.sections) == ["Chat", "Reasoning", "mine"]
    assert list(found.subsets) == ["alpacaeval-easy", "mt-bench-med", "math-prm", "hep-go", "mine"]
    assert found.sections["Chat"].both_orders.value == pytest.approx(6 / 7)
    assert found.sections["Reasoning"].both_orders.value == pytest.approx(1 / 7)
    assert found.sections["Reasoning"].one_order.value == pytest.approx(6 / 7)
    assert found.sections["mine"].both_orders.value == 0.75
    assert found.total.both_orders.value == pytest.approx(7 / 12)
    assert (found.total.num_pairs, found.sections["Chat"].num_pairs) == (15, 7)
    assert not found.is_reward_bench


def test_the_published_counts_are_those_of_the_2985_pairs():
    counts = {section: sum(subsets.values()) for section, subsets in SECTIONS.items()}
    assert counts == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 984 + 6 * 164}
    assert sum(counts.values()) - 984 + NUM_MATH_PAIRS == 2985
    whole = [(subset, num) for subsets in SECTIONS.values() for subset, num in subsets.items()]
    right = [one for subset, num in whole for one in made(subset, *[1.0] * (447 if subset == "math-prm" else num))]
    assert scores_of(right, seed=0).is_reward_bench
    assert not scores_of(right[1:], seed=0).is_reward_bench


def test_intervals_resample_pairs_within_their_subsets_and_depend_on_the_seed_alone():
    """400 pairs, half of them right: 1.96 x sqrt(1/4 / 400) = 0.049 to each side. All right: no width."""
    halves = made("mine", *[1.0, 0.0] * 200)
    rate = scores_of(halves, seed=0).total.both_orders
    assert rate.value == 0.5
    assert rate.low == pytest.approx(0.451, abs=0.008)
    assert rate.high == pytest.approx(0.549, abs=0.008)
    assert scores_of(halves, seed=0).total.both_orders == rate
    assert len({scores_of(halves, seed=seed).total.both_orders for seed in range(5)}) > 1
    both = scores_of([*halves, *made("other", *[1.0] * 400)], seed=0)
    assert both.sections["mine"].both_orders == rate
    other = both.sections["other"].both_orders
    assert (other.value, other.low, other.high) == (1.0, 1.0, 1.0)
    assert both.total.both_orders.low == pytest.approx((rate.low or 0) / 2 + 0.5)


# the command, on real Ray

RECIPE = """
name: checked
run_dir: {folder}/run
models:
  a: {{engine: openai, model: a, base_url: "{url}", price_per_million_tokens: 1000}}
  rule: {{engine: rule, function: "{rule}"}}
judges:
  single: {{kind: llm, model: a, max_tokens: 64}}
  rule: {{kind: score, model: rule}}
judge: {{use: single, block_rows: 2, max_failed_fraction: 0.0}}
ray: {{address: local}}
"""


def write_recipe(folder: Path, *, url: str = "http://127.0.0.1:1/v1", rule: str = "longest") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, url=url, rule=rule), encoding="utf-8")
    return path


def judging(quality: Callable[[str], float | None]) -> Callable[[tuple[Message, ...]], str]:
    """What an endpoint says: the better one, or nothing in form where one of the two has no quality."""

    def reply(messages: tuple[Message, ...]) -> str:
        shown = seen(Request(id="any", row_id="any", messages=messages, sampling=Sampling(max_tokens=1), seed=0))
        a, b = quality(shown.a), quality(shown.b)
        return "Who knows." if a is None or b is None else "So: " + ("[[A]]" if a > b else "[[B]]")

    return reply


@pytest.mark.long
def test_a_check_reports_accuracy_cost_and_lacking_verdicts_and_asks_only_for_these_again(tmp_path):
    """Subset x: 3 right, 1 wrong; y: 1 right, 1 without a verdict, so (3/4 + 3/4) / 2. Six pairs are 12 calls."""
    rows = [pair(i, subset="x") for i in range(3)] + [pair(3, subset="x", chosen="3", rejected="longer")]
    rows += [pair(4, subset="y"), pair(5, subset="y", rejected="riddle 5")]
    path = write_jsonl(tmp_path / "my pairs.jsonl", rows)
    reply = judging(lambda text: None if "riddle" in text else len(text))
    with servers.chat_endpoint(reply=reply, models=("a",), window=4096) as endpoint:
        loaded = load_preference(write_recipe(tmp_path, url=endpoint.url))
        (report,) = check_judge(loaded, [path])
        assert len(endpoint.bodies) == 12
        again = check_judge(loaded, [path])[0]
        assert len(endpoint.bodies) == 14
        with pytest.raises(ConfigError, match=r"max_tokens was 64, is 32\n.*`moaa check-judge --judge single --"):
            check_judge(load_preference(tmp_path / "recipe.yaml", ["judges.single.max_tokens=32"]), [path])
        check_judge(loaded, [path], restart=True)
        assert len(endpoint.bodies) == 26
    total = report.scores.total
    assert (total.both_orders.value, total.one_order.value, total.no_verdict) == (0.75, 0.75, 1)
    assert report.errors == {"no_verdict": 2}
    assert report.habits["decide.a"].first_rate.value == 0.5
    assert report.habits["decide.a"].parse_failure_rate.value == pytest.approx(2 / 12)
    assert (report.cost.calls, again.cost.calls) == (12, 14)
    tokens = report.cost.prompt_tokens + report.cost.completion_tokens
    assert report.cost.usd == pytest.approx(tokens / 1000)
    assert again.scores == report.scores
    folder = tmp_path / "run" / "checks" / "single" / "my-pairs"
    written = json.loads((folder / "check.json").read_text())
    assert written["scores"]["total"]["both_orders"]["value"] == 0.75
    assert written["settings"]["max_tokens"] == 64
    lines = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    assert [line["both_orders"] for line in lines] == [1.0, 1.0, 1.0, 0.0, 1.0, None]
    assert not (tmp_path / "run" / "pairs").exists()
    text = render_check(report)
    assert re.search(r"total +6 +75\.0% \[.*\] +75\.0% \[.*\] +1\n", text)
    assert "lacking: no_verdict 2" in text
    assert "RewardBench" not in text


@pytest.mark.slow
def test_a_judge_without_a_single_verdict_is_an_error_that_says_why(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [pair(i) for i in range(4)])
    with servers.chat_endpoint(reply=lambda messages: "Well.", models=("a",), window=4096) as endpoint:
        loaded = load_preference(write_recipe(tmp_path, url=endpoint.url))
        with pytest.raises(StageError, match=r"'single' has given no verdict on any of 4 pairs \(no_verdict 8\)"):
            check_judge(loaded, [path])


def test_files_of_one_name_and_unknown_judges_are_refused_before_anything_starts(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [write_jsonl(folder / "p.jsonl", [pair(1)]) for folder in (tmp_path, tmp_path / "other")]
    loaded = load_preference(write_recipe(tmp_path))
    with pytest.raises(ConfigError, match=r"two files of labelled pairs are called 'p'.*rename one"):
        check_judge(loaded, paths)
    with pytest.raises(ConfigError, match=r"no judge 'jury'; the recipe's judges are single, rule"):
        check_judge(loaded, paths[:1], name="jury")


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "moaa_ray", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.long
def test_the_command_goes_on_after_a_kill_and_ends_as_an_undisturbed_one(tmp_path):
    rows = [pair(i, subset="math-prm") for i in range(40)]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    reports = []
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name, rule="tests.preference.rules:slow_length")
        folder = tmp_path / name / "run" / "checks" / "rule" / "p"
        command = ("check-judge", str(recipe), path, "judge.hang_after_s=30", "--judge", "rule")
        if name == "killed":
            process = start(*command)
            end = time.monotonic() + 120
            while not list(folder.glob("work/judge/*/e*/b*.parquet")) and time.monotonic() < end:
                time.sleep(0.05)
            runs.kill_all(process)
            assert not (folder / "check.json").exists()
        code, output = runs.finish(start(*command))
        assert code == 0, output
        assert re.search(r"total +40 +100\.0%", output), output
        assert "not RewardBench's 2,985 pairs" in output
        reports.append(json.loads((folder / "check.json").read_text()))
    assert reports[0]["scores"] == reports[1]["scores"]
