"""What earlier runs have measured, for the planner: speeds, loading times and mean tokens in place of assumptions.

Every start of a stage keeps its pools' figures under metrics/usage, killed ones too, so that any run of the same models
is a calibration: a `limit` of 50 rows, a run that was stopped, or a whole one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import inf
from typing import Any

from moaa_ray.core.gpus import gpu_type
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError
from moaa_ray.model_folders import resolve_path
from moaa_ray.settings.models import Model

USAGE = "metrics/usage"
"""The folder of a run that holds <stage>/<start>.json."""

_NO_SPEED = {
    "replicas", "concurrency", "request_timeout_s", "max_attempts", "price_per_million_tokens", "revision",
    "context_window", "chat_template", "device", "gpu_memory_fraction", "api_key", "requests_per_minute", "faults",
    "system_role", "label", "node_labels", "tokens_per_s", "start_s", "completion_tokens", "length_sigma",
}  # fmt: skip
"""Fields of a model that do not change how fast its engine is when its slots are full; those of the fake engine that do
are what is measured of it."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The engines of one setup in one run, or of several; seconds are summed over them."""

    setup: Mapping[str, Any]
    runs: tuple[str, ...]
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    busy_s: float = 0.0
    slot_s: float = 0.0
    num_slots: int = 0
    start_s: float = 0.0
    num_starts: int = 0

    @property
    def filled_slots(self) -> float:
        """Slots that had a request, on average while any had."""
        return self.slot_s / self.busy_s

    @property
    def prompt_mean(self) -> float:
        """Prompt tokens of a call."""
        return self.prompt_tokens / self.calls

    @property
    def completion_mean(self) -> float:
        """Completion tokens of a call."""
        return self.completion_tokens / self.calls

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(
            setup=self.setup,
            runs=(*dict.fromkeys([*self.runs, *other.runs]),),
            num_slots=max(self.num_slots, other.num_slots),
            **{name: getattr(self, name) + getattr(other, name) for name in _SUMMED},
        )


_SUMMED = ("calls", "prompt_tokens", "completion_tokens", "busy_s", "slot_s", "start_s", "num_starts")


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What is known from earlier runs; empty where none is named."""

    engines: Sequence[Measured] = ()
    passes: Mapping[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    """(stage, pass, model) -> mean prompt and completion tokens."""

    def of(self, setup: Mapping[str, Any]) -> Measured | None:
        """All that was measured of engines of this setup; None where nothing was."""
        found = [one for one in self.engines if one.setup == setup and one.calls and one.slot_s > 0]
        return reduce(Measured.__add__, found) if found else None


def setup_of(model: Model, cluster: Cluster | None) -> dict[str, Any]:
    """What decides the speed of an engine, as plain JSON data; cluster None: it runs on CPUs.

    The model has absolute paths, and numbers where its recipe says auto.
    """
    fields = model.model_dump(mode="json", exclude=_NO_SPEED)
    return {**fields, "gpu": gpu_names(cluster) if cluster else ""}


def gpu_names(cluster: Cluster) -> str:
    """The GPU types of a cluster as this package calls them; several are joined by +."""
    return "+".join(sorted({_plain(node.gpu) for node in cluster.nodes if node.num_gpus}))


def _plain(gpu: str) -> str:
    try:
        return gpu_type(gpu).name
    except ConfigError:
        return gpu


def read_measurements(uris: Sequence[str]) -> Measurements:
    """The figures of these runs. Raises ConfigError where one is no run that has asked models, or is damaged.

    Relative paths count from the current directory, as run directories do.
    """
    engines: list[Measured] = []
    tokens: dict[tuple[str, str, str], list[tuple[int, int, int]]] = {}
    for number, uri in enumerate(uris):
        store = open_store(resolve_path(os.getcwd(), uri))
        files = [path for path in store.list(USAGE) if path.endswith(".json")]
        if not files:
            raise ConfigError(
                f"plan.measured.{number} = {uri!r}: it holds no {USAGE}/*/*.json, so it is no directory of a run that "
                "has asked models; correct the path, or take it out"
            )
        for path in files:
            stage = path.removeprefix(f"{USAGE}/").rpartition("/")[0]
            try:
                for pool in json.loads(store.read(path)):
                    if not pool.get("setup"):  # of a version that did not note it
                        continue
                    engines.append(_measured(pool, uri))
                    for name, each in pool["passes"].items():
                        key = (stage, name, _place(pool["setup"]))
                        tokens.setdefault(key, []).append(_counts(each))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"plan.measured.{number}: {store.uri}/{path} is damaged ({type(error).__name__}: {error}); "
                    "restore it, or take the run out"
                ) from error
    return Measurements(engines=engines, passes={key: _means(counts) for key, counts in tokens.items()})


def _measured(pool: Mapping[str, Any], uri: str) -> Measured:
    return Measured(
        setup=pool["setup"],
        runs=(uri,),
        calls=sum(_counts(each)[0] for each in pool["passes"].values()),
        **{name: _number(pool[name]) for name in (*_SUMMED[1:], "num_slots")},
    )


def _counts(done: Mapping[str, Any]) -> tuple[int, int, int]:
    return _number(done["calls"]), _number(done["prompt_tokens"]), _number(done["completion_tokens"])


def _number(value: Any) -> Any:
    if not isinstance(value, int | float) or not 0 <= value < inf:
        raise ValueError(f"{value!r} is no number of something measured")
    return value


def _means(counts: Sequence[tuple[int, int, int]]) -> tuple[float, float]:
    calls, prompt, completion = (sum(column) for column in zip(*counts, strict=True))
    return prompt / max(1, calls), completion / max(1, calls)


def _place(setup: Mapping[str, Any]) -> str:
    """What the model is called where it comes from."""
    return str(setup.get("model", setup.get("function", "")))
