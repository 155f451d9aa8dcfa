"""The preference half of a recipe: the student's candidates, the judges that compare them, the pairs that are kept.

Defaults are the paper's (section 4.1): five candidates at temperature 0.8, all pairs in both orders. What it does not
state (the judges' temperature and length) is filled in from the settings that RewardBench and FastChat judge with.
"""

import re
from collections import Counter
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from moaa_ray.settings.inference import InferenceConfig
from moaa_ray.settings.mixture import SlotConfig
from moaa_ray.settings.models import Config, Execution
from moaa_ray.settings.prompts import SourceConfig

ASPECTS = ("instruction following", "honesty", "truthfulness", "helpfulness")
"""UltraFeedback's four aspects."""


class SampleConfig(SlotConfig, InferenceConfig):
    """Candidates from the student itself."""

    model: str = ""
    """A name under `models`, usually of RUN/models/sft; empty: vLLM with its defaults on RUN/models/sft."""
    sources: list[SourceConfig] = Field(default_factory=list)
    """Where prompts come from; empty: the rows of RUN/sft, whose last turn the student answers anew."""
    from_sources: Annotated[list[str], Execution] = Field(default_factory=list)
    """Only the prompts of these sources, by name; empty: all."""
    rows: Annotated[int | None, Execution] = Field(default=None, ge=1)
    """So many prompts, drawn by the seed, others in every round; unset: all. The paper takes 6,000."""
    num_candidates: int = Field(default=5, ge=2, le=64)
    """Completions per prompt, each with its own seed."""
    min_candidates: int = Field(default=2, ge=2)
    """A prompt with fewer usable candidates fails."""
    temperature: float = Field(default=0.8, gt=0, le=2)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.min_candidates > self.num_candidates:
            raise ValueError(
                f"min_candidates = {self.min_candidates} is above num_candidates = {self.num_candidates}, so every "
                "prompt would fail; lower it"
            )
        return self


class JudgeSlotConfig(SlotConfig):
    """One model that judges."""

    temperature: float = Field(default=0.0, ge=0, le=2)


class PairwiseConfig(Config):
    """What judges that compare two candidates have in common. Every pair is judged in both orders."""

    criteria: bool = True
    """First choose three of eight criteria for each pair; every judgment of the pair then goes by them."""
    criteria_attempts: int = Field(default=2, ge=1, le=5)
    """How often criteria are asked for until the answer is in form; then three fixed ones are taken, and counted."""
    schedule: Literal["all_pairs", "knockout"] = "all_pairs"
    """all_pairs: n (n - 1) / 2 pairs; knockout: n - 1 matches for the best and a losers' bracket for the worst."""
    max_missing_fraction: float = Field(default=0.2, ge=0, lt=1)
    """A prompt fails when more than this part of its pairs has no verdict in both orders."""


_Pairwise = TypeVar("_Pairwise", bound=PairwiseConfig)


class MixtureJudge(PairwiseConfig):
    """The paper's judge: several models assess both candidates, an aggregator weighs them and decides."""

    kind: Literal["mixture"]
    proposers: list[JudgeSlotConfig] = Field(min_length=1)
    aggregator: JudgeSlotConfig
    criteria_by: str = ""
    """The name of the proposer (or of the aggregator) that chooses the criteria; empty: the first proposer, whose
    engines then serve both."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        labels = [slot.label for slot in (*self.proposers, self.aggregator)]
        if self.criteria_by and self.criteria_by not in labels:
            raise ValueError(f"criteria_by = {self.criteria_by!r} is none of {', '.join(labels)}; name one of them")
        return _with_distinct_labels(self, self.proposers, "proposers")

    @property
    def criteria_slot(self) -> JudgeSlotConfig:
        """Who chooses the criteria."""
        slots = [*self.proposers, self.aggregator]
        return next((slot for slot in slots if slot.label == self.criteria_by), slots[0])


class LlmJudge(JudgeSlotConfig, PairwiseConfig):
    """One model that compares two candidates and decides."""

    kind: Literal["llm"]
    criteria: bool = False


class JuryJudge(PairwiseConfig):
    """Several models that decide alone; the majority counts, and an even jury can tie."""

    kind: Literal["jury"]
    members: list[JudgeSlotConfig] = Field(min_length=2)
    criteria: bool = False

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for label in (slot.label for slot in self.members):
            if re.search(r"\.r\d+$", label):
                raise ValueError(
                    f"members: one is called {label!r}, and verdicts of names that end so are read as those of a round "
                    "of a knockout; give it another `name`"
                )
        return _with_distinct_labels(self, self.members, "members")


class ScoreJudge(Config):
    """A model that gives each candidate a number: a reward model (engine: classifier) or a rule (engine: rule)."""

    kind: Literal["score"]
    model: str
    """A name under `models`."""


class AspectsJudge(JudgeSlotConfig):
    """One model that rates each candidate alone from 1 to 5 in several aspects; the mean is its score."""

    kind: Literal["aspects"]
    aspects: list[Annotated[str, Field(min_length=1)]] = Field(default=list(ASPECTS), min_length=1, max_length=12)
    """Each stands in the prompt as it is written here."""

    @model_validator(mode="after")
    def _distinct_aspects(self) -> Self:
        twice = [aspect for aspect, count in Counter(self.aspects).items() if count > 1]
        if twice:
            raise ValueError(f"aspects: {twice[0]!r} stands there twice; name each once")
        return self


Judge = Annotated[MixtureJudge | LlmJudge | JuryJudge | ScoreJudge | AspectsJudge, Field(discriminator="kind")]


class JudgeConfig(InferenceConfig):
    """Which judge makes the pairs, and which of them are kept; the rules apply when pairs are published."""

    use: Annotated[str, Execution] = ""
    """A name under `judges`; may be left out where there is one only."""
    min_margin: Annotated[float, Execution] = Field(default=0.0, ge=0)
    """Drop a prompt whose best and worst candidates' scores differ by less. Pairwise scores go from 0 to 1."""
    max_length_ratio: Annotated[float | None, Execution] = Field(default=None, gt=0)
    """Drop a pair whose chosen completion is longer than its rejected one by more than this factor, in characters."""


def judge_models(judge: Judge) -> list[str]:
    """The names under `models` that a judge asks, in line order."""
    match judge:
        case MixtureJudge():
            return [slot.model for slot in (*judge.proposers, judge.aggregator)]
        case JuryJudge():
            return [slot.model for slot in judge.members]
        case _:
            return [judge.model]


def _with_distinct_labels(judge: _Pairwise, slots: list[JudgeSlotConfig], where: str) -> _Pairwise:
    twice = [label for label, count in Counter(slot.label for slot in slots).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: two are called {twice[0]!r}; give each its own `name`")
    return judge
