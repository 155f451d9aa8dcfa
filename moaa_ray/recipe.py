"""Every setting of a run, as frozen models: one recipe, one YAML file, one run.

Unknown keys are refused. Fields marked `Execution` say how fast or where rows are made, never what
is in them; changing any other field of a run that has begun is refused on resume (see loading.py).
The `models` section stands in recipe_models.py. Nothing here imports Ray, torch or vLLM.
"""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from moaa_ray.recipe_models import NAME, Config, Execution, Model, Name
from moaa_ray.recipe_training import DpoConfig, SftConfig, StudentConfig


class ColumnsConfig(Config):
    """Which columns of a source hold what. Unset columns are found by their usual names."""

    id: str | None = None
    """Column with a unique id; without one, ids are made from the content."""
    messages: str | None = None
    """Column with a list of {role, content}."""
    prompt: str | None = None
    """Column with one user prompt as text."""
    turns: str | None = None
    """Column with a list of user turns as text."""
    system: str | None = None
    """Column with a system prompt as text, beside prompt or turns."""


class SourceConfig(Config):
    """One place prompts come from."""

    path: Annotated[str, Execution]
    """A file, folder or glob pattern, local or any fsspec URI; local paths are relative to the recipe's folder."""
    name: str = ""
    """What the rows' `source` column says; empty: the file's or folder's name."""
    format: Annotated[Literal["auto", "jsonl", "csv", "parquet", "hf"], Execution] = "auto"
    """File format; auto goes by the suffix, and a folder written by `datasets` is hf."""
    columns: ColumnsConfig = ColumnsConfig()
    limit: Annotated[int | None, Execution] = Field(default=None, ge=1)
    """Take only the first so many rows."""
    sample: Annotated[int | None, Execution] = Field(default=None, ge=1)
    """Take so many rows at random, by the run's seed; after limit."""
    turns: Literal["all", "last"] = "all"
    """all: answer every user turn anew, one after the other; last: keep the dataset's history, answer the last turn."""


class PromptsConfig(Config):
    """Where prompts come from and what is done with odd ones; everything dropped is counted by rule."""

    sources: list[SourceConfig] = Field(min_length=1)
    max_chars: int = Field(default=100_000, ge=1)
    """Prompts with more characters than this, over all their messages, are over-long."""
    over_long: Annotated[Literal["drop", "error"], Execution] = "drop"
    empty: Annotated[Literal["drop", "error"], Execution] = "drop"
    duplicates: Annotated[Literal["drop", "error"], Execution] = "drop"
    """Rows with the same id and the same content; the same id with different content is always an error."""
    bad_rows: Annotated[Literal["drop", "error"], Execution] = "drop"
    """Rows that no prompt can be read from: broken lines, wrong types, roles or ids. error: the first one stops."""


class SlotConfig(Config):
    """One model in the mixture with its own sampling; the same model may fill several slots."""

    model: str
    """A name under `models`."""
    name: str = Field(default="", pattern=rf"^({NAME})?$", max_length=100)
    """What provenance calls this slot; empty: the model's name."""
    max_tokens: int = Field(default=2048, ge=1)
    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0: no limit."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    stop: tuple[str, ...] = ()

    @field_validator("stop", mode="before")
    @classmethod
    def _as_tuple(cls, stop: object) -> object:
        return tuple(stop) if isinstance(stop, list) else stop

    @property
    def label(self) -> str:
        """The slot's name in pass names and provenance."""
        return self.name or self.model


