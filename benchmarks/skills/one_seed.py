"""One seed of the benchmark: prompts, proposals, every student, and what each gets right of the test prompts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.skills import arms, judges, models
from benchmarks.skills.judges import Judge
from benchmarks.skills.sampling import Sampler
from benchmarks.skills.specialists import SPECIALISTS
from benchmarks.skills.training import Recipe, train_student
from moaa_ray.core.seeds import seed_for
from moaa_ray.demo.tasks import SKILLS, Question, questions

Rows = Sequence[dict[str, Any]]
MIXTURE = "SFT on MoA"
LONGER = "SFT on MoA, as long as DPO takes"
MORE = "SFT on MoA of DPO's prompts too"
SELF_IMPROVED = "aggregator, SFT on MoA"
PROPOSED = "MoA itself"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of one seed's run; the same for every arm."""

    sft_per_skill: int = 50
    pairs_per_skill: int = 600
    """Questions that the SFT student answers for DPO, never those of SFT."""
    sft: Recipe = field(default_factory=lambda: Recipe(stage="sft", batch=20, epochs=12))
    """Enough for more steps on the same rows to gain nothing. Epochs are a multiple of the number of teachers:
    Combined-k has k times the rows and 1/k of the epochs."""
    dpo: Recipe = field(default_factory=lambda: Recipe(stage="dpo", batch=32, epochs=3, beta=1.0))
    judge_error: float = 0.25
    """Share of completions that a single erring judge is wrong about."""
    spare: float = 0.1
    """Share of questions asked beyond those needed, as blank completions are dropped."""


@dataclass
class Outcome:
    """What one seed gave."""

    correct: dict[str, list[int]] = field(default_factory=dict)
    """By arm, 1 for every question answered rightly, in the questions' order."""
    by_rate: dict[str, dict[float, float]] = field(default_factory=dict)
    """By arm and learning rate, the share of right answers."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By arm: rows, steps, tokens, seconds, share of right completions in its data."""


class SeedRun:
    """The students of one seed. With several learning rates for an arm, its best student goes on."""

    def __init__(self, work: Path, asked: Sequence[Question], grid: Mapping[str, Sequence[float]], *, seed: int):
        """`asked` is what students are tested on; grid has the learning rates of each arm."""
        self._work = work
        self._asked = asked
        self._grid = grid
        self._seed = seed
        self.outcome = Outcome()

    def test(self, arm: str, folder: Path) -> float:
        """Note what a model gets right at temperature 0; the share."""
        found = Sampler(*models.load(folder)).complete([q.messages for q in self._asked], temperature=0.0, seed=0)
        return self.note(arm, [texts[0] for texts in found])

    def note(self, arm: str, texts: Sequence[str]) -> float:
        """Note completions of the test questions as an arm's; the share of right ones."""
        self.outcome.correct[arm] = [int(judges.rule(q, text)) for q, text in zip(self._asked, texts, strict=True)]
        return share(self.outcome.correct[arm])

    def train(self, arm: str, student: Path, rows: Rows, recipe: Recipe, **facts: Any) -> Path:
        """Train a student at every rate of the grid, test all, note the best; its folder."""
        began = time.perf_counter()
        best: tuple[float, list[int], Path] | None = None
        self.outcome.by_rate[arm] = {}
        for rate in self._grid[arm]:
            run = self._work / f"{arm.replace(' ', '-').replace(',', '')}-{rate:g}"
            trained = train_student(run, student, rows, recipe, rate=rate, seed=seed_for(self._seed, "order"))
            accuracy = self.outcome.by_rate[arm][rate] = self.test(arm, trained.folder)
            if best is None or accuracy > best[0]:
                best = accuracy, self.outcome.correct[arm], trained.folder
                facts |= {"rate": rate, "num_steps": trained.num_steps, "num_tokens": trained.num_tokens}
        assert best is not None, f"no learning rate for {arm}"
        self.outcome.correct[arm] = best[1]
        wall_s = round(time.perf_counter() - began, 1)
        self.outcome.facts[arm] = {"num_rows": len(rows), **facts, "wall_s": wall_s}
        return best[2]


