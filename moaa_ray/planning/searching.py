"""The fastest way to build the pools of a stage: how models are split, and on which GPU types they stand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.planning import Plan
from moaa_ray.errors import ConfigError
from moaa_ray.planning.gpu_types import TYPE_LABEL, are_apart, keep_to, selectors
from moaa_ray.planning.pools import StagePools
from moaa_ray.settings.models import Model, WeightsModel

Build = Callable[[Mapping[str, Model]], Sequence[StagePools]]
"""From the models, some of which keep to GPU types, to the pools, with models split in one way and another."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to build the pools, and its plan."""

    pools: StagePools
    line: Plan
    kept: Mapping[str, str]
    """The GPU types to which models keep: model section -> selector; empty: all stand on all."""


@dataclass(kw_only=True)
class _Search:
    models: Mapping[str, Model]
    build: Build
    planned: Callable[[StagePools], Plan]
    found: list[Option] = field(default_factory=list)
    refused_models: list[ConfigError] = field(default_factory=list)
    refused_lines: list[ConfigError] = field(default_factory=list)

    def attempt(self, kept: Mapping[str, str]) -> None:
        try:
            options = self.build(keep_to(self.models, kept))
        except ConfigError as error:
            self.refused_models.append(error)
            return
        for pools in options:
            try:
                self.found.append(Option(pools=pools, line=self.planned(pools), kept=kept))
            except ConfigError as error:
                self.refused_lines.append(error)

    @property
    def best(self) -> Option:
        return min(self.found, key=_makespan_s)


def _makespan_s(option: Option) -> float:
    return option.line.makespan_s


def fastest_option(
    models: Mapping[str, Model], cluster: Cluster, *, build: Build, planned: Callable[[StagePools], Plan]
) -> tuple[Option, list[str]]:
    """The option with the shortest plan, the first of equals, and a note where it leaves GPU types out.

    All models keep to the same types at first; then each is tried on types of its own, once. Raises the ConfigError of
    the pools that did not fit on the cluster, or else that of the models on the largest GPU type.
    """
    search = _Search(models=models, build=build, planned=planned)
    choices = selectors(cluster)
    free = [name for name, model in models.items() if isinstance(model, WeightsModel) and model.device != "cpu"]
    free = [name for name in free if TYPE_LABEL not in models[name].node_labels]
    for choice in ["", *choices] if free else [""]:
        search.attempt(dict.fromkeys(free, choice) if choice else {})
    if not search.found:
        raise (search.refused_lines or search.refused_models[-1:])[0]
    for name in free if any(option.kept for option in search.found) else []:
        now = min((option for option in search.found if option.kept), key=_makespan_s).kept
        for choice in choices:
            if are_apart({**now, name: choice}.values()):
                search.attempt({**now, name: choice})
    return search.best, _told(search)


def _told(search: _Search) -> list[str]:
    """A sentence for each choice of GPU types, with what all of them would have cost."""
    best, chosen = search.best, {}
    for name, choice in best.kept.items():
        chosen.setdefault(choice, []).append(name)
    on_all = [option.line.makespan_s for option in search.found if not option.kept]
    slower = f"the plan would take {min(on_all) / best.line.makespan_s:.1f} times as long" if on_all else "nothing fits"
    return [
        f"{', '.join(names)}: only on {choice} (chosen); with every engine on any GPU, as on the smallest, {slower}."
        for choice, names in chosen.items()
    ]
