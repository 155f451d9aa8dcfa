"""One optimizer step: forward and backward of this worker's microbatches, the update, and what is reported.

Every sum over the loss is divided by a global count, known to all workers before the step begins (the
store knows each unit's counts), never by a microbatch's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from moaa_ray.errors import StageError
from moaa_ray.training.losses import (
    LOSSES,
    LossSettings,
    Pairs,
    document_sums,
    length_desensitised,
    pair_metrics,
)
from moaa_ray.training.microbatch import Microbatch
from moaa_ray.training.strategies.base import Strategy, all_gathered, all_sum


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, equal on all workers. Metrics are means over the step's pairs, or empty."""

    loss: float
    grad_norm: float
    own_loss: float
    """This worker's share of the loss."""
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """How pairs become a loss."""

    kind: str = "sigmoid"
    loss: LossSettings = field(default_factory=LossSettings)
    sft_weight: float = 0.0
    """Weight of the chosen completions' mean negative log-probability per token, added to the loss."""
    ld_alpha: float | None = None
    """Weight of tokens beyond the shorter completion's length; None: all weigh 1 (see length_desensitised)."""
    share_prompt: bool = True
    """A pair's prompt is computed once for both completions; the log-probabilities are the same."""


def sft_step(strategy: Strategy, microbatches: Sequence[Microbatch], *, num_targets: int, rate: float) -> StepResult:
    """A step on the mean negative log-probability over num_targets, the global number of targets."""
    losses = []
    for i, batch in enumerate(microbatches):
        with strategy.microbatch(is_last=i == len(microbatches) - 1):
            weights = torch.full((batch.num_targets,), 1 / num_targets, device=batch.targets.device)
            loss = strategy.model(batch, weights)
            losses.append(loss.detach())
            strategy.backward(loss)
    total = _sum(losses)
    own_loss = float(total)
    loss = float(all_sum(total))
    return StepResult(loss=loss, grad_norm=strategy.update(rate), own_loss=own_loss, metrics={})


def document_logprobs(logprobs: Tensor, batch: Microbatch, ld_alpha: float | None) -> Tensor:
    """Summed log-probabilities of the documents' targets [documents], float64."""
    if ld_alpha is not None:
        logprobs = length_desensitised(logprobs, batch.document_of, batch.counts, ld_alpha)
    return document_sums(logprobs, batch.counts)


def preference_step(
    strategy: Strategy,
    microbatches: Sequence[Microbatch],
    references: Sequence[Tensor],
    settings: PreferenceSettings,
    *,
    num_pairs: int,
    num_chosen_targets: int,
    rate: float,
) -> StepResult:
    """A step on the mean preference loss over num_pairs, the global number of pairs.

    A microbatch's documents are chosen, rejected, chosen, rejected, ...; references are their summed
    log-probabilities under the reference model, in the same order.
    """
    names: list[str] = []
    parts = []
    for i, (batch, reference) in enumerate(zip(microbatches, references, strict=True)):
        with strategy.microbatch(is_last=i == len(microbatches) - 1):
            logprobs = strategy.model(batch)
            pairs = pairs_of(logprobs, batch, reference, settings.ld_alpha)
            loss = LOSSES[settings.kind](pairs, settings.loss).sum() / num_pairs
            chosen = document_sums(logprobs, batch.counts)[::2]
            loss = loss - settings.sft_weight * chosen.sum() / num_chosen_targets
            strategy.backward(loss)
        measured = pair_metrics(pairs, settings.kind, settings.loss)
        names = list(measured)
        parts.append(torch.stack([loss.detach(), *(value.detach() for value in measured.values())]))
    sums = _sum(parts)
    own_loss = float(sums[0])
    over_all = all_sum(sums)
    metrics = {name: float(value) / num_pairs for name, value in zip(names, over_all[1:], strict=True)}
    return StepResult(loss=float(over_all[0]), grad_norm=strategy.update(rate), own_loss=own_loss, metrics=metrics)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """The float64 sum, on the CPU. Called once a step: fetching a number from a GPU waits for all that it has to do."""
    return torch.stack([part.double() for part in parts]).sum(0).cpu()


def pairs_of(logprobs: Tensor, batch: Microbatch, reference: Tensor, ld_alpha: float | None) -> Pairs:
    """The pairs of a microbatch from the policy's target log-probabilities [N] and the reference's sums [documents]."""
    policy = document_logprobs(logprobs, batch, ld_alpha).view(-1, 2)
    reference = reference.to(policy).view(-1, 2)
    tokens = batch.counts.double().view(-1, 2)
    return Pairs(
        chosen=policy[:, 0],
        rejected=policy[:, 1],
        ref_chosen=reference[:, 0],
        ref_rejected=reference[:, 1],
        chosen_tokens=tokens[:, 0],
        rejected_tokens=tokens[:, 1],
    )


def check_finite(step: int, result: StepResult, own_ids: Sequence[str]) -> None:
    """Raise StageError at a loss or norm that is not finite, before it is saved; all workers raise it together.

    own_ids are this worker's rows; those of workers whose share of the loss is not finite are named, else all.
    """
    if not (isfinite(result.loss) and isfinite(result.grad_norm)):
        shares = all_gathered((not isfinite(result.own_loss), list(own_ids)))
        guilty = [row_id for is_guilty, ids in shares if is_guilty for row_id in ids]
        ids = guilty or [row_id for _, ids in shares for row_id in ids]
        raise StageError(
            f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}; the rows were "
            f"{', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''}. Lower the learning rate, lengthen the "
            "warm-up, or look at these rows; the last checkpoint is from before this step"
        )
