"""The `evaluate` section of a recipe: which models are evaluated, on which benchmarks, with which judge.

A benchmark is run where its section is there. Defaults are the protocols' own: AlpacaEval 2 (tatsu-lab/alpaca_eval),
Arena-Hard v0.1 (lmarena/arena-hard-auto), MT-Bench (lm-sys/FastChat). AlpacaEval leaves open how the evaluated model
answers, so temperature 0.7 and 2,048 tokens stand here.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from moaa_ray.settings.base import Config, Name
from moaa_ray.settings.inference import InferenceConfig

Benchmark = Literal["alpaca_eval", "arena_hard", "mt_bench"]


class AnswersFile(Config):
    """A file with one answer to every question; in a recipe its path alone will do.

    The answers of AlpacaEval (instruction, output, generator), of FastChat and Arena-Hard (question_id, model_id,
    choices), or a table with an id or instruction and a column of text.
    """

    path: str
    """A file, folder or pattern; relative to the recipe's folder."""
    model: str = ""
    """Only the rows of this model, in a file with the answers of several."""
    column: str = ""
    """The column with the answer; empty: output, completion, answer, choices, messages or reference."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class StoredAnswers(Config):
    """A model that has answered already: for each benchmark the file with its answers."""

    alpaca_eval: AnswersFile | None = None
    arena_hard: AnswersFile | None = None
    mt_bench: AnswersFile | None = None


class BenchmarkConfig(Config):
    """What the benchmarks have in common."""

    questions: str
    """The file with the questions, as the benchmark publishes it; relative to the recipe's folder."""
    judge: str
    """A name under `models`: an endpoint, or a model that runs here."""
    max_tokens: int = Field(ge=1)
    """Of one answer of the model that is evaluated."""


class AlpacaEvalConfig(BenchmarkConfig):
    """AlpacaEval 2: each answer beside the baseline's, judged once, in an order that the instruction decides."""

    max_tokens: int = Field(default=2048, ge=1)
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Of the evaluated model's answers."""
    baseline: AnswersFile
    """The published one is gpt4_1106_preview."""
    preference: Literal["logprobs", "verdict", "scores"] = "logprobs"
    """logprobs: by the probabilities of the judge's first token; verdict: by what it decides after giving reasons;
    scores: by which answer has the higher score of a reward model or a rule (engine: classifier, rule)."""
    judge_max_tokens: int = Field(default=2048, ge=1)
    """Of a verdict with reasons; by logprobs it is one token."""
    difficulties: str = ""
    """The published instruction_difficulty.csv for the length-controlled win rate; it belongs to the published baseline
    and judge. Empty: difficulties are fitted from the models evaluated here."""
    gamed: str = ""
    """The published df_gamed.csv, which holds the length effect; it needs difficulties."""

    @model_validator(mode="after")
    def _gamed_has_difficulties(self) -> "AlpacaEvalConfig":
        if self.gamed and not self.difficulties:
            raise ValueError(f"gamed = {self.gamed!r} without difficulties: they are fitted together; set both or none")
        return self


class ArenaHardConfig(BenchmarkConfig):
    """Arena-Hard v0.1: each answer beside the baseline's in both orders, in five grades."""

    max_tokens: int = Field(default=4096, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Of the evaluated model's answers."""
    baseline: AnswersFile
    """The published one is gpt-4-0314."""
    judge_max_tokens: int = Field(default=4096, ge=1)
    style_control: bool = False
    """Also the win rate at equal style: length, headers, lists, bold."""


class MtBenchConfig(BenchmarkConfig):
    """MT-Bench: each of two answers graded alone from 1 to 10; temperatures are the categories' own."""

    max_tokens: int = Field(default=1024, ge=1)
    references: AnswersFile | None = None
    """Reference answers to math, reasoning and coding; unset: the questions' own column `reference`."""
    judge_max_tokens: int = Field(default=2048, ge=1)


class RewardBenchConfig(Config):
    """RewardBench for judges: how often each is right on labelled pairs; nothing is asked of the models evaluated."""

    pairs: str
    """A file, folder or pattern as `moaa check-judge` takes it; relative to the recipe's folder."""
    judges: list[Name] = Field(min_length=1)
    """Names under `judges`."""


class EvaluateConfig(InferenceConfig):
    """What `moaa evaluate` does."""

    models: dict[Name, str | StoredAnswers] = Field(default_factory=dict)
    """By the name in the table: a name under `models`, RUN/models/sft, or files of stored answers. Empty: the student
    as `base`, RUN/models/sft as `sft`, RUN/models/dpo as `dpo`, as far as they are there."""
    alpaca_eval: AlpacaEvalConfig | None = None
    arena_hard: ArenaHardConfig | None = None
    mt_bench: MtBenchConfig | None = None
    reward_bench: RewardBenchConfig | None = None

    @property
    def benchmarks(self) -> dict[Benchmark, AlpacaEvalConfig | ArenaHardConfig | MtBenchConfig]:
        """Those that the recipe has, in the order of the table."""
        sections = {"alpaca_eval": self.alpaca_eval, "arena_hard": self.arena_hard, "mt_bench": self.mt_bench}
        return {name: config for name, config in sections.items() if config is not None}  # pyright: ignore[reportReturnType]: the keys are a Benchmark each