def run_seed(
    folders: Mapping[str, Path],
    work: Path,
    asked: Sequence[Question],
    settings: Settings,
    grid: Mapping[str, Sequence[float]],
    *,
    best: str,
    seed: int,
) -> Outcome:
    """Every arm with one seed. `best` is the single model that Self-MoA samples."""
    run = SeedRun(work, asked, grid, seed=seed)
    for name in ("base", *arms.TEACHERS):
        run.test(name, folders[name])
    run.note(PROPOSED, arms.collect(folders, asked, best=best, seed=seed).moa)
    sft, more = collect(folders, settings, best=best, seed=seed)
    best_of = judges.erring("best-of", settings.judge_error, seed=seed)
    rows_of = arms.sft_arms(sft, best_of, seed=seed)
    students = {}
    for arm, rows in rows_of.items():
        right = share([judges.rule(Question.of(row["messages"]), row["messages"][-1]["content"]) for row in rows])
        students[arm] = run.train(arm, folders["base"], rows, _sft_recipe(rows, settings), right=right)
    run.train(SELF_IMPROVED, folders["aggregator"], rows_of[MIXTURE], settings.sft)
    pairs = pair_rows(folders, students[MIXTURE], more, settings, seed=seed)
    for judge, (rows, agreement) in pairs.items():
        run.train(f"DPO by {judge}", students[MIXTURE], rows, settings.dpo, right=agreement)
    num_pairs = max(len(rows) for rows, _ in pairs.values())
    for arm, rows in ((LONGER, rows_of[MIXTURE]), (MORE, arms.rows_of(more.asked, more.moa))):
        run.train(arm, students[MIXTURE], rows, _as_long_as_dpo(rows, num_pairs, settings))
    return run.outcome


def collect(
    folders: Mapping[str, Path], settings: Settings, *, best: str, seed: int
) -> tuple[arms.Proposals, arms.Proposals]:
    """Ask everybody this seed's questions: those of SFT, and those of DPO."""
    num = settings.sft_per_skill + settings.pairs_per_skill
    asked = questions("loop", round(num * (1 + settings.spare)), seed=seed)
    found = arms.collect(folders, asked, best=best, seed=seed).first(num)
    cut = settings.sft_per_skill * len(SKILLS)
    return found.rows(range(cut)), found.rows(range(cut, len(found.asked)))


def _sft_recipe(rows: Rows, settings: Settings) -> Recipe:
    """The same number of steps whatever the number of rows."""
    per_arm = settings.sft_per_skill * len(SKILLS)
    times = len(rows) // per_arm
    assert len(rows) == times * per_arm, f"{len(rows)} rows are no multiple of {per_arm}"
    assert settings.sft.epochs % times == 0, f"{settings.sft.epochs} epochs over {times} answers a question"
    return Recipe(stage="sft", batch=settings.sft.batch, epochs=settings.sft.epochs // times)


def _as_long_as_dpo(rows: Rows, num_pairs: int, settings: Settings) -> Recipe:
    """SFT in about as many steps of as many completions."""
    batch = 2 * settings.dpo.batch
    return Recipe(stage="sft", batch=batch, epochs=round(2 * num_pairs * settings.dpo.epochs / len(rows)))


def pair_rows(
    folders: Mapping[str, Path], student: Path, found: arms.Proposals, settings: Settings, *, seed: int
) -> dict[str, tuple[Rows, float]]:
    """Pairs by judge, and in what share of them the chosen completion is right and the rejected one wrong.

    There are as many of each: as many whole batches as every judge finds pairs for.
    """
    sampled = arms.candidates(student, found.asked, seed=seed)
    judged = _judges(folders, found, sampled, settings, seed=seed)
    rows = {name: arms.pairs(found.asked, sampled, judge) for name, judge in judged.items()}
    num = min(map(len, rows.values())) // settings.dpo.batch * settings.dpo.batch
    return {name: (made[:num], share([_agrees(row) for row in made[:num]])) for name, made in rows.items()}


def _judges(
    folders: Mapping[str, Path],
    found: arms.Proposals,
    sampled: Sequence[Sequence[str]],
    settings: Settings,
    *,
    seed: int,
) -> dict[str, Judge]:
    """Every judge of these candidates, by name."""
    erring = [judges.erring(f"juror-{i}", settings.judge_error, seed=seed) for i in range(3)]
    proposals = list(zip(*(found.by_teacher[name] for name in SPECIALISTS), strict=True))
    return {
        "the rule": judges.rule,
        "an erring judge": erring[0],
        "a vote of 3 erring judges": judges.vote(erring),
        **{name: judges.opinion(folders[name], found.asked, sampled) for name in SPECIALISTS},
        "MoA": judges.mixture_opinion(folders, found.asked, proposals, sampled, seed=seed),
        "a coin": judges.coin(seed=seed),
    }


def _agrees(row: Mapping[str, Any]) -> bool:
    question = Question.of(row["prompt"])
    chosen, rejected = (judges.rule(question, row[column][0]["content"]) for column in ("chosen", "rejected"))
    return chosen > rejected


def share(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)
