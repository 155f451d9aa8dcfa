"""The training loop: the same on one CPU and on many nodes, for SFT and for preferences.

    load the student, or the newest checkpoint -> for every step: forward, backward, update -> now and then validate
    and save -> export

It runs in every worker and knows nothing of Ray: whoever starts the workers joins them with torch.distributed and gives
each its World. Steps are pure functions of (seed, step), so a run that was cut off goes on at its exact batch,
also with another number of workers.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from moaa_ray.core.seeds import seed_for
from moaa_ray.data import commit
from moaa_ray.data.store import Store, open_store
from moaa_ray.data.student_files import student_folder
from moaa_ray.errors import StageError
from moaa_ray.training.checkpoint import Checkpoints
from moaa_ray.training.export import export
from moaa_ray.training.feed import Feed, StepData, Units
from moaa_ray.training.job import Job
from moaa_ray.training.losses import NEEDS_NO_REFERENCE
from moaa_ray.training.meter import Meter
from moaa_ray.training.metrics import MetricsLog
from moaa_ray.training.schedule import learning_rate
from moaa_ray.training.scoring import ref_folder, ref_sums, validate
from moaa_ray.training.step import StepResult, check_finite, preference_step, sft_step
from moaa_ray.training.strategies.base import Strategy, World
from moaa_ray.training.strategies.build import build_strategy


@dataclass(frozen=True, kw_only=True)
class State:
    """What a checkpoint carries beside tensors."""

    next_step: int = 0
    num_tokens: int = 0
    kl_estimate: tuple[float, float] = (0.0, 0.0)
    best_loss: float | None = None
    best_step: int = -1
    num_worse: int = 0
    """Validations since the best one."""
    is_over: bool = False
    """All steps are done, or early stopping has ended them."""


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What the steps share; nothing in it changes but the model and the optimizer."""

    job: Job
    world: World
    store: Store
    strategy: Strategy
    units: Units
    held_out: Units | None
    ref: np.ndarray | None
    held_out_ref: np.ndarray | None
    checkpoints: Checkpoints


def train(job: Job, world: World) -> State:
    """Run the stage to its end and export the model; returns what the last checkpoint holds.

    Raises StageError at a loss that is not finite, at a lack of memory and where something cannot be written, with the
    way out; FencedError when another driver has taken over the run.
    """
    try:
        parts, state = _start(job, world)
        if not state.is_over:
            state = _run_steps(parts, state)
        _finish(parts, state)
        return state
    except torch.OutOfMemoryError as error:
        raise StageError(
            f"{job.stage}: out of memory on {world.device} ({' '.join(str(error).split())[:200]}); lower "
            f"{job.stage}.micro_batch (now {job.micro_batch}) or max_tokens, set activation_checkpointing, or give "
            "more workers to strategy fsdp2; the same command goes on from the last checkpoint"
        ) from error


def _start(job: Job, world: World) -> tuple[_Parts, State]:
    """Load student and data, compute what the reference says, and go to the newest checkpoint."""
    store = open_store(job.run_uri)
    torch.manual_seed(seed_for(job.seed, "init"))
    strategy = build_strategy(
        job.strategy, student_folder(job.student, job.revision), world, job.numerics, cpu_offload=job.cpu_offload
    )
    units = Units(store, job.units)
    held_out = Units(store, job.validation) if job.validation else None
    held_out = held_out if held_out is not None and len(held_out) else None
    parts = _Parts(
        job=job,
        world=world,
        store=store,
        strategy=strategy,
        units=units,
        held_out=held_out,
        ref=_ref(job, world, store, strategy, units, job.units),
        held_out_ref=None if held_out is None else _ref(job, world, store, strategy, held_out, job.validation),
        checkpoints=Checkpoints(
            f"{job.run_uri}/checkpoints/{job.stage}",
            keep=job.cadence.keep_checkpoints,
            fingerprint=dict(job.fingerprint),
        ),
    )
    found = parts.checkpoints.newest()
    if found is None:
        return parts, State()
    parts.checkpoints.load(found, strategy)
    return parts, State(**{**found.extra, "kl_estimate": tuple(found.extra["kl_estimate"])})


def _ref(
    job: Job, world: World, store: Store, strategy: Strategy, units: Units, folders: tuple[str, ...]
) -> np.ndarray | None:
    """The reference's log-probabilities [pairs, 2]: the student's before the first step; zeros for losses without."""
    if job.preference is None:
        return None
    if job.preference.kind in NEEDS_NO_REFERENCE:
        return np.zeros((len(units), 2))
    alpha = job.preference.ld_alpha
    folder = ref_folder(job.stage, job.student_digest, folders, alpha)
    return ref_sums(strategy, units, world, store, folder, micro_batch=job.micro_batch, ld_alpha=alpha)


