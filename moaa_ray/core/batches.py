"""Which packs or pairs make up an optimizer step, and which worker computes which: pure functions of the seed.

Every source's units are shuffled pass after pass, and an epoch takes the next `weight` x units of them,
so no unit comes twice before all have come once. The epochs, each shuffled over all sources, are laid
end to end, and step s takes the next `batch` units. So no step is short; units left over after the last
whole step are not trained on (see num_unused).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from random import Random

from moaa_ray.core.seeds import seed_for
from moaa_ray.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """The units of one dataset, and how much of it an epoch takes."""

    num_units: int
    weight: float = 1.0
    epochs: int | None = None
    """Only in the first so many epochs; None: in all."""

    def stretch(self, epoch: int) -> range:
        """Places that an epoch takes in the endless sequence of this source's passes."""
        if self.epochs is not None and epoch >= self.epochs:
            return range(0)
        return range(round(epoch * self.weight * self.num_units), round((epoch + 1) * self.weight * self.num_units))


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of a whole training run. Units are packs (SFT) or pairs (DPO), numbered through all sources."""

    sources: tuple[Source, ...]
    batch: int
    epochs: int
    seed: int
    kind: str = "units"
    """What the units are called: packs or pairs."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            times = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
            raise ConfigError(
                f"{self._starts[-1]} {self.kind} in {times} do not fill one batch of {self.batch}; lower batch, or "
                "train on more data or epochs"
            )

    @cached_property
    def _starts(self) -> list[int]:
        """How many units come before each epoch, and in all."""
        sizes = [sum(len(source.stretch(epoch)) for source in self.sources) for epoch in range(self.epochs)]
        return [0, *accumulate(sizes)]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self._starts[-1] // self.batch

    @property
    def num_unused(self) -> int:
        """Units of the last epoch that no step takes."""
        return self._starts[-1] - self.num_steps * self.batch

    def units_of(self, step: int) -> list[int]:
        """The units of a step, in the order in which they are shuffled."""
        units = []
        for at in range(step * self.batch, (step + 1) * self.batch):
            epoch = bisect_right(self._starts, at) - 1
            units.append(_epoch_order(self.seed, epoch, self.sources)[at - self._starts[epoch]])
        return units

    def epoch_of(self, step: int) -> float:
        """Epochs done when a step is over."""
        done = (step + 1) * self.batch
        epoch = min(bisect_right(self._starts, done) - 1, self.epochs - 1)
        return epoch + (done - self._starts[epoch]) / max(1, self._starts[epoch + 1] - self._starts[epoch])

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch's last unit is in this step, or the run ends with it."""
        ended = bisect_right(self._starts, (step + 1) * self.batch) > bisect_right(self._starts, step * self.batch)
        return ended or step == self.num_steps - 1


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, sources: tuple[Source, ...]) -> list[int]:
    units: list[int] = []
    first = 0
    for i, source in enumerate(sources):
        for place in source.stretch(epoch):
            turn, at = divmod(place, source.num_units)
            units.append(first + _pass_order(seed, i, turn, source.num_units)[at])
        first += source.num_units
    Random(seed_for(seed, "order", epoch)).shuffle(units)
    return units


@lru_cache(maxsize=64)
def _pass_order(seed: int, source: int, turn: int, num_units: int) -> list[int]:
    order = list(range(num_units))
    Random(seed_for(seed, "pass", source, turn)).shuffle(order)
    return order


def check_divides(batch: int, num_workers: int, per_worker: int, *, field: str = "batch") -> None:
    """Raise ConfigError unless a batch is a whole number of microbatches on every worker."""
    if batch % (num_workers * per_worker):
        raise ConfigError(
            f"{field} = {batch} is not a multiple of workers x micro_batch = {num_workers} x {per_worker} = "
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
