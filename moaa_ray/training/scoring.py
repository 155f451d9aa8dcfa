"""Log-probabilities of stored units under the model as it is: the reference pass of DPO, and validation."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from math import isfinite

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from moaa_ray.data.store import Store
from moaa_ray.errors import StageError
from moaa_ray.training.feed import Units, lay_out_units
from moaa_ray.training.losses import LOSSES, Pairs, pair_metrics
from moaa_ray.training.step import PreferenceSettings, document_logprobs
from moaa_ray.training.strategies.base import Strategy, World, all_sum

_CHUNK_UNITS = 2048
"""Units of the reference pass that are stored together: what a kill loses."""


def score(
    strategy: Strategy,
    units: Units,
    numbers: Sequence[int],
    world: World,
    *,
    micro_batch: int,
    preference: PreferenceSettings | None,
) -> np.ndarray:
    """Log-probabilities of the targets of these units, float64, the same on every worker.

    Of pairs [len(numbers), 2], chosen and rejected; of packs (preference None) [len(numbers), 1], summed over their
    documents. Every worker makes the same number of forward calls, as sharded weights need.
    """
    sums = torch.zeros((len(numbers), 1 if preference is None else 2), dtype=torch.float64)
    strategy.model.eval()
    with torch.no_grad():
        for start in range(0, len(numbers), world.size * micro_batch):
            first = start + world.rank * micro_batch
            mine = range(first, min(first + micro_batch, len(numbers)))
            hand = units.read([numbers[i] for i in mine] or [numbers[0]])
            batch = lay_out_units(hand, preference).to(world.device)
            with strategy.microbatch(is_last=False):
                logprobs = strategy.model(batch)
            documents = document_logprobs(logprobs, batch, preference and preference.ld_alpha).cpu()
            parts = documents.split([len(unit.documents) for unit in hand])
            for i, part in zip(mine, parts, strict=False):
                sums[i] = part.sum() if preference is None else part
    strategy.model.train()
    return all_sum(sums).numpy()


def ref_sums(
    strategy: Strategy,
    units: Units,
    world: World,
    store: Store,
    folder: str,
    *,
    micro_batch: int,
    preference: PreferenceSettings,
) -> np.ndarray:
    """Log-probabilities of all pairs under the model as it is [pairs, 2], kept in `folder` chunk by chunk.

    Chunks that are there are read, not computed again: the folder's name is a hash of model and data.
    """
    chunks = []
    for start in range(0, len(units), _CHUNK_UNITS):
        numbers = range(start, min(start + _CHUNK_UNITS, len(units)))
        path = f"{folder}/{start:09d}.parquet"
        if _all_agree(store.exists(path)):
            table = pq.read_table(BytesIO(store.read(path)))
            chunks.append(np.stack([table["chosen"].to_numpy(), table["rejected"].to_numpy()], axis=1))
            continue
        sums = score(strategy, units, numbers, world, micro_batch=micro_batch, preference=preference)
        chunks.append(sums)
        if world.rank == 0:
            file = BytesIO()
            pq.write_table(pa.table({"chosen": sums[:, 0], "rejected": sums[:, 1]}), file)
            store.put(path, file.getvalue())
    return np.concatenate(chunks)


def _all_agree(claim: bool) -> bool:
    """Whether all workers see it so: one that lags behind must not compute while the others read."""
    votes = all_sum(torch.tensor([float(claim), 1.0]))
    return bool(votes[0] == votes[1])


def ref_folder(stage: str, student_digest: str, units: Sequence[str], ld_alpha: float | None) -> str:
    """Where the reference's log-probabilities of these units under this model are kept in the run."""
    key = sha256("\n".join([student_digest, *units, repr(ld_alpha)]).encode()).hexdigest()[:16]
    return f"work/{stage}/ref/{key}"


def validate(
    strategy: Strategy,
    units: Units,
    world: World,
    *,
    micro_batch: int,
    preference: PreferenceSettings | None,
    ref: np.ndarray | None,
) -> dict[str, float]:
    """Means over all validation units: of SFT the loss per token; of pairs the preference loss,
    its SFT term included, accuracy, margin, ...

    Keys begin with "validation_".
    """
    numbers = range(len(units))
    if preference is None or ref is None:
        sums = score(strategy, units, numbers, world, micro_batch=micro_batch, preference=None)
        return {"validation_loss": _finite(float(-sums.sum() / max(1, units.num_targets.sum())))}
    sums = score(strategy, units, numbers, world, micro_batch=micro_batch, preference=preference)
    policy, reference = torch.from_numpy(sums), torch.from_numpy(ref)
    chosen_tokens = torch.from_numpy(units.first_targets.astype(np.float64))
    pairs = Pairs(
        chosen=policy[:, 0],
        rejected=policy[:, 1],
        ref_chosen=reference[:, 0],
        ref_rejected=reference[:, 1],
        chosen_tokens=chosen_tokens,
        rejected_tokens=torch.from_numpy(units.num_targets.astype(np.float64)) - chosen_tokens,
    )
    loss = float(LOSSES[preference.kind](pairs, preference.loss).mean())
    if preference.sft_weight:
        if preference.ld_alpha is not None:  # the SFT term weighs all tokens alike
            whole = replace(preference, ld_alpha=None)
            sums = score(strategy, units, numbers, world, micro_batch=micro_batch, preference=whole)
        loss -= preference.sft_weight * float(sums[:, 0].sum() / max(1.0, float(chosen_tokens.sum())))
    means = {
        name: float(value) / len(units) for name, value in pair_metrics(pairs, preference.kind, preference.loss).items()
    }
    return {"validation_loss": _finite(loss), **{f"validation_{name}": value for name, value in means.items()}}


def _finite(loss: float) -> float:
    if not isfinite(loss):
        raise StageError(
            f"validation loss {loss}: the model is ruined; lower the learning rate or lengthen the warm-up, and look "
            "at the validation rows; the last checkpoint is from before this step"
        )
    return loss
