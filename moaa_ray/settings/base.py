"""What the sections of a recipe have in common: the base class, the markers of fields, and what all engines share.

Nothing here imports Ray, torch or vLLM.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=100)]
"""What may become a column, a file or a folder name."""


_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(pattern=rf"^([A-Za-z0-9.-]{{1,253}}/)?{_LABEL}$")]
LabelValue = Annotated[str, Field(pattern=rf"^{_LABEL}$")]
"""Of a node, as Ray allows them; Ray's selectors in(...) and ! are left out."""


class Execution:
    """Marker for fields that change how rows are made but not their content."""


class ExecutionKeys:
    """Marker for a mapping in which only these keys are Execution."""

    def __init__(self, keys: frozenset[str]):
        self.keys = keys


class Config(BaseModel):
    """Base of every section: frozen, no unknown keys, no value in pydantic's own messages (it may be a secret).

    The text under a field is its documentation.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )


class ReplicaRange(Config):
    """An autoscaling pool."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}; swap them")
        return self


Replicas = Literal["auto"] | Annotated[int, Field(ge=1)] | ReplicaRange


class ModelConfig(Config):
    """What all engines share."""

    replicas: Annotated[Replicas, Execution] = "auto"
    """Engines of this model: a number, {min, max} for an autoscaling pool, or auto (the planner balances all pools)."""
    concurrency: Annotated[int, Execution] = Field(default=64, ge=1)
    """Requests that one engine works on at a time (vLLM: max_num_seqs; endpoints: open requests per worker)."""
    request_timeout_s: Annotated[float, Execution] = Field(default=600.0, gt=0)
    """Seconds after which a request counts as hung."""
    max_attempts: Annotated[int, Execution] = Field(default=3, ge=1, le=20)
    """How often one request is tried before it is a failure; one that timed out is tried again at endpoints only."""
    num_cpus: Annotated[float, Execution] = Field(default=1.0, ge=0)
    """CPU slots one worker takes."""
    node_labels: Annotated[dict[LabelKey, LabelValue], Execution] = Field(default={})
    """Labels that a node must have for an engine of this model to stand on it, e.g. {pool: big-gpus}: those that nodes
    were started with (`ray start --labels`, a worker group's labels in KubeRay)."""
    price_per_million_tokens: Annotated[float | None, Execution] = Field(default=None, ge=0)
    """US dollars per million tokens, prompt and completion alike; for the plan and the summary only."""

    @property
    def num_gpus(self) -> int:
        """GPUs of one engine where it runs on GPUs; 0 for an engine that never does."""
        return 0
