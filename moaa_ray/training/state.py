"""What a training run knows beside tensors, and what follows from it: whether to validate, to save, to stop."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from moaa_ray.errors import StageError
from moaa_ray.training.feed import StepData
from moaa_ray.training.job import Job
from moaa_ray.training.step import StepResult


@dataclass(frozen=True, kw_only=True)
class State:
    """What a checkpoint carries beside tensors."""

    next_step: int = 0
    num_tokens: int = 0
    kl_estimate: tuple[float, float] = (0.0, 0.0)
    best_score: float | None = None
    """Of validations, larger is better (metrics.validation_score)."""
    best_step: int = -1
    num_worse: int = 0
    """Validations since the best one."""
    is_over: bool = False
    """All steps are done, or early stopping has ended them."""


def state_of(extra: Mapping[str, Any]) -> State:
    """The state in a checkpoint. Raises StageError for one that another version of this package wrote."""
    if extra.keys() != {one.name for one in fields(State)}:
        raise StageError(
            "the newest checkpoint was written by another version of moaa_ray; go on with that version, or delete "
            "the stage's checkpoints to train anew"
        )
    return State(**{**extra, "kl_estimate": tuple(extra["kl_estimate"])})


def after_step(state: State, step: int, data: StepData, result: StepResult, *, num_steps: int) -> State:
    """The state when a step is over."""
    ratios = (result.metrics.get("chosen_ratio", 0.0), result.metrics.get("rejected_ratio", 0.0))
    return replace(
        state,
        next_step=step + 1,
        num_tokens=state.num_tokens + data.num_tokens,
        kl_estimate=(max(0.0, ratios[0]), max(0.0, ratios[1])),
        is_over=step + 1 == num_steps,
    )


def is_validation_due(job: Job, step: int) -> bool:
    """Whether to validate after this step."""
    every = job.cadence.validate_every
    return job.plan.ends_epoch(step) or (every is not None and (step + 1) % every == 0)


def is_save_due(job: Job, state: State) -> bool:
    """Whether to save a checkpoint now."""
    step = state.next_step - 1
    is_best = state.best_step == state.next_step
    return state.is_over or is_best or job.plan.ends_epoch(step) or (step + 1) % job.cadence.checkpoint_every == 0


def judged(state: State, score: float, early_stopping: int | None) -> State:
    """The state after a validation with this score, of which larger is better."""
    if state.best_score is None or score > state.best_score:
        return replace(state, best_score=score, best_step=state.next_step, num_worse=0)
    worse = state.num_worse + 1
    return replace(
        state, num_worse=worse, is_over=state.is_over or (early_stopping is not None and worse >= early_stopping)
    )


def pinned_steps(job: Job, state: State) -> frozenset[int]:
    """Checkpoints that stay whatever comes: every epoch's end, and the best one, which may be exported later."""
    ends = {step + 1 for step in range(state.next_step) if job.plan.ends_epoch(step)}
    return frozenset(ends | {state.best_step})