def _run_steps(parts: _Parts, state: State) -> State:
    """All steps that are left."""
    job, plan = parts.job, parts.job.plan
    log = MetricsLog(parts.store, job.metrics_path, next_step=state.next_step) if parts.world.rank == 0 else None
    save_s = 0.0
    meter = Meter(parts.strategy.student, parts.world, plan)
    feed = Feed(parts.units, plan, parts.world, micro_batch=job.micro_batch, ref_sums=parts.ref)
    for step, data in feed.steps(state.next_step):
        torch.manual_seed(seed_for(job.seed, "dropout", step, parts.world.rank))
        rate = rate_at(job, step)
        result = take_step(parts, state, data, rate=rate)
        check_finite(step, result, data.ids)
        line = meter.line(step, data, result, rate=rate)
        state = _after_step(state, step, data, result, num_steps=plan.num_steps)
        if parts.held_out is not None and _is_validation_due(job, step):
            line |= _validate(parts)
            state = _judged(state, line["validation_loss"], job.cadence.early_stopping)
        if log is not None:
            log.add(line | {"save_s": save_s})
        save_s = 0.0
        if _is_save_due(job, state):
            if log is not None:
                log.flush()  # a checkpoint vouches for every line before it
            save_s = _save(parts, state)
        meter.restart()
        if state.is_over:
            break
    parts.checkpoints.wait()
    return state


def rate_at(job: Job, step: int) -> float:
    """The learning rate of a step."""
    rates = job.rates
    return learning_rate(step, job.plan.num_steps, peak=rates.peak, kind=rates.kind, warmup_ratio=rates.warmup_ratio)


def take_step(parts: _Parts, state: State, data: StepData, *, rate: float) -> StepResult:
    """One optimizer step of the job."""
    job = parts.job
    if job.preference is None:
        return sft_step(parts.strategy, data.microbatches, num_targets=data.num_targets, rate=rate)
    loss = replace(job.preference.loss, kl_estimate=state.kl_estimate)
    return preference_step(
        parts.strategy,
        data.microbatches,
        data.ref_sums,
        replace(job.preference, loss=loss),
        num_pairs=job.plan.batch,
        num_chosen_targets=data.num_chosen_targets,
        rate=rate,
    )


def _after_step(state: State, step: int, data: StepData, result: StepResult, *, num_steps: int) -> State:
    ratios = (result.metrics.get("chosen_ratio", 0.0), result.metrics.get("rejected_ratio", 0.0))
    return replace(
        state,
        next_step=step + 1,
        num_tokens=state.num_tokens + data.num_tokens,
        kl_estimate=(max(0.0, ratios[0]), max(0.0, ratios[1])),
        is_over=step + 1 == num_steps,
    )


def _is_validation_due(job: Job, step: int) -> bool:
    every = job.cadence.validate_every
    return job.plan.ends_epoch(step) or (every is not None and (step + 1) % every == 0)


def _is_save_due(job: Job, state: State) -> bool:
    step = state.next_step - 1
    is_best = job.cadence.export == "best" and state.best_step == state.next_step
    return state.is_over or is_best or job.plan.ends_epoch(step) or (step + 1) % job.cadence.checkpoint_every == 0


def _validate(parts: _Parts) -> dict[str, float]:
    assert parts.held_out is not None
    return validate(
        parts.strategy,
        parts.held_out,
        parts.world,
        micro_batch=parts.job.micro_batch,
        preference=parts.job.preference,
        ref=parts.held_out_ref,
    )


def _judged(state: State, loss: float, early_stopping: int | None) -> State:
    if state.best_loss is None or loss < state.best_loss:
        return replace(state, best_loss=loss, best_step=state.next_step, num_worse=0)
    worse = state.num_worse + 1
    return replace(
        state, num_worse=worse, is_over=state.is_over or (early_stopping is not None and worse >= early_stopping)
    )


def _save(parts: _Parts, state: State) -> float:
    """Save a checkpoint; seconds that training stood still for it."""
    cadence = parts.job.cadence
    if parts.world.rank == 0:
        commit.check_owner(parts.store, commit.Epoch(number=parts.job.epoch, owner={}))
    pinned = {state.best_step} if cadence.export == "best" else set()
    return parts.checkpoints.save(
        state.next_step, parts.strategy, asdict(state), is_async=cadence.is_async and not state.is_over, pinned=pinned
    )


def _finish(parts: _Parts, state: State) -> None:
    """Export the state that the job asks for."""
    job, folder = parts.job, student_folder(parts.job.student, parts.job.revision)
    parts.checkpoints.wait()
    if job.cadence.export == "best" and 0 <= state.best_step != state.next_step:
        parts.checkpoints.load(parts.checkpoints.at(state.best_step), parts.strategy)
    export(
        parts.strategy,
        f"{job.run_uri}/{job.model_path}",
        source_folder=folder,
        dtype=torch.bfloat16 if job.numerics.is_bf16 else torch.float32,
        chat_template=job.chat_template or _own_template(folder),
        card=job.card,
    )


def _own_template(folder: str) -> str:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).chat_template
