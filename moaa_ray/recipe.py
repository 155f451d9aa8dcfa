"""Every setting of a run, as frozen models: one recipe, one YAML file, one run.

Unknown keys are refused. Fields marked `Execution` say how fast or where rows are made, never what
is in them; changing any other field of a run that has begun is refused on resume (see loading.py).
The sections stand in recipe_*.py, one file each. Nothing here imports Ray, torch or vLLM.
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from moaa_ray.settings.evaluation import EvaluateConfig
from moaa_ray.settings.filters import FiltersConfig
from moaa_ray.settings.inference import InferenceConfig
from moaa_ray.settings.mixture import MixtureConfig
from moaa_ray.settings.models import Config, Execution, Model, Name
from moaa_ray.settings.preference import Judge, JudgeConfig, SampleConfig
from moaa_ray.settings.prompts import PromptsConfig
from moaa_ray.settings.serving import ServeConfig
from moaa_ray.settings.training import DpoConfig, SftConfig, StudentConfig

StageName = Literal["generate", "sft", "sample", "judge", "dpo", "evaluate"]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order in which they run."""


class GenerateConfig(InferenceConfig):
    """How the generate stage runs."""

    on_missing_proposer: Annotated[Literal["fail", "continue", "wait"], Execution] = "fail"
    """When a proposer's engine cannot start: stop, go on with the others (rows are marked), or keep trying."""


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
    measured: list[str] = Field(default=[], max_length=100)
    """Directories of earlier runs of the same models, any fsspec URI: their speeds, loading times and tokens take the
    place of what is assumed. A run with a `limit` of 50 rows is enough. Relative ones count from the current directory,
    as run_dir does."""


class RunConfig(Config):
    """What `moaa run` does."""

    stages: list[StageName] | None = Field(default=None, min_length=1)
    """The stages to run, in this order; each can also be run alone. Unset: all, and evaluate where the recipe has a
    benchmark."""
    rounds: int = Field(default=1, ge=1, le=20)
    """How often sample, judge and dpo are repeated, from the model of the round before and on other prompts."""
    iterations: int = Field(default=1, ge=1, le=20)
    """How often the whole is repeated with the tuned student put back into the mixture in place of `improves`."""
    improves: str = ""
    """The name under `models` that the tuned student takes the place of from the second iteration on."""

    @model_validator(mode="after")
    def _replaces_a_model(self) -> Self:
        if (self.iterations > 1) != bool(self.improves):
            raise ValueError(
                f"iterations = {self.iterations} with improves = {self.improves!r}: name the model that the tuned "
                "student replaces, or set iterations to 1 and leave improves out"
            )
        return self


class Run(Config):
    """What every recipe has, whatever its stages. What only later stages read does not make the rows of generate."""

    name: Annotated[Name, Execution]
    run_dir: Annotated[str, Execution] = ""
    """Where everything is written, any fsspec URI; empty: runs/<name>."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    ray: Annotated[RayConfig, Execution] = RayConfig()
    plan: Annotated[PlanConfig, Execution] = PlanConfig()
    run: Annotated[RunConfig, Execution] = RunConfig()
    models: dict[Name, Model] = Field(default_factory=dict)
    filters: Annotated[FiltersConfig, Execution] = FiltersConfig()
    sft: Annotated[SftConfig, Execution] = SftConfig()
    sample: Annotated[SampleConfig, Execution] = SampleConfig()
    judges: Annotated[dict[Name, Judge], Execution] = Field(default_factory=dict)
    """The judges by name; which one makes the pairs says judge.use."""
    judge: Annotated[JudgeConfig, Execution] = JudgeConfig()
    dpo: Annotated[DpoConfig, Execution] = DpoConfig()
    serve: Annotated[ServeConfig, Execution] = ServeConfig()
    evaluate: Annotated[EvaluateConfig, Execution] = EvaluateConfig()

    @property
    def stages(self) -> list[StageName]:
        """The stages of the whole run, in order."""
        if self.run.stages is not None:
            return self.run.stages
        is_evaluated = bool(self.evaluate.benchmarks or self.evaluate.reward_bench)
        return [stage for stage in STAGES if stage != "evaluate" or is_evaluated]


class Recipe(Run):
    """One run, as far as generation reads it."""

    prompts: PromptsConfig
    models: dict[Name, Model] = Field(min_length=1)
    mixture: MixtureConfig
    generate: GenerateConfig = GenerateConfig()
    student: Annotated[StudentConfig | None, Execution] = None


class PreferenceRecipe(Run):
    """One run, as far as sampling and judging read it: prompts and mixture may be absent."""

    prompts: PromptsConfig | None = None
    mixture: MixtureConfig | None = None
    generate: GenerateConfig = GenerateConfig()
    student: StudentConfig | None = None


class TrainingRecipe(PreferenceRecipe):
    """One run, as far as training reads it."""

    student: StudentConfig  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]: now needed
