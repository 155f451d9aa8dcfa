"""The benchmark of skills: its questions, its models' folders, its judges, its statistics; nothing long is trained."""

import numpy as np
import pytest

from benchmarks.skills import arms, judges, models, statistics
from benchmarks.skills.sampling import Sampler
from benchmarks.skills.specialists import aggregate_prompts
from benchmarks.skills.training import Recipe, train_student
from moaa_ray.demo import tasks
from moaa_ray.demo.tasks import Question
from moaa_ray.engines.chat_tokens import ChatTokenizer


@pytest.mark.slow
def test_a_skill_with_too_few_questions_is_an_error():
    with pytest.raises(ValueError, match="ask for fewer"):
        tasks.questions("held_out", 5000, seed=0, skills=["add"])


@pytest.fixture(scope="module")
def tokenizer():
    return models.make_tokenizer()


def test_the_aggregate_prompt_is_short_in_tokens_and_comes_back_unchanged(tokenizer):
    question = Question(skill="reverse", text="maple")
    (prompt,) = aggregate_prompts([question], [["elpam", "a b\n1.\n[x]", "été <|end|>"]], seed=0)
    chat = ChatTokenizer(tokenizer)
    text = chat.render(prompt, is_prompt=True)
    assert len(text) > 900
    assert len(chat.encode(prompt)[0]) < 170
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("skills") / "model"
    models.save(models.make_model(tokenizer, seed=0), tokenizer, folder)
    return folder


def test_a_folder_of_weights_is_a_few_hundred_kilobytes(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 350_000


@pytest.mark.slow
def test_what_is_sampled_depends_on_seed_row_and_sample_but_not_on_the_batch(folder):
    asked = [question.messages for question in tasks.questions("loop", 3, seed=0)]
    sampler = Sampler(*models.load(folder))
    together = sampler.complete(asked, temperature=1.0, seed=5, num_samples=3)
    assert together == sampler.complete(asked, temperature=1.0, seed=5, num_samples=3)
    assert together[:4] == sampler.complete(asked[:4], temperature=1.0, seed=5, num_samples=3)
    assert len(set(together[0])) == 3


@pytest.mark.slow
def test_a_student_is_trained_by_the_loop_towards_its_rows(folder, tmp_path):
    asked = tasks.questions("loop", 2, seed=0)
    rows = arms.rows_of(asked, ["x"] * len(asked))
    trained = train_student(tmp_path, folder, rows, Recipe(stage="sft", batch=4, epochs=30), rate=1e-2, seed=0)
    found = Sampler(*models.load(trained.folder)).complete([q.messages for q in asked], temperature=0.0, seed=0)
    assert found == [["x"]] * len(asked)
    assert trained.num_steps == 60


def test_an_erring_judge_errs_as_often_as_it_says_and_a_vote_less():
    asked = tasks.questions("loop", 500, seed=0)
    jurors = [judges.erring(str(i), 0.25, seed=0) for i in range(3)]
    wrong = [np.mean([judge(q, q.answer) == 0.0 for q in asked]) for judge in (jurors[0], judges.vote(jurors))]
    assert wrong == pytest.approx([0.25, 3 * 0.25**2 * 0.75 + 0.25**3], abs=0.03)


def test_pairs_hold_the_judges_best_over_its_worst_and_nothing_without_a_difference():
    asked = [Question(skill="sort", text="ba"), Question(skill="sort", text="dc")]
    (row,) = arms.pairs(asked, [["ba", "ab"], ["dc", "xx"]], judges.rule)
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("ab", "ba")


def test_combined_holds_every_teachers_rows_and_best_of_what_the_judge_likes():
    asked = (Question(skill="sort", text="ba"),)
    texts = {name: [f"text of {name}"] for name in arms.TEACHERS} | {"specialist-b": ["ab"]}
    found = arms.Proposals(asked=asked, by_teacher=texts, moa=["m"], self_moa=["s"])
    rows = {
        arm: [row["messages"][-1]["content"] for row in of]
        for arm, of in arms.sft_arms(found, judges.rule, seed=0).items()
    }
    assert rows["SFT on Combined-4"] == [texts[name][0] for name in arms.TEACHERS]
    assert rows["SFT on Best-of-4"] == ["ab"]
    assert rows["SFT on MoA"] == ["m"]
    assert rows["SFT on right answers"] == ["ab"]


def test_rows_with_a_blank_completion_are_left_out_of_every_arm():
    asked = tuple(Question(skill="sort", text=text) for text in ("ba", "dc", "fe"))
    texts = {name: ["x", "x", "x"] for name in arms.TEACHERS}
    found = arms.Proposals(asked=asked, by_teacher=texts, moa=["m", " ", "m"], self_moa=["s", "s", "s"])
    assert [question.text for question in found.first(2).asked] == ["ba", "fe"]
    with pytest.raises(ValueError, match="ask more"):
        found.first(3)


def test_a_constant_difference_has_an_interval_of_no_width_and_chance_one_around_nothing():
    ones, zeros = np.ones((5, 40)), np.zeros((5, 40))
    sure = statistics.difference(ones, zeros)
    assert (sure.mean, sure.low, sure.high) == (1.0, 1.0, 1.0)
    assert sure.p < 0.001
    draw = np.random.default_rng(0)
    unsure = statistics.difference(draw.random((5, 400)) < 0.5, draw.random((5, 400)) < 0.5)
    assert unsure.low < 0 < unsure.high
    assert unsure.p > 0.05


def test_the_interval_is_as_wide_as_the_spread_over_seeds_demands():
    """Differences of seeds are 0 or 1 as a whole: a mean over 4 of them has standard deviation 0.25."""
    first = np.array([[0] * 50, [1] * 50, [0] * 50, [1] * 50])
    found = statistics.difference(first, np.zeros_like(first))
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests_and_never_reverses_an_order():
    assert statistics.holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
