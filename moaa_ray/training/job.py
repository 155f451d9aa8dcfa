"""One training stage in plain values: what the loop needs to know, and nothing of recipes or Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from moaa_ray.core.batches import BatchPlan
from moaa_ray.training.lora import LoraSettings
from moaa_ray.training.step import PreferenceSettings
from moaa_ray.training.strategies.base import Numerics


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The learning rate of every step (schedule.py)."""

    peak: float
    kind: str = "cosine"
    warmup_ratio: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """When what is done beside training steps."""

    validate_every: int | None = None
    """Steps; the end of every epoch is one in any case."""
    checkpoint_every: int
    keep_checkpoints: int = 2
    is_async: bool = True
    early_stopping: int | None = None
    """Validations without a better one after which training stops."""
    export: Literal["last", "best"] = "last"
    best_by: Literal["loss", "accuracy", "margin"] = "loss"
    """Of validation: what export and early stopping go by."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training stage."""

    stage: Literal["sft", "dpo"]
    run_uri: str
    epoch: int
    """The run's epoch that this driver owns (data/commit.py)."""
    student: str
    """A folder that every node sees, a URI or a hub id (data/student_files.py)."""
    revision: str = ""
    student_digest: str
    """A hash of its files: whose log-probabilities the reference's are."""
    chat_template: str
    """Text of the template that the units were made with, exported with the model; empty: the student's own."""
    units: tuple[str, ...]
    """Folders of unit stores in the run, one for each source of the plan."""
    validation: tuple[str, ...]
    plan: BatchPlan
    micro_batch: int
    strategy: str
    cpu_offload: bool = False
    lora: LoraSettings | None = None
    """Train adapters of these settings; None: all weights."""
    numerics: Numerics
    rates: Rates
    cadence: Cadence
    preference: PreferenceSettings | None = None
    """What pairs become; None: SFT."""
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    """What may not change between starts, by name; checkpoints of another one are refused."""
    card: str = ""
    """README.md of the exported model."""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.plan.seed

    @property
    def metrics_path(self) -> str:
        """The metrics file in the run."""
        return f"metrics/{self.stage}.jsonl"

    @property
    def model_path(self) -> str:
        """The folder of the exported model in the run."""
        return f"models/{self.stage}"
