"""Which packs or pairs make up an optimizer step, and which worker computes which: pure functions of the seed.

The epochs' orders, each a shuffle of all units, are laid end to end, and step s takes the next `batch`
of them. So every unit comes once an epoch, and no step is short; units left over after the last whole
step are not trained on (see num_unused).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from moaa_ray.core.seeds import seed_for
from moaa_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of a whole training run. Units are packs (SFT) or pairs (DPO)."""

    num_units: int
    batch: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(
                f"{self.num_units} units x {self.epochs} epochs do not fill one batch of {self.batch}; "
                "lower batch, or train on more data or epochs"
            )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_units * self.epochs // self.batch

    @property
    def num_unused(self) -> int:
        """Units of the last epoch that no step takes."""
        return self.num_units * self.epochs - self.num_steps * self.batch

    def units_of(self, step: int) -> list[int]:
        """The units of a step, in the order in which they are shuffled."""
        units = []
        for at in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(at, self.num_units)
            units.append(_order(self.seed, epoch, self.num_units)[place])
        return units

    def epoch_of(self, step: int) -> float:
        """Epochs done when a step is over."""
        return (step + 1) * self.batch / self.num_units

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch's last unit is in this step."""
        return (step + 1) * self.batch // self.num_units > step * self.batch // self.num_units


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_units: int) -> list[int]:
    order = list(range(num_units))
    Random(seed_for(seed, "order", epoch)).shuffle(order)
    return order


def check_divides(batch: int, num_workers: int, per_worker: int) -> None:
    """Raise ConfigError unless a batch is a whole number of microbatches on every worker."""
    if batch % (num_workers * per_worker):
        raise ConfigError(
            f"batch = {batch} is not a multiple of workers x micro_batch = {num_workers} x {per_worker} = "
            f"{num_workers * per_worker}; change one of the three"
        )


def deal(units: Sequence[int], lengths: Sequence[int], num_workers: int, per_worker: int) -> list[list[list[int]]]:
    """Microbatches [worker][accumulation][unit] of one step, so that workers that wait for each other do equal work.

    Units are sorted by length, so that a round (the microbatches computed side by side) holds units of like
    length, and dealt to its workers there and back. lengths[i] is the length of units[i].
    """
    check_divides(len(units), num_workers, per_worker)
    longest_first = sorted(range(len(units)), key=lambda i: (-lengths[i], i))
    per_round = num_workers * per_worker
    dealt: list[list[list[int]]] = [[] for _ in range(num_workers)]
    for start in range(0, len(units), per_round):
        hands: list[list[int]] = [[] for _ in range(num_workers)]
        for turn in range(per_worker):
            part = longest_first[start + turn * num_workers : start + (turn + 1) * num_workers]
            for worker, i in enumerate(part if turn % 2 == 0 else reversed(part)):
                hands[worker].append(units[i])
        for worker, hand in enumerate(hands):
            dealt[worker].append(hand)
    return dealt
