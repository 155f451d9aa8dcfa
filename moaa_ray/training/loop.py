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
from moaa_ray.data.documents import DocumentTokenizer
from moaa_ray.data.store import Store, open_store
from moaa_ray.data.student_files import student_folder
from moaa_ray.errors import StageError
from moaa_ray.training.checkpoint import Checkpoints
from moaa_ray.training.export import export, verify_export
from moaa_ray.training.feed import Feed, StepData, Units
from moaa_ray.training.job import Job
from moaa_ray.training.lora import adapters_off
from moaa_ray.training.losses import NEEDS_NO_REFERENCE
from moaa_ray.training.memory import is_lack_of_memory, out_of_memory
from moaa_ray.training.meter import Meter
from moaa_ray.training.metrics import MetricsLog, validation_score
from moaa_ray.training.preparing import student_tokenizer
from moaa_ray.training.schedule import learning_rate
from moaa_ray.training.scoring import ref_folder, ref_sums, validate
from moaa_ray.training.state import State, after_step, is_save_due, is_validation_due, judged, pinned_steps, state_of
from moaa_ray.training.step import StepResult, check_finite, preference_step, sft_step
from moaa_ray.training.strategies.base import Strategy, World, from_first
from moaa_ray.training.strategies.build import build_strategy

FLOAT32_LIMIT, BF16_LIMIT = 1e-3, 0.15
"""Nats by which an exported model may differ on a token, in the mean. In bfloat16 models of two layers differ by 0.001
to 0.04, and by 0.12 to 1.2 where one matrix is zero or shifted (by 0.02 for the queries of gemma2, whose scores are
capped). Single tokens say less: rounding alone moves improbable ones by a nat in large models."""


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
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise out_of_memory(job, f"out of memory in a worker on {world.device} ({said})") from error


def _start(job: Job, world: World) -> tuple[_Parts, State]:
    """Load student and data, compute what the reference says, and go to the newest checkpoint."""
    store = open_store(job.run_uri)
    torch.manual_seed(seed_for(job.seed, "init"))
    folder = student_folder(job.student, job.revision)
    strategy = build_strategy(job.strategy, folder, world, job.numerics, cpu_offload=job.cpu_offload, lora=job.lora)
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
    return parts, state_of(found.extra)


def _ref(
    job: Job, world: World, store: Store, strategy: Strategy, units: Units, folders: tuple[str, ...]
) -> np.ndarray | None:
    """The reference's log-probabilities [pairs, 2]: the untrained student's; zeros for losses without."""
    if job.preference is None:
        return None
    if job.preference.kind in NEEDS_NO_REFERENCE:
        return np.zeros((len(units), 2))
    precision = "bf16" if job.numerics.is_bf16 else "float32"
    precision += " frozen" * (job.lora is not None)  # whose bfloat16 weights round where float32 ones do not
    folder = ref_folder(job.stage, f"{job.student_digest} {precision}", folders, job.preference.ld_alpha)
    with adapters_off(strategy.model):
        return ref_sums(strategy, units, world, store, folder, micro_batch=job.micro_batch, preference=job.preference)


def _run_steps(parts: _Parts, state: State) -> State:
    """All steps that are left."""
    job, plan = parts.job, parts.job.plan
    log = MetricsLog(parts.store, job.metrics_path, next_step=state.next_step) if parts.world.rank == 0 else None
    save_s = 0.0
    meter = Meter(parts.strategy.student, parts.world, plan)
    feed = Feed(parts.units, job, parts.world, ref_sums=parts.ref)
    for step, data in feed.steps(state.next_step):
        torch.manual_seed(seed_for(job.seed, "dropout", step, parts.world.rank))
        rate = rate_at(job, step)
        result = take_step(parts, state, data, rate=rate)
        check_finite(step, result, data.ids)
        line = meter.line(step, data, result, rate=rate)
        state = after_step(state, step, data, result, num_steps=plan.num_steps)
        if parts.held_out is not None and is_validation_due(job, step):
            line |= _validate(parts, state)
            state = judged(state, validation_score(line, job.cadence.best_by), job.cadence.early_stopping)
        if log is not None:
            log.add(line | {"save_s": save_s})
        save_s = 0.0
        if is_save_due(job, state) or parts.world.is_leaving():
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


def _validate(parts: _Parts, state: State) -> dict[str, float]:
    assert parts.held_out is not None
    preference = parts.job.preference
    if preference is not None:
        preference = replace(preference, loss=replace(preference.loss, kl_estimate=state.kl_estimate))
    return validate(
        parts.strategy,
        parts.held_out,
        parts.world,
        micro_batch=parts.job.micro_batch,
        preference=preference,
        ref=parts.held_out_ref,
    )


def _save(parts: _Parts, state: State) -> float:
    """Save a checkpoint; seconds that training stood still for it."""
    cadence = parts.job.cadence
    _check_owner(parts)
    return parts.checkpoints.save(
        state.next_step,
        parts.strategy,
        asdict(state),
        is_async=cadence.is_async and not state.is_over,
        pinned=pinned_steps(parts.job, state),
    )


def _finish(parts: _Parts, state: State) -> None:
    """Export the state that the job asks for."""
    job, folder = parts.job, student_folder(parts.job.student, parts.job.revision)
    parts.checkpoints.wait()
    _check_owner(parts)
    if job.cadence.export == "best" and 0 <= state.best_step != state.next_step:
        parts.checkpoints.load(parts.checkpoints.at(state.best_step), parts.strategy)
    tokenizer = DocumentTokenizer(student_tokenizer(folder), chat_template=job.chat_template or None)
    export(
        parts.strategy,
        f"{job.run_uri}/{job.model_path}",
        source_folder=folder,
        dtype=torch.bfloat16 if job.numerics.is_bf16 else torch.float32,
        chat_template=tokenizer.chat_template,
        end_token=tokenizer.end_token,
        card=job.card,
        lora=job.lora,
    )
    _verify(parts)


def _verify(parts: _Parts) -> None:
    """Load the exported model, and compare what it says of some tokens with what the student says."""
    folder = f"{parts.job.run_uri}/{parts.job.model_path}"
    document = parts.units.read([0])[0].documents[0]
    is_bf16 = parts.job.numerics.is_bf16
    difference = verify_export(parts.strategy, folder, document.tokens[:64].tolist())
    limit = BF16_LIMIT if is_bf16 else FLOAT32_LIMIT
    if not difference <= limit:
        raise StageError(
            f"{folder}: the exported model's log-probabilities differ by {difference:.3g} nats from the student's, "
            f"more than {limit:g}; the checkpoint is whole: run the command again, and report this if it comes back"
        )


def _check_owner(parts: _Parts) -> None:
    """Raise FencedError, in all workers, when another driver owns the run now."""
    from_first(lambda: commit.check_owner(parts.store, commit.Epoch(number=parts.job.epoch, owner={})))
