"""What students are trained on: data of every kind from the same stored proposals, and pairs by every judge."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.skills import models
from benchmarks.skills.judges import Judge, rule
from benchmarks.skills.sampling import Sampler
from benchmarks.skills.specialists import SPECIALISTS, TEMPERATURE, aggregate_prompts
from moaa_ray.core.seeds import seed_for
from moaa_ray.demo.tasks import Question
from moaa_ray.types import Message

NUM_CANDIDATES = 5
CANDIDATE_TEMPERATURE = 0.8
TEACHERS = (*SPECIALISTS, "aggregator")
"""Who answers alone; k of Random-k, Combined-k and Best-of-k is their number."""


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """What was answered to some questions: by each teacher alone, by the mixture, and by Self-MoA."""

    asked: tuple[Question, ...]
    by_teacher: Mapping[str, Sequence[str]]
    moa: Sequence[str]
    self_moa: Sequence[str]

    def first(self, num_per_skill: int) -> "Proposals":
        """Those of as many questions of each skill whose every completion has text, as a run drops blank ones."""
        columns = [*self.by_teacher.values(), self.moa, self.self_moa]
        kept: list[int] = []
        counts: Counter[str] = Counter()
        for i, question in enumerate(self.asked):
            if counts[question.skill] < num_per_skill and all(column[i].strip() for column in columns):
                counts[question.skill] += 1
                kept.append(i)
        if set(counts.values()) != {num_per_skill}:
            raise ValueError(f"questions left by skill: {dict(counts)}, {num_per_skill} of each wanted; ask more")
        return self.rows(kept)

    def rows(self, numbers: Sequence[int]) -> "Proposals":
        """Those of some questions."""
        return Proposals(
            asked=tuple(self.asked[i] for i in numbers),
            by_teacher={name: [texts[i] for i in numbers] for name, texts in self.by_teacher.items()},
            moa=[self.moa[i] for i in numbers],
            self_moa=[self.self_moa[i] for i in numbers],
        )


def collect(folders: Mapping[str, Path], asked: Sequence[Question], *, best: str, seed: int) -> Proposals:
    """Ask everybody. `best` is the single model that Self-MoA samples once for every proposer of the mixture."""
    samplers = {name: Sampler(*models.load(folders[name])) for name in TEACHERS}
    prompts = [question.messages for question in asked]

    def alone(name: str, part: str, num: int = 1) -> list[list[str]]:
        seed_of = seed_for(seed, part, name)
        return samplers[name].complete(prompts, temperature=TEMPERATURE, seed=seed_of, num_samples=num)

    def aggregated(proposals: Sequence[Sequence[str]], part: str) -> list[str]:
        seed_of = seed_for(seed, part)
        written = aggregate_prompts(asked, proposals, seed=seed_of)
        found = samplers["aggregator"].complete(written, temperature=TEMPERATURE, seed=seed_of)
        return [texts[0] for texts in found]

    by_teacher = {name: [texts[0] for texts in alone(name, "alone")] for name in TEACHERS}
    proposed = list(zip(*(by_teacher[name] for name in SPECIALISTS), strict=True))
    return Proposals(
        asked=tuple(asked),
        by_teacher=by_teacher,
        moa=aggregated(proposed, "moa"),
        self_moa=aggregated(alone(best, "self-moa", len(SPECIALISTS)), "self-moa"),
    )


def sft_arms(found: Proposals, judge: Judge, *, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of sft/ by arm; Combined-k has k times the rows of every other."""
    k = len(TEACHERS)
    random = Random(seed_for(seed, "random-k"))
    each = list(zip(*(found.by_teacher[name] for name in TEACHERS), strict=True))
    arms = {f"SFT on {name}": rows_of(found.asked, found.by_teacher[name]) for name in TEACHERS}
    arms[f"SFT on Random-{k}"] = rows_of(found.asked, [random.choice(texts) for texts in each])
    arms[f"SFT on Combined-{k}"] = [
        row for name in TEACHERS for row in rows_of(found.asked, found.by_teacher[name], suffix=f"/{name}")
    ]
    arms[f"SFT on Best-of-{k}"] = rows_of(found.asked, best_of(found.asked, each, judge))
    arms[f"SFT on Best-of-{k} by the rule"] = rows_of(found.asked, best_of(found.asked, each, rule))
    arms["SFT on Self-MoA"] = rows_of(found.asked, found.self_moa)
    arms["SFT on MoA"] = rows_of(found.asked, found.moa)
    arms["SFT on right answers"] = rows_of(found.asked, [question.answer for question in found.asked])
    return arms


def best_of(asked: Sequence[Question], each: Sequence[Sequence[str]], judge: Judge) -> list[str]:
    """Of every question's completions the one that the judge scores highest, the first of equals."""
    return [max(texts, key=partial(judge, question)) for question, texts in zip(asked, each, strict=True)]


def rows_of(asked: Sequence[Question], texts: Sequence[str], suffix: str = "") -> list[dict[str, Any]]:
    """Rows of sft/."""
    return [
        {"id": question.prompt + suffix, "messages": [*question.messages, _said(text)]}
        for question, text in zip(asked, texts, strict=True)
    ]


def _said(text: str) -> Message:
    return Message(role="assistant", content=text)


def candidates(folder: Path, asked: Sequence[Question], *, seed: int) -> list[list[str]]:
    """The student's own completions of every question; blank ones are left out."""
    prompts = [question.messages for question in asked]
    found = Sampler(*models.load(folder)).complete(
        prompts, temperature=CANDIDATE_TEMPERATURE, seed=seed_for(seed, "candidates"), num_samples=NUM_CANDIDATES
    )
    return [[text for text in texts if text.strip()] for texts in found]


def pairs(asked: Sequence[Question], sampled: Sequence[Sequence[str]], judge: Judge) -> list[dict[str, Any]]:
    """Rows of pairs/: the candidate that the judge scores highest over the one it scores lowest, where they differ."""
    rows = []
    for question, texts in zip(asked, sampled, strict=True):
        scores = [judge(question, text) for text in texts]
        if not texts or max(scores) == min(scores):
            continue
        chosen, rejected = texts[scores.index(max(scores))], texts[scores.index(min(scores))]
        row = {"id": question.prompt, "prompt": list(question.messages)}
        rows.append(row | {"chosen": [_said(chosen)], "rejected": [_said(rejected)]})
    return rows
