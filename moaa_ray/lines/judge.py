"""From a recipe's judge to its passes in line order. The planner and the judge stage both start here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moaa_ray.core.candidates import CANDIDATES
from moaa_ray.core.judge_prompts import (
    JUDGE_VERSION,
    assess_messages,
    criteria_messages,
    decide_messages,
    rate_messages,
)
from moaa_ray.core.judge_rounds import Round, num_rounds
from moaa_ray.core.judged import JudgeWork
from moaa_ray.core.judging import AssessPass, CriteriaPass, DecidePass, PairPass
from moaa_ray.core.passes import Pass, StageWork
from moaa_ray.core.scoring import ScorePass
from moaa_ray.errors import ConfigError
from moaa_ray.lines.mixture import expected_completion, sampling_of
from moaa_ray.planning.planner import PlanInput
from moaa_ray.planning.pool_estimate import PassLoad
from moaa_ray.recipe import Run
from moaa_ray.settings.preference import (
    AspectsJudge,
    Judge,
    JudgeSlotConfig,
    JuryJudge,
    LlmJudge,
    MixtureJudge,
    ScoreJudge,
)
from moaa_ray.types import Sampling

STAGE = "judge"
TEMPLATE_TOKENS = 250
"""Tokens of a judging prompt beside the request, the candidates and the assessments; an assumption."""
_CRITERIA_TOKENS = 60.0
"""Tokens of an answer that names three criteria; an assumption."""
_SCORE_SAMPLING = Sampling(max_tokens=1, temperature=0.0)
"""A reward model draws nothing."""


@dataclass(frozen=True, kw_only=True)
class JudgeLine:
    """A judge as passes, and how their answers are read."""

    passes: tuple[Pass, ...]
    reading: JudgeWork

    def work(self, stage: str) -> StageWork:
        """The same as the work of a stage, which brings candidates along."""
        close, reopen = self.reading.close, self.reading.reopen
        return StageWork(stage=stage, passes=self.passes, close=close, reopen=reopen, inputs=(CANDIDATES,))


def judge_in_use(recipe: Run) -> str:
    """The name of the judge that makes the pairs. Raises ConfigError where the recipe leaves it open."""
    names = list(recipe.judges)
    if recipe.judge.use in names:
        return recipe.judge.use
    if not recipe.judge.use and len(names) == 1:
        return names[0]
    known = ", ".join(names) or "none"
    raise ConfigError(
        f"judge.use = {recipe.judge.use!r}: the recipe's judges are {known}; define one under `judges` and name it here"
    )


def judge_line(judge: Judge, *, run_seed: int, num_candidates: int) -> JudgeLine:
    """The passes of a judge over rows of at most so many candidates."""
    if isinstance(judge, ScoreJudge | AspectsJudge):
        scorer = _scorer(judge, run_seed)
        return JudgeLine(passes=(scorer,), reading=JudgeWork(run_seed=run_seed, scorer=scorer))
    slots = _slots(judge)
    is_knockout = judge.schedule == "knockout"
    rounds: list[Round] = []
    passes: list[PairPass] = []
    for number in range(num_rounds(num_candidates) if is_knockout else 1):
        tag = f".r{number + 1}" if is_knockout else ""
        attempts = judge.criteria_attempts if judge.criteria else 0
        each = Round(
            run_seed=run_seed,
            criteria=tuple(f"criteria{n + 1}{tag}" for n in range(attempts)),
            assessments=tuple(f"assess.{slot.label}{tag}" for slot in slots.assess),
            deciders=tuple(f"decide.{slot.label}{tag}" for slot in slots.decide),
            is_knockout=is_knockout,
            earlier=rounds[-1] if rounds else None,
        )
        rounds.append(each)
        passes += _round_passes(each, slots)
    passes[-1] = replace(passes[-1], is_final=True)
    reading = JudgeWork(run_seed=run_seed, max_missing_fraction=judge.max_missing_fraction, rounds=tuple(rounds))
    return JudgeLine(passes=tuple(passes), reading=reading)


@dataclass(frozen=True)
class _Slots:
    """Who does what in a pairwise judge."""

    criteria: JudgeSlotConfig
    assess: Sequence[JudgeSlotConfig]
    decide: Sequence[JudgeSlotConfig]


def _slots(judge: MixtureJudge | LlmJudge | JuryJudge) -> _Slots:
    match judge:
        case MixtureJudge():
            return _Slots(judge.criteria_slot, judge.proposers, [judge.aggregator])
        case JuryJudge():
            return _Slots(judge.members[0], [], judge.members)
        case LlmJudge():
            return _Slots(judge, [], [judge])


def _round_passes(each: Round, slots: _Slots) -> list[PairPass]:
    passes: list[PairPass] = [
        CriteriaPass(attempt=n, **_common(name, slots.criteria, each)) for n, name in enumerate(each.criteria)
    ]
    for kind, names, given in (
        (AssessPass, each.assessments, slots.assess),
        (DecidePass, each.deciders, slots.decide),
    ):
        passes += [kind(**_common(name, slot, each)) for name, slot in zip(names, given, strict=True)]
    return passes


def _common(name: str, slot: JudgeSlotConfig, each: Round) -> dict:
    return {"name": name, "engine": slot.model, "sampling": sampling_of(slot), "round": each}


def _scorer(judge: ScoreJudge | AspectsJudge, run_seed: int) -> ScorePass:
    if isinstance(judge, ScoreJudge):
        return ScorePass(name="score", engine=judge.model, sampling=_SCORE_SAMPLING, run_seed=run_seed)
    return ScorePass(
        name=f"rate.{judge.label}",
        engine=judge.model,
        sampling=sampling_of(judge),
        run_seed=run_seed,
        aspects=tuple(judge.aspects),
    )


def plan_input(recipe: Run, judge: Judge, *, num_candidates: int, base_dir: str | Path = ".") -> PlanInput:
    """The judge stage, for the planner."""
    line = judge_line(judge, run_seed=recipe.seed, num_candidates=num_candidates)
    return PlanInput(
        stage=STAGE,
        passes=line.passes,
        loads=lambda windows: _loads(recipe, line.passes, num_candidates, windows),
        recipe=recipe,
        settings=recipe.judge,
        base_dir=base_dir,
    )


def _loads(recipe: Run, passes: Sequence[Pass], num: int, windows: Mapping[str, int | None]) -> Mapping[str, PassLoad]:
    """All candidates differ, criteria are in form at the first attempt, and prompts are cut to the window."""
    prompt, candidate = recipe.plan.prompt_tokens, recipe.plan.completion_tokens
    loads: dict[str, PassLoad] = {}
    for p in passes:
        out = expected_completion(recipe, p)
        if isinstance(p, ScorePass):
            requests = num * max(1, len(p.aspects))
            size = prompt + candidate + (TEMPLATE_TOKENS if p.aspects else 0.0)
            out = out if p.aspects else 0.0
        else:
            assert isinstance(p, PairPass)
            pairs = _num_matches(p.round, num)
            requests, size = 2 * pairs, prompt + 2 * candidate + TEMPLATE_TOKENS
            if isinstance(p, CriteriaPass):
                requests, out = (pairs if p.attempt == 0 else 0), min(out, _CRITERIA_TOKENS)
            if isinstance(p, DecidePass):
                size += sum(loads[name].completion_tokens for name in p.round.assessments)
        if window := windows[p.engine]:
            size = min(size, max(1.0, window - p.sampling.max_tokens))
        loads[p.name] = PassLoad(num_requests=requests, prompt_tokens=size, completion_tokens=out)
    return loads


def _num_matches(each: Round, num: int) -> int:
    if not each.is_knockout:
        return num * (num - 1) // 2
    size, depth, earlier = num, 0, each.earlier
    while earlier is not None:
        size, depth, earlier = (size + 1) // 2, depth + 1, earlier.earlier
    return (size // 2) * (2 if depth else 1)


def prompt_versions() -> dict[str, str]:
    """The wording of every judging prompt, for the fingerprint of a stage: changed wording changes verdicts."""
    two, three = ["one", "other"], ["Accuracy", "Depth", "Clarity"]
    return {
        "prompts.version": JUDGE_VERSION,
        "prompts.criteria": str(criteria_messages("question", two, fence="code")),
        "prompts.criteria.repeated": str(criteria_messages("question", two, fence="code", is_repeated=True)),
        "prompts.assess": str(assess_messages("question", two, three, fence="code")),
        "prompts.assess.plain": str(assess_messages("question", two, [], fence="code")),
        "prompts.decide": str(decide_messages("question", two, three, [], fence="code")),
        "prompts.decide.plain": str(decide_messages("question", two, [], [], fence="code")),
        "prompts.decide.meta": str(decide_messages("question", two, three, ["text"], fence="code")),
        "prompts.decide.meta.plain": str(decide_messages("question", two, [], ["text"], fence="code")),
        "prompts.rate": str(rate_messages("question", "answer", "helpfulness", fence="code")),
    }
