"""What each step computes on this worker: units read by number, dealt, laid out, and read ahead of the step."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moaa_ray.core.batches import deal
from moaa_ray.data.store import Store
from moaa_ray.data.unit_store import UnitStore
from moaa_ray.data.units import Unit
from moaa_ray.training.job import Job
from moaa_ray.training.microbatch import Microbatch, lay_out
from moaa_ray.training.step import PreferenceSettings
from moaa_ray.training.strategies.base import World

_STEPS_AHEAD = 2


class Units:
    """The units of several stores, numbered through in their order."""

    def __init__(self, store: Store, folders: Sequence[str]):
        self._stores = [UnitStore(store, folder) for folder in folders]
        self._starts = np.cumsum([0, *(len(part) for part in self._stores)])
        self.num_tokens = np.concatenate([part.num_tokens for part in self._stores])
        self.num_targets = np.concatenate([part.num_targets for part in self._stores])
        self.first_targets = np.concatenate([part.first_targets for part in self._stores])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, numbers: Sequence[int]) -> list[Unit]:
        """The units of these numbers, in their order."""
        found: dict[int, Unit] = {}
        for i, part in enumerate(self._stores):
            start, stop = int(self._starts[i]), int(self._starts[i + 1])
            mine = [number for number in numbers if start <= number < stop]
            found |= dict(zip(mine, part.read([number - start for number in mine]), strict=True)) if mine else {}
        return [found[number] for number in numbers]


@dataclass(frozen=True, kw_only=True)
class StepData:
    """One step on one worker; the counts are global."""

    microbatches: list[Microbatch]
    ref_sums: list[Tensor]
    """Of preference training, per microbatch: the reference's log-probability of every document."""
    num_targets: int
    num_chosen_targets: int
    num_tokens: int
    ids: list[str]
    """Of this worker's rows, for messages."""


def lay_out_units(units: Sequence[Unit], preference: PreferenceSettings | None) -> Microbatch:
    """The documents of units end to end; with a preference they are pairs, whose prompt may be laid once."""
    documents = [document for unit in units for document in unit.documents]
    return lay_out(documents, share_prompts=preference is not None and preference.share_prompt)


class Feed:
    """The steps of a plan for one worker."""

    def __init__(self, units: Units, job: Job, world: World, *, ref_sums: np.ndarray | None):
        """ref_sums [units, 2]: log-probabilities of chosen and rejected under the reference; None: SFT."""
        self._units = units
        self._job = job
        self._plan = job.plan
        self._world = world
        self._ref_sums = ref_sums

    def steps(self, first: int) -> Iterator[tuple[int, StepData]]:
        """(step, its data) from `first` to the end, prepared by a thread of its own ahead of time."""
        with ThreadPoolExecutor(1, thread_name_prefix="moaa-feed") as thread:
            coming: dict[int, Future[StepData]] = {}
            for step in range(first, self._plan.num_steps):
                for ahead in range(step, min(step + 1 + _STEPS_AHEAD, self._plan.num_steps)):
                    if ahead not in coming:
                        coming[ahead] = thread.submit(self._prepare, ahead)
                yield step, coming.pop(step).result()

    def _prepare(self, step: int) -> StepData:
        numbers = self._plan.units_of(step)
        lengths = self._units.num_tokens[numbers]
        hands = deal(numbers, lengths.tolist(), self._world.size, self._job.micro_batch)[self._world.rank]
        units = [self._units.read(hand) for hand in hands]
        microbatches = [lay_out_units(hand, self._job.preference) for hand in units]
        ref_sums = []
        if self._ref_sums is not None:
            ref_sums = [torch.from_numpy(self._ref_sums[hand].reshape(-1)).to(self._world.device) for hand in hands]
        return StepData(
            microbatches=[batch.to(self._world.device) for batch in microbatches],
            ref_sums=ref_sums,
            num_targets=int(self._units.num_targets[numbers].sum()),
            num_chosen_targets=int(self._units.first_targets[numbers].sum()),
            num_tokens=int(lengths.sum()),
            ids=[row_id for hand in units for unit in hand for row_id in unit.ids],
        )
