"""The `mixture` section of a recipe: slots, proposer layers, the aggregator."""

from collections import Counter
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from moaa_ray.settings.models import NAME, Config


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
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()

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
    """Drop rows whose synthesised answer was cut short, at max_tokens or by an endpoint's filter, instead of only
    flagging them."""

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