class ProposerConfig(SlotConfig):
    """A proposer slot."""

    num_samples: int = Field(default=1, ge=1, le=64)
    """Completions of this slot per row, each with its own seed: Self-MoA is one slot with several."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"temperature = 0 with num_samples = {self.num_samples}: all samples would be equal; "
                "raise temperature, e.g. to 0.7, or set num_samples to 1"
            )
        return self


class LayerConfig(Config):
    """Proposers that answer side by side; from the second layer on, each sees all proposals of the layer before."""

    proposers: list[ProposerConfig] = Field(min_length=1)
    """Strongest first: this is the order in which the next layer reads them."""
    repeat: int = Field(default=1, ge=1, le=8)
    """Stack the same layer this many times."""

    @field_validator("proposers")
    @classmethod
    def _distinct_labels(cls, slots: list[ProposerConfig]) -> list[ProposerConfig]:
        twice = [label for label, count in Counter(slot.label for slot in slots).items() if count > 1]
        if twice:
            raise ValueError(f"two proposers of one layer are called {twice[0]!r}; give each its own `name`")
        return slots

    @property
    def num_proposals(self) -> int:
        """Completions per row that the next layer reads."""
        return sum(slot.num_samples for slot in self.proposers)


class MixtureConfig(Config):
    """The mixture of agents: proposer layers, then one aggregator."""

    layers: list[LayerConfig] = Field(min_length=1)
    aggregator: SlotConfig
    min_proposals: int = Field(default=1, ge=1)
    """A row with fewer usable proposals than this fails; its aggregator is not called."""
    shuffle_proposals: bool = False
    """Show the proposals in a random order per row (by the seed) instead of the recipe's."""
    proposal_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance with which each proposal is left out, per row (by the seed); at least min_proposals stay."""
    hide_sources: bool = False
    """Tell the aggregator not to mention that it saw other answers."""
    baselines: bool = False
    """Also store the aggregator's own direct answer; it is never shown to it as a proposal."""
    drop_truncated: bool = False
    """Drop rows whose synthesised answer ended at max_tokens, instead of only flagging them."""

    @model_validator(mode="after")
    def _enough_proposals(self) -> Self:
        for i, layer in enumerate(self.layers):
            if self.min_proposals > layer.num_proposals:
                raise ValueError(
                    f"min_proposals = {self.min_proposals}: above the {layer.num_proposals} proposals that layers.{i} "
                    f"gives, so every row would fail; set it to {layer.num_proposals} or less, or add proposers"
                )
        return self

    @property
    def depth(self) -> int:
        """Proposer layers, repeats counted; the paper's number of layers is depth + 1."""
        return sum(layer.repeat for layer in self.layers)

    def stacked(self) -> list[list[ProposerConfig]]:
        """The proposers of every layer, repeats unrolled."""
        return [layer.proposers for layer in self.layers for _ in range(layer.repeat)]


class GenerateConfig(Config):
    """How the generate stage runs."""

    block_rows: Annotated[int | Literal["auto"], Execution] = "auto"
    """Rows that are scheduled, committed and lost together; auto: from the expected seconds per row."""
    max_failed_fraction: Annotated[float, Execution] = Field(default=0.05, ge=0, le=1)
    """The run stops with an error when a larger part of its rows has failed."""
    on_missing_proposer: Annotated[Literal["fail", "continue", "wait"], Execution] = "fail"
    """When a proposer's engine cannot start: stop, go on with the others (rows are marked), or keep trying."""
    phases: Annotated[int | Literal["auto"], Execution] = "auto"
    """Into how many phases the line of pools is cut; auto: as few as fit on the cluster."""
    shard_rows: int = Field(default=50_000, ge=1)
    """Rows per published Parquet file."""
    warn_after_s: Annotated[float, Execution] = Field(default=60.0, gt=0)
    """Say which pool waits on what when nothing has moved for this long."""
    hang_after_s: Annotated[float, Execution] = Field(default=60.0, gt=0)
    """An engine with open requests that answers none for this long (or 3 x its 99th percentile) is restarted."""


class RayConfig(Config):
    """Where Ray runs."""

    address: Literal["auto", "local"] | str = "auto"
    """auto: the cluster this process belongs to (RAY_ADDRESS), else a local one; local: always a local one."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local cluster; unset: what the machine has, but at least what the plan needs."""
    start_timeout_s: float = Field(default=50.0, gt=0)
    """How long a pool may wait for its GPUs and CPUs; raise it on clusters that add nodes on demand."""


class PlanConfig(Config):
    """What the planner assumes where it cannot know; for predictions only."""

    prompt_tokens: int = Field(default=250, ge=1)
    """Mean tokens of a prompt."""
    completion_tokens: int = Field(default=600, ge=1)
    """Mean tokens of a completion."""
    gpu_hour_usd: float | None = Field(default=None, ge=0)
    """Price of one GPU-hour in US dollars."""


class Run(Config):
    """What every recipe has, whatever its stages."""

    name: Annotated[Name, Execution]
    run_dir: Annotated[str, Execution] = ""
    """Where everything is written, any fsspec URI; empty: runs/<name>."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    ray: Annotated[RayConfig, Execution] = RayConfig()
    plan: Annotated[PlanConfig, Execution] = PlanConfig()
    sft: Annotated[SftConfig, Execution] = SftConfig()
    dpo: Annotated[DpoConfig, Execution] = DpoConfig()


class Recipe(Run):
    """One run, as far as generation reads it. What only training reads does not make its rows."""

    prompts: PromptsConfig
    models: dict[Name, Model] = Field(min_length=1)
    mixture: MixtureConfig
    generate: GenerateConfig = GenerateConfig()
    student: Annotated[StudentConfig | None, Execution] = None


class TrainingRecipe(Run):
    """One run, as far as training reads it: the sections of generation may be absent."""

    student: StudentConfig
    prompts: PromptsConfig | None = None
    models: dict[Name, Model] = Field(default_factory=dict)
    mixture: MixtureConfig | None = None
    generate: GenerateConfig = GenerateConfig()
