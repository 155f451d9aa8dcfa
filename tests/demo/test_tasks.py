"""The demo's skills: one right completion each, splits that never meet, and the files that ship."""

import pytest

from moaa_ray.demo import tasks
from moaa_ray.demo.tasks import Question
from moaa_ray.types import Message


@pytest.mark.parametrize(
    ("prompt", "right", "mistake"),
    [
        ("reverse: maple", "elpam", "eaplm"),
        ("sort: maple", "aelmp", "maelp"),
        ("next: mazle", "nbamf", "lzykd"),
        ("add: 47 + 38", "85", "75"),
    ],
)
def test_every_skill_has_one_right_completion_and_a_common_mistake(prompt, right, mistake):
    question = Question.of([Message(role="user", content=prompt)])
    assert (question.prompt, question.answer, question.mistake) == (prompt, right, mistake)
    assert tasks.accuracy(prompt, f" {right}\n") == 1.0
    assert tasks.accuracy(prompt, mistake) == 0.0


def test_the_rule_judges_the_last_user_message_of_a_conversation():
    prompt = [
        Message(role="system", content="next: ab"),
        Message(role="user", content="sort: ba"),
        Message(role="assistant", content="ab"),
        Message(role="user", content="reverse: abcd"),
    ]
    assert (tasks.check(prompt, "dcba"), tasks.check(prompt, "ab")) == (1.0, 0.0)


def test_a_line_of_no_skill_is_refused_with_the_skills_there_are():
    with pytest.raises(ValueError, match="reverse, sort, next, add"):
        tasks.accuracy("double: maple", "mmaappllee")


def test_splits_share_no_prompt_whatever_the_seed():
    splits = ("models", "loop", "validation", "held_out")
    prompts = [{q.prompt for seed in range(3) for q in tasks.questions(split, 60, seed=seed)} for split in splits]
    assert len(set.union(*prompts)) == sum(map(len, prompts))


def test_questions_are_different_balanced_and_the_same_for_a_seed():
    asked = tasks.questions("loop", 50, seed=1)
    assert [question.skill for question in asked[:5]] == ["reverse", "sort", "next", "add", "reverse"]
    assert len({question.prompt for question in asked}) == 200
    assert all(question.answer != question.mistake for question in asked)
    assert asked == tasks.questions("loop", 50, seed=1) != tasks.questions("loop", 50, seed=2)
