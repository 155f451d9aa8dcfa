"""Four skills that tiny models can learn, each with one right answer and one plausible mistake.

A prompt is a line such as "reverse: maple". Which split a prompt belongs to is decided by its hash alone, so prompts
that models were made with, prompts that students are trained on, validation and held-out prompts never meet.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from moaa_ray.core.seeds import seed_for
from moaa_ray.types import Message

Split = Literal["models", "loop", "validation", "held_out"]
_SHARES: tuple[tuple[Split, float], ...] = (("models", 0.4), ("loop", 0.4), ("validation", 0.1), ("held_out", 0.1))
_MAX_DRAWS_PER_QUESTION = 200


@dataclass(frozen=True, kw_only=True)
class Skill:
    """A rule on texts, and how it is commonly got wrong."""

    draw: Callable[[Random], str]
    right: Callable[[str], str]
    mistake: Callable[[str], str]


def _word(random: Random) -> str:
    """Four to six letters, consonants and vowels in turn."""
    start = random.randrange(2)
    return "".join(random.choice(("bcdfghjklmnprstvwz", "aeiou")[(start + i) % 2]) for i in range(random.randint(4, 6)))


def _sum(random: Random) -> str:
    """Two numbers of two digits whose units carry."""
    while True:
        a, b = random.randint(10, 99), random.randint(10, 99)
        if a % 10 + b % 10 > 9:
            return f"{a} + {b}"


def _add(text: str) -> str:
    a, b = map(int, text.split(" + "))
    return str(a + b)


def _add_without_carry(text: str) -> str:
    a, b = map(int, text.split(" + "))
    return f"{a // 10 + b // 10}{(a + b) % 10}"


def _shifted(text: str, by: int) -> str:
    return "".join(chr((ord(letter) - ord("a") + by) % 26 + ord("a")) for letter in text)


SKILLS: dict[str, Skill] = {
    "reverse": Skill(
        draw=_word, right=lambda text: text[::-1], mistake=lambda text: text[-1] + text[1:-1] + text[0]
    ),  # only the ends change places
    "sort": Skill(
        draw=_word, right=lambda text: "".join(sorted(text)), mistake=lambda text: text[0] + "".join(sorted(text[1:]))
    ),  # the first letter stays
    "next": Skill(
        draw=_word, right=lambda text: _shifted(text, 1), mistake=lambda text: _shifted(text, -1)
    ),  # the letter before
    "add": Skill(draw=_sum, right=_add, mistake=_add_without_carry),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt of a skill."""

    skill: str
    text: str

    @staticmethod
    def of(prompt: Sequence[Message]) -> "Question":
        """What a conversation's last user message asks. Raises ValueError for a line of no skill."""
        line = next(message["content"] for message in reversed(prompt) if message["role"] == "user")
        skill, _, text = line.partition(": ")
        if skill not in SKILLS:
            raise ValueError(f"{line!r} is a prompt of none of the skills {', '.join(SKILLS)}")
        return Question(skill=skill, text=text)

    @property
    def prompt(self) -> str:
        """The line that is asked."""
        return f"{self.skill}: {self.text}"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The line as a conversation."""
        return (Message(role="user", content=self.prompt),)

    @property
    def answer(self) -> str:
        """The right completion."""
        return SKILLS[self.skill].right(self.text)

    @property
    def mistake(self) -> str:
        """The completion of someone who has the rule a little wrong; never the right one."""
        return SKILLS[self.skill].mistake(self.text)


def split_of(question: Question) -> Split:
    """The split that the prompt's hash puts it in."""
    place = seed_for(0, "split", question.prompt) / 2**53
    for split, share in _SHARES:
        if place < share:
            return split
        place -= share
    return _SHARES[-1][0]


def questions(split: Split, num_per_skill: int, *, seed: int, skills: Iterable[str] = SKILLS) -> list[Question]:
    """Different questions of a split, as many of each skill, skills in turn. Raises ValueError if there are too few."""
    drawn = [_drawn(skill, split, num_per_skill, Random(seed_for(seed, "questions", split, skill))) for skill in skills]
    return [question for turn in zip(*drawn, strict=True) for question in turn]


def _drawn(skill: str, split: Split, num: int, random: Random) -> list[Question]:
    found: dict[str, Question] = {}
    for _ in range(num * _MAX_DRAWS_PER_QUESTION):
        if len(found) == num:
            break
        question = Question(skill=skill, text=SKILLS[skill].draw(random))
        if split_of(question) == split and question.answer != question.mistake:
            found[question.text] = question
    if len(found) < num:
        raise ValueError(f"{skill}: only {len(found)} questions found in split {split}, {num} asked for; ask for fewer")
    return list(found.values())


def accuracy(prompt: str, completion: str) -> float:
    """1.0 for the right completion of a prompt line, else 0.0. Raises ValueError for a line of no skill."""
    return check([Message(role="user", content=prompt)], completion)


def check(prompt: Sequence[Message], completion: str) -> float:
    """The rule judge: 1.0 for the right completion of a conversation's last user message, else 0.0."""
    return float(completion.strip() == Question.of(prompt).answer)
