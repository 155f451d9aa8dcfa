"""From a recipe's student to the pass of the sample stage. The planner and the stage both start here."""

from functools import partial
from pathlib import Path

from moaa_ray.core.candidates import CANDIDATES, CandidatePass, close_candidates, forget_failures
from moaa_ray.core.passes import StageWork
from moaa_ray.lines.mixture import expected_completion, sampling_of
from moaa_ray.planning.planner import PlanInput
from moaa_ray.planning.pool_estimate import PassLoad
from moaa_ray.recipe import Run

STAGE = "sample"


def sample_work(recipe: Run) -> StageWork:
    """One pass over the student."""
    config = recipe.sample
    candidates = CandidatePass(
        engine=config.model,
        sampling=sampling_of(config),
        run_seed=recipe.seed,
        num_candidates=config.num_candidates,
    )
    close = partial(close_candidates, min_candidates=config.min_candidates)
    return StageWork(stage=STAGE, passes=(candidates,), close=close, reopen=forget_failures)


def plan_input(recipe: Run, *, base_dir: str | Path = ".") -> PlanInput:
    """The sample stage, for the planner; sample.model is set."""
    work = sample_work(recipe)
    load = PassLoad(
        num_requests=recipe.sample.num_candidates,
        prompt_tokens=recipe.plan.prompt_tokens,
        completion_tokens=expected_completion(recipe, work.passes[0]),
    )
    return PlanInput(
        stage=STAGE,
        passes=work.passes,
        loads=lambda windows: {CANDIDATES: load},
        recipe=recipe,
        settings=recipe.sample,
        base_dir=base_dir,
    )
